//! Which `Host` a request may be for.
//!
//! A browser can be led to this listener by a name that somebody else made resolve to its address
//! (DNS rebinding); the page then reads and writes as if the gateway were its own. The name stands in
//! `Host`, so names have to be known. IP addresses cannot be rebound: every one is taken, such as the
//! address of a pod. Pure.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

/// The names that are taken.
#[derive(Debug, Default)]
pub(super) struct Hosts(Vec<String>);

/// Why a request is not for this gateway.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WrongHost {
    /// There is no `Host`.
    #[error("the request has no Host header")]
    Missing,
    /// There are two or more.
    #[error("the request has more than one Host header")]
    Several,
    /// It is not `host` or `host:port`.
    #[error("the Host header of the request is not `host` or `host:port`")]
    Malformed,
    /// The request line names another one.
    #[error("the request line and the Host header name different hosts")]
    Contradicting,
    /// A name that is not known.
    #[error("the host `{0}` is not known to be this gateway; list it in `[admin] hosts` if it is")]
    Unknown(String),
}

/// A name is at most this long; what is longer is cut where it is shown.
const LONGEST_SHOWN: usize = 253;

impl Hosts {
    /// `localhost` and these names.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().chain(["localhost"]).map(canonical).collect())
    }

    /// Whether a request is for this gateway.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), WrongHost> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().ok_or(WrongHost::Missing)?;
        if hosts.next().is_some() {
            return Err(WrongHost::Several);
        }
        let host = host.to_str().map_err(|_| WrongHost::Malformed)?;
        let authority: Authority = host.parse().map_err(|_| WrongHost::Malformed)?;
        // An authority may have a user in front; a Host may not.
        if host.contains('@') || authority.host().is_empty() {
            return Err(WrongHost::Malformed);
        }
        if uri.authority().is_some_and(|named| *named != authority) {
            return Err(WrongHost::Contradicting);
        }
        if is_address(authority.host()) || self.0.contains(&canonical(authority.host())) {
            return Ok(());
        }
        Err(WrongHost::Unknown(authority.host().chars().take(LONGEST_SHOWN).collect()))
    }
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

    fn check(uri: &str, hosts: &[&str]) -> Result<(), WrongHost> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        Hosts::new(["Halley.example.com"]).check(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn addresses_and_known_names_are_taken() {
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
    fn other_names_are_not_and_the_text_names_the_key() {
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
            assert_eq!(wrong, WrongHost::Unknown(host.to_owned()));
            assert!(wrong.to_string().contains("`[admin] hosts`"));
        }
        let long = "a".repeat(5_000);
        assert!(check("/", &[&long]).unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_taken() {
        assert_eq!(check("/", &[]), Err(WrongHost::Missing));
        assert_eq!(check("/", &["localhost", "localhost"]), Err(WrongHost::Several));
        assert_eq!(check("/", &["localhost", "evil.example"]), Err(WrongHost::Several));
        for host in
            ["", "a b", "evil.example@localhost", "localhost:9093@evil.example", "localhost/evil", ":80"]
        {
            assert_eq!(check("/", &[host]), Err(WrongHost::Malformed), "{host}");
        }
        assert_eq!(check("http://evil.example/", &["localhost"]), Err(WrongHost::Contradicting));
        assert_eq!(check("http://localhost/", &["localhost:9093"]), Err(WrongHost::Contradicting));
        assert_eq!(
            check("http://evil.example/", &["evil.example"]),
            Err(WrongHost::Unknown("evil.example".into()))
        );
    }
}
