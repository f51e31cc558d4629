//! Where a registry may redirect its clients: to its own site (scheme, host and port), and to the
//! sites that the configuration lists. Pure.

use std::net::IpAddr;

use reqwest::Url;

use crate::mistake::{Mistake, mistake};

/// `[policies.registry]`: where registries may redirect to.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Sites that registries may redirect to, and that may issue their tokens, in addition to the
    /// registries themselves: `host`, `host:port`, or `*.parent` for every host below a name. Token
    /// requests to them carry the registry's credentials.
    pub trusted_hosts: Vec<String>,
}

impl RegistryConfig {
    /// Mistakes in the values, one sentence each.
    pub(crate) fn validate(&self) -> Vec<Mistake> {
        let wrong = |site: &&String| TrustedHost::parse(site).is_none();
        let problem = |site: &String| {
            mistake!(
                "policies.registry.trusted_hosts",
                "has `{site}`; expected host, host:port or *.parent.example"
            )
        };
        self.trusted_hosts.iter().filter(wrong).map(problem).collect()
    }

    /// Whether a registry may redirect to this URL. A URL with a user is refused: a registry must not
    /// choose credentials.
    pub(super) fn allows(&self, registry: &Url, place: &Url) -> bool {
        if !place.username().is_empty() || place.password().is_some() {
            return false;
        }
        if is_same_site(registry, place) {
            return true;
        }
        let is_listed = || {
            self.trusted_hosts
                .iter()
                .filter_map(|site| TrustedHost::parse(site))
                .any(|site| site.covers(place))
        };
        is_secure(place) && is_listed()
    }
}

/// Whether two URLs are the same site, which means that credentials may be sent to both.
pub(super) fn is_same_site(one: &Url, other: &Url) -> bool {
    let site =
        |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
    site(one) == site(other)
}

/// Whether a host is this machine.
pub(super) fn is_loopback_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// TLS, or plain HTTP on this machine.
fn is_secure(place: &Url) -> bool {
    place.scheme() == "https" || place.scheme() == "http" && place.host_str().is_some_and(is_loopback_host)
}

/// One entry of the list.
struct TrustedHost<'a> {
    host: &'a str,
    /// Every host below this one.
    below: bool,
    port: Option<u16>,
}

impl<'a> TrustedHost<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let below = name.strip_prefix("*.");
        let host = below.unwrap_or(name);
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        // Otherwise `*.com` would allow every host below `com`.
        let is_wide = below.is_some() && !host.contains('.');
        let good = !host.is_empty() && !host.starts_with('.') && host.bytes().all(is_host) && !is_wide;
        good.then_some(Self { host, below: below.is_some(), port })
    }

    fn covers(&self, place: &Url) -> bool {
        let Some(host) = place.host_str() else { return false };
        let fits = if self.below {
            let parent = host.len().checked_sub(self.host.len()).filter(|at| *at > 1);
            parent.is_some_and(|at| host[at..].eq_ignore_ascii_case(self.host) && host[..at].ends_with('.'))
        } else {
            host.eq_ignore_ascii_case(self.host)
        };
        let port = place.port_or_known_default();
        fits && match self.port {
            Some(wanted) => port == Some(wanted),
            None => port == Some(443),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn redirects_stay_on_the_registry_and_trusted_hosts() {
        let registry = url("https://registry.example/v2/");
        let config = RegistryConfig {
            trusted_hosts: ["auth.example", "*.blobs.example", "127.0.0.1:7000", "other.example:8443"]
                .map(str::to_owned)
                .into(),
        };
        assert!(config.validate().is_empty());
        for place in [
            "https://registry.example/anything",
            "https://registry.example:443/",
            "https://auth.example/token?x=y",
            "https://eu.blobs.example/",
            "https://a.b.blobs.example/",
            "http://127.0.0.1:7000/token",
            "https://other.example:8443/",
        ] {
            assert!(config.allows(&registry, &url(place)), "{place}");
        }
        for place in [
            "http://registry.example/",
            "https://registry.example:5000/",
            "https://registry.example.evil/",
            "http://auth.example/token",
            "https://auth.example:8443/",
            "https://sub.auth.example/",
            "https://blobs.example/",
            "https://evilblobs.example/",
            "https://registry.example@evil.example/",
            "https://user:password@registry.example/",
            "https://user@auth.example/token",
            "http://127.0.0.1:7001/",
            "http://169.254.169.254/",
            "https://other.example/",
            "file:///etc/passwd",
        ] {
            assert!(!config.allows(&registry, &url(place)), "{place}");
        }
    }

    #[test]
    fn entries_of_the_list_are_hosts() {
        for wrong in
            ["", "https://a.example", "a.example/path", "*", "*.", "*.com", "a.example:x", "a b", ".x"]
        {
            let config = RegistryConfig { trusted_hosts: vec![wrong.to_owned()] };
            assert_eq!(config.validate().len(), 1, "{wrong}");
        }
    }

    #[test]
    fn plain_http_is_allowed_on_loopback_only() {
        for near in ["localhost", "127.0.0.1", "[::1]"] {
            assert!(is_loopback_host(near), "{near}");
        }
        for far in ["registry.example", "10.0.0.1", "localhost.example", "127.0.0.1.example"] {
            assert!(!is_loopback_host(far), "{far}");
        }
    }
}
