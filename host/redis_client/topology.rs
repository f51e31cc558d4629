//! The topology that `[redis] url` describes: one server, a primary behind sentinels, or a cluster.
//!
//! Each host of a longer URL is parsed by the `redis` crate as part of a plain URL, so that user,
//! password, TLS and defaults mean the same everywhere.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

/// An invalid `[redis] url`. The message does not repeat the URL, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// `memory://` is not a server: the gateway uses its in-memory parts instead.
    #[error("[redis] url: memory:// names no server to connect to; use redis:// or rediss://")]
    Memory,
    /// An invalid cluster URL.
    #[error(
        "[redis] url is invalid ({0}); expected redis+cluster://[user:password@]node[:port][,node[:port]...], \
         with special characters of the password percent-encoded"
    )]
    Cluster(UrlProblem),
    /// An invalid sentinel URL.
    #[error(
        "[redis] url is invalid ({0}); expected redis+sentinel://[user:password@]sentinel[:port][,...]\
         /service[/database][?sentinel_username=...&sentinel_password=...], with special characters \
         percent-encoded"
    )]
    Sentinel(UrlProblem),
    /// Everything else.
    #[error(
        "[redis] url is invalid ({0}); expected redis://[user:password@]host[:port][/database], \
         with special characters of the password percent-encoded; or redis+sentinel://, redis+cluster://, \
         memory://"
    )]
    Malformed(UrlProblem),
}

/// The problem with a part of a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// Between two commas, or at the end.
    #[error("a host is empty")]
    EmptyHost,
    /// A cluster without nodes.
    #[error("no node is named")]
    NoNode,
    /// A cluster URL with a path.
    #[error("a cluster has no databases")]
    Database,
    /// A cluster URL with a query.
    #[error("a query (`?`) is not allowed")]
    Query,
    /// A sentinel URL without a path.
    #[error("the name of the service is missing")]
    NoService,
    /// Its name is not repeated: it may be the rest of a password with an unescaped `&`.
    #[error("unknown parameter after the `?`")]
    Parameter,
    /// A sentinel's user without a password.
    #[error("sentinel_username needs a sentinel_password")]
    NoPassword,
    /// What the `redis` crate says about one server.
    #[error("{0}")]
    Server(String),
}

/// The default port of sentinels.
const SENTINEL_PORT: u16 = 26_379;

/// The topology.
#[derive(Debug, Clone)]
pub(super) enum Topology {
    /// This server.
    Server(ConnectionInfo),
    /// The primary according to sentinels.
    Primary(MonitoredPrimary),
    /// The cluster of these nodes.
    Cluster(Vec<ConnectionInfo>),
}

/// A primary that sentinels monitor.
#[derive(Debug, Clone)]
pub(super) struct MonitoredPrimary {
    /// The sentinels, with their own login.
    pub(super) sentinels: Vec<ConnectionInfo>,
    /// The name under which they monitor the primary.
    pub(super) service: String,
    /// Connection settings of the primary, except its address.
    pub(super) primary: ConnectionInfo,
}

/// Parses a URL. Also returns it without credentials.
pub(super) fn read(url: &str) -> Result<(Topology, String), BadUrl> {
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    match scheme {
        // `memory:` alone counts as well.
        _ if scheme.starts_with("memory") => Err(BadUrl::Memory),
        "redis+cluster" => cluster(scheme, UrlParts::of("redis", rest)),
        "rediss+cluster" => cluster(scheme, UrlParts::of("rediss", rest)),
        "redis+sentinel" => sentinel(scheme, UrlParts::of("redis", rest)),
        "rediss+sentinel" => sentinel(scheme, UrlParts::of("rediss", rest)),
        _ => {
            let server = server(url).map_err(BadUrl::Malformed)?;
            let endpoint = format!("{scheme}://{}/{}", server.addr(), server.redis_settings().db());
            Ok((Topology::Server(server), endpoint))
        }
    }
}

/// The same login and transport, with another address.
pub(super) fn at(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let host = host.to_owned();
    let address = match info.addr().clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(address)
}

/// Host and port; `None` for a Unix socket, which no cluster has.
pub(super) fn host_and_port(info: &ConnectionInfo) -> Option<(&str, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host, *port)),
        _ => None,
    }
}

/// The parts of a URL with several hosts.
struct UrlParts<'a> {
    /// The scheme of a URL for one host.
    plain: &'static str,
    /// With its `@`, or empty.
    login: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
    query: &'a str,
    /// With its `#`, or empty: `#insecure` means something to the `redis` crate.
    fragment: &'a str,
}

impl<'a> UrlParts<'a> {
    fn of(plain: &'static str, rest: &'a str) -> Self {
        let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Self { plain, login, hosts: hosts.split(',').collect(), path, query, fragment }
    }

    fn server(&self, login: &str, host: &str, database: &str) -> Result<ConnectionInfo, UrlProblem> {
        if host.is_empty() {
            return Err(UrlProblem::EmptyHost);
        }
        server(&format!("{}://{login}{host}/{database}{}", self.plain, self.fragment))
    }

    fn servers(&self, login: &str) -> Result<Vec<ConnectionInfo>, UrlProblem> {
        self.hosts.iter().map(|host| self.server(login, host, "")).collect()
    }
}

fn server(url: &str) -> Result<ConnectionInfo, UrlProblem> {
    let info = url.into_connection_info().map_err(|e| UrlProblem::Server(e.to_string()))?;
    // Without it, a pipeline larger than one packet waits for an acknowledgement.
    let settings = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_tcp_settings(settings))
}

fn cluster(scheme: &str, parts: UrlParts<'_>) -> Result<(Topology, String), BadUrl> {
    if !matches!(parts.path, "" | "0") {
        return Err(BadUrl::Cluster(UrlProblem::Database));
    }
    if !parts.query.is_empty() {
        return Err(BadUrl::Cluster(UrlProblem::Query));
    }
    let nodes = parts.servers(parts.login).map_err(BadUrl::Cluster)?;
    Ok((Topology::Cluster(nodes), format!("{scheme}://{}", parts.hosts.join(","))))
}

fn sentinel(scheme: &str, parts: UrlParts<'_>) -> Result<(Topology, String), BadUrl> {
    let (service, database) = parts.path.split_once('/').unwrap_or((parts.path, ""));
    if service.is_empty() {
        return Err(BadUrl::Sentinel(UrlProblem::NoService));
    }
    let login = sentinel_login(parts.query).map_err(BadUrl::Sentinel)?;
    let endpoint = format!("{scheme}://{}/{}", parts.hosts.join(","), parts.path);
    let primary = parts.server(parts.login, parts.hosts[0], database).map_err(BadUrl::Sentinel)?;
    let mut sentinels = Vec::with_capacity(parts.hosts.len());
    for host in &parts.hosts {
        sentinels.push(parts.server(&login, &with_port(host), "").map_err(BadUrl::Sentinel)?);
    }
    Ok((Topology::Primary(MonitoredPrimary { sentinels, service: service.to_owned(), primary }), endpoint))
}

/// The sentinels' own user and password, in the form of a URL.
fn sentinel_login(query: &str) -> Result<String, UrlProblem> {
    let (mut username, mut password) = (String::new(), None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('@', "%40").replace('/', "%2F").replace(':', "%3A");
        match name {
            "sentinel_username" => username = value,
            "sentinel_password" => password = Some(value),
            _ => return Err(UrlProblem::Parameter),
        }
    }
    match password {
        Some(password) => Ok(format!("{username}:{password}@")),
        None if username.is_empty() => Ok(String::new()),
        None => Err(UrlProblem::NoPassword),
    }
}

fn with_port(host: &str) -> String {
    let behind_brackets = host.rsplit(']').next().unwrap_or(host);
    if behind_brackets.contains(':') { host.to_owned() } else { format!("{host}:{SENTINEL_PORT}") }
}

#[cfg(test)]
mod tests {
    use redis::RedisConnectionInfo;

    use super::*;

    fn login(settings: &RedisConnectionInfo) -> (Option<&str>, Option<&str>, i64) {
        (settings.username(), settings.password(), settings.db())
    }

    fn monitored(url: &str) -> (MonitoredPrimary, String) {
        match read(url) {
            Ok((Topology::Primary(monitored), endpoint)) => (monitored, endpoint),
            other => panic!("{url}: {other:?}"),
        }
    }

    fn addresses(servers: &[ConnectionInfo]) -> Vec<String> {
        servers.iter().map(|server| server.addr().to_string()).collect()
    }

    #[test]
    fn a_cluster_url_names_nodes_that_share_a_login() {
        let url = "redis+cluster://ann:p%40ss@a:7000,b,[::1]:7002/";
        let Ok((Topology::Cluster(nodes), endpoint)) = read(url) else { panic!("{url}") };
        assert_eq!(addresses(&nodes), ["a:7000", "b:6379", "::1:7002"]);
        for node in &nodes {
            assert_eq!(login(node.redis_settings()), (Some("ann"), Some("p@ss"), 0));
        }
        assert_eq!(endpoint, "redis+cluster://a:7000,b,[::1]:7002");
        let Ok((Topology::Cluster(nodes), _)) = read("rediss+cluster://a#insecure") else { panic!() };
        assert!(matches!(nodes[0].addr(), ConnectionAddr::TcpTls { insecure: true, .. }));
        let moved = at(&nodes[0], "b", 7);
        assert!(matches!(moved.addr(), ConnectionAddr::TcpTls { insecure: true, port: 7, .. }));
    }

    #[test]
    fn a_sentinel_url_names_service_database_and_both_logins() {
        let (plain, endpoint) = monitored("redis+sentinel://a,b:7/main");
        assert_eq!(addresses(&plain.sentinels), ["a:26379", "b:7"]);
        assert_eq!((plain.service.as_str(), endpoint.as_str()), ("main", "redis+sentinel://a,b:7/main"));
        assert_eq!(login(plain.primary.redis_settings()), (None, None, 0));
        assert_eq!(login(plain.sentinels[0].redis_settings()), (None, None, 0));

        let url =
            "rediss+sentinel://ann:one@[::1]:7/main/3?sentinel_username=bob&sentinel_password=t/w:o%26@";
        let (full, endpoint) = monitored(url);
        assert_eq!(login(full.primary.redis_settings()), (Some("ann"), Some("one"), 3));
        assert_eq!(login(full.sentinels[0].redis_settings()), (Some("bob"), Some("t/w:o&@"), 0));
        assert_eq!(endpoint, "rediss+sentinel://[::1]:7/main/3");
        assert!(matches!(full.sentinels[0].addr(), ConnectionAddr::TcpTls { .. }));
    }

    #[test]
    fn mistakes_are_named_and_passwords_are_not() {
        for (url, said) in [
            ("redis+cluster://u:hunter2@a,b/3", "a cluster has no databases"),
            ("redis+cluster://u:hunter2@a,,b", "a host is empty"),
            ("redis+cluster://u:hunter2@a?x=hunter2", "a query (`?`) is not allowed"),
            ("redis+cluster://u:hunter2@a:port", "expected redis+cluster://"),
            ("redis+sentinel://u:hunter2@a", "the name of the service is missing"),
            ("redis+sentinel://u:hunter2@a/", "the name of the service is missing"),
            ("redis+sentinel://u:hunter2@a/main/hunter2", "expected redis+sentinel://"),
            ("redis+sentinel://a/main?sentinel_username=hunter2", "needs a sentinel_password"),
            ("redis+sentinel://a/main?sentinel_password=x&hunter2", "unknown parameter after"),
            ("memory://", "names no server"),
            ("http://user:hunter2@host", "expected redis://"),
            ("redis://user:hunter2@host:port", "expected redis://"),
            ("hunter2", "expected redis://"),
        ] {
            let error = read(url).expect_err(url).to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
