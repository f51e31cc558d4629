//! The `[api]` section: the listener for comets and backends.

use std::path::{Path, PathBuf};

use super::admin::{FEWEST_CONNECTIONS, host_of};

/// `[api]`: the API for comets and backends, over gRPC and HTTP.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on; without one, there is no API. gRPC and HTTP share it.
    pub listen: Option<String>,
    /// A TOML file with the tokens, each with a name and perhaps limits. It is read again when it
    /// changes. Required, unless `listen` is on loopback: then everything is allowed without one,
    /// except from browsers.
    pub token_file: Option<PathBuf>,
    /// A PEM file with the certificate and its chain. With it, and `tls_key`, only TLS is spoken. Both
    /// files are read again when they change.
    pub tls_certificate: Option<PathBuf>,
    /// A PEM file with the private key of `tls_certificate`.
    pub tls_key: Option<PathBuf>,
    /// Host names under which clients may reach the API, in addition to `localhost`, IP addresses and the
    /// name in `listen`.
    pub allowed_hosts: Vec<String>,
    /// Maximum number of connections; one client holds at most a quarter of them.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            token_file: None,
            tls_certificate: None,
            tls_key: None,
            allowed_hosts: Vec::new(),
            max_connections: 256,
        }
    }
}

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(listen) = &self.listen {
            match host_of(listen) {
                None => problems
                    .push(format!("`api.listen` is `{listen}`; expected host:port, such as 127.0.0.1:9094")),
                Some(host) if !is_loopback(host) && self.token_file.is_none() => problems.push(format!(
                    "`api.listen` is `{listen}`, which other machines reach, and `api.token_file` is missing: any client could read all inboxes"
                )),
                Some(_) => {}
            }
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            problems.push("`api.tls_certificate` and `api.tls_key` need each other".to_owned());
        }
        for host in &self.allowed_hosts {
            if host.is_empty() || !host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                problems.push(format!(
                    "`api.allowed_hosts` has `{host}`; expected a name without scheme, port or wildcard, such as halley.example.com"
                ));
            }
        }
        if self.max_connections < FEWEST_CONNECTIONS {
            problems.push(format!(
                "`api.max_connections` is {}; it must be at least {FEWEST_CONNECTIONS}",
                self.max_connections
            ));
        }
        problems
    }

    /// Valid values that are probably not intended.
    pub fn warnings(&self) -> Vec<String> {
        let Some(host) = self.listen.as_deref().and_then(host_of) else { return Vec::new() };
        if is_loopback(host) || self.tls_certificate.is_some() {
            return Vec::new();
        }
        vec![
            "`api.listen` is reached by other machines without TLS: tokens and messages are readable on the way; set `api.tls_certificate` and `api.tls_key`, or let a mesh encrypt".to_owned(),
        ]
    }

    /// The TCP port of the listener.
    pub fn port(&self) -> Option<u16> {
        self.listen.as_ref()?.rsplit_once(':')?.1.parse().ok()
    }

    /// Resolves relative paths against this directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        let files = [&mut self.token_file, &mut self.tls_certificate, &mut self.tls_key];
        for file in files.into_iter().flatten() {
            *file = base.join(&*file);
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_key() {
        let config = Config { listen: Some("127.0.0.1:9094".into()), ..Config::default() };
        assert_eq!((config.validate(), config.warnings()), (vec![], vec![]));
        let open = Config { listen: Some("0.0.0.0:9094".into()), ..Config::default() };
        assert!(open.validate()[0].contains("`api.token_file` is missing"), "{:?}", open.validate());
        assert!(open.warnings()[0].contains("without TLS"));
        let wrong = Config {
            listen: Some("9094".into()),
            tls_key: Some("key.pem".into()),
            allowed_hosts: vec!["*".into()],
            max_connections: 1,
            ..Config::default()
        };
        let keys = ["listen", "tls_certificate", "allowed_hosts", "max_connections"];
        let problems = wrong.validate();
        assert_eq!(problems.len(), keys.len(), "{problems:#?}");
        for (problem, key) in problems.iter().zip(keys) {
            assert!(problem.starts_with(&format!("`api.{key}`")), "{problem}");
        }
    }
}
