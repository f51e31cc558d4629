//! Checks the `Host` header.
//!
//! DNS rebinding leads a browser to this listener through a name that an attacker controls; the page
//! can then read and write as if the gateway were its own origin. The name is sent in `Host`, so
//! names have to be listed. IP addresses cannot be rebound: all of them are accepted, such as a
//! pod's. Pure.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// The accepted names.
#[derive(Debug)]
pub(crate) struct AllowedHosts {
    /// The key of the configuration that lists them.
    key: &'static str,
    names: Vec<String>,
}

/// Why a request is not for this gateway.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrongHost {
    /// The `Host` header is missing.
    #[error("the request has no Host header")]
    Missing,
    /// There is more than one.
    #[error("the request has more than one Host header")]
    Several,
    /// It is not `host` or `host:port`.
    #[error("the Host header of the request is not `host` or `host:port`")]
    Malformed,
    /// The request line names a different host.
    #[error("the request line and the Host header name different hosts")]
    Conflicting,
    /// The name is not listed.
    #[error("unknown host `{host}`; list it in `{key}` if it is this gateway")]
    Unknown {
        /// The name.
        host: String,
        /// The key of the configuration.
        key: &'static str,
    },
}

/// Maximum length of a DNS name; longer ones are cut when shown.
const LONGEST_SHOWN: usize = 253;

impl AllowedHosts {
    /// `localhost` and these names, which this key of the configuration lists.
    pub(crate) fn new<'a>(key: &'static str, names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { key, names: names.into_iter().chain(["localhost"]).map(canonical).collect() }
    }

    /// Checks that a request is for this gateway.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), WrongHost> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().ok_or(WrongHost::Missing)?;
        if hosts.next().is_some() {
            return Err(WrongHost::Several);
        }
        let host = host.to_str().map_err(|_| WrongHost::Malformed)?;
        let authority: Authority = host.parse().map_err(|_| WrongHost::Malformed)?;
        // `Authority` takes a user in front, and whatever follows an IPv6 address; a Host has neither.
        if !is_host_and_port(host, authority.host()) {
            return Err(WrongHost::Malformed);
        }
        if uri.authority().is_some_and(|named| *named != authority) {
            return Err(WrongHost::Conflicting);
        }
        if is_address(authority.host()) || self.names.contains(&canonical(authority.host())) {
            return Ok(());
        }
        let host = authority.host().chars().take(LONGEST_SHOWN).collect();
        Err(WrongHost::Unknown { host, key: self.key })
    }
}

/// Whether the text is this host, and a port or nothing.
fn is_host_and_port(text: &str, host: &str) -> bool {
    // Digits only: `parse` alone takes a sign.
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_closed = host.starts_with('[') == host.ends_with(']');
    !host.is_empty()
        && is_closed
        && text.strip_prefix(host).is_some_and(|rest| match rest.strip_prefix(':') {
            Some(port) => is_port(port),
            None => rest.is_empty(),
        })
}

fn is_address(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.parse::<std::net::Ipv4Addr>().is_ok(),
    }
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "[admin] allowed_hosts";

    fn check(uri: &str, hosts: &[&str]) -> Result<(), WrongHost> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        AllowedHosts::new(KEY, ["Halley.example.com"]).check(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn addresses_and_allowed_names_are_accepted() {
        for host in [
            "127.0.0.1:9093",
            "10.1.2.3",
            "[::1]:9093",
            "[fd00::1]",
            "localhost",
            "LocalHost:9093",
            "localhost.",
            "halley.EXAMPLE.com:80",
        ] {
            assert_eq!(check("/metrics", &[host]), Ok(()), "{host}");
        }
        assert_eq!(check("http://localhost:9093/metrics", &["localhost:9093"]), Ok(()));
    }

    #[test]
    fn other_names_are_rejected_naming_the_key() {
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f000001",
            "2130706433",
            "localhost.evil",
            "x.halley.example.com",
        ] {
            let wrong = check("/", &[host]).unwrap_err();
            assert_eq!(wrong, WrongHost::Unknown { host: host.to_owned(), key: KEY });
            assert!(wrong.to_string().contains("`[admin] allowed_hosts`"));
        }
        let long = "a".repeat(5_000);
        assert!(check("/", &[&long]).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn ambiguous_hosts_are_rejected() {
        assert_eq!(check("/", &[]), Err(WrongHost::Missing));
        assert_eq!(check("/", &["localhost", "localhost"]), Err(WrongHost::Several));
        assert_eq!(check("/", &["localhost", "evil.example"]), Err(WrongHost::Several));
        for host in
            ["", "a b", "evil.example@localhost", "localhost:9093@evil.example", "localhost/evil", ":80"]
        {
            assert_eq!(check("/", &[host]), Err(WrongHost::Malformed), "{host}");
        }
        for host in [
            "[::1]evil.example",
            "[::1]:80evil",
            "[::1]:",
            "[::1]:+80",
            "[::1]:80:80",
            "[::1]]",
            "[::1",
            "localhost:abc",
            "localhost:",
            "localhost:65536",
            "127.0.0.1:9093x",
            "::1",
        ] {
            assert_eq!(check("/", &[host]), Err(WrongHost::Malformed), "{host}");
        }
        assert_eq!(check("http://evil.example/", &["localhost"]), Err(WrongHost::Conflicting));
        assert_eq!(check("http://localhost/", &["localhost:9093"]), Err(WrongHost::Conflicting));
        assert_eq!(
            check("http://evil.example/", &["evil.example"]),
            Err(WrongHost::Unknown { host: "evil.example".into(), key: KEY })
        );
    }
}
