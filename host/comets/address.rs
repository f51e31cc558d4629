//! What counts as a comet's address. Addresses come from Redis and from plugins, so that
//! anything may stand in them.
//!
//! Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::message::CometAddr;

/// A DNS name has at most 253 characters; what is longer is no address.
const MAX_LENGTH: usize = 280;

/// A checked address: a host, and a port that is not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

/// A text that is no address. Shows the text, cut and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host:port address")]
pub(super) struct NotAnAddress(String);

impl Address {
    /// Reads `host:port`, `http://host:port` or `[IPv6]:port`.
    pub(super) fn parse(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.chars().take(80).collect());
        if text.len() > MAX_LENGTH {
            return Err(wrong());
        }
        let plain = text.strip_prefix("http://").unwrap_or(text);
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        let (host, port) = plain.rsplit_once(':').ok_or_else(wrong)?;
        let is_digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port != 0 && is_digits).ok_or_else(wrong)?;
        if !is_host(host) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The DNS name and the port to look it up with; `None` when the host is an IP address.
    pub(super) fn name(&self) -> Option<(&str, u16)> {
        let is_ip = self.host.starts_with('[') || self.host.parse::<IpAddr>().is_ok();
        (!is_ip).then_some((&self.host, self.port))
    }

    /// The address as `host:port`: what the comet is known by.
    pub(super) fn canonical(&self) -> CometAddr {
        self.to_string().into()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Underscores are in no DNS name, but in those that Docker Compose makes up.
fn is_host(host: &str) -> bool {
    if let Some(ip) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return ip.parse::<Ipv6Addr>().is_ok();
    }
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !host.is_empty() && host.bytes().all(is_name_byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_in_their_common_forms() {
        let canonical = |text: &str| Address::parse(text).map(|address| address.to_string());
        for text in ["localhost:50051", "10.0.0.1:1", "[::1]:50051", "comet_1:80", "a.b-c.example:65535"] {
            assert_eq!(canonical(text), Ok(text.to_owned()));
            assert_eq!(canonical(&format!("http://{text}")), Ok(text.to_owned()));
        }
    }

    #[test]
    fn only_names_are_looked_up() {
        let name = |text| Address::parse(text).expect("an address").name().map(|(name, _)| name.to_owned());
        assert_eq!(name("comet-1:1"), Some("comet-1".into()));
        assert_eq!((name("10.0.0.1:1"), name("[::1]:1")), (None, None));
    }

    #[test]
    fn what_is_no_address_is_said_so() {
        let wrong = [
            "",
            ":",
            "comet",
            "comet:",
            ":50051",
            "comet:0",
            "comet:65536",
            "comet:+80",
            "::1:50051",
            "[::1:1",
            "https://comet:1",
            "a b:1",
            "user@host:1",
            "host/path:1",
            "host:1/x",
            "[nonsense]:1",
            "h\u{f6}st:1",
        ];
        for text in wrong {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
        let error = Address::parse("comet\n").expect_err("no address").to_string();
        assert_eq!(error, r#""comet\n" is not a host:port address"#);
    }

    proptest! {
        #[test]
        fn whatever_is_an_address_is_a_uri(text in "(http://)?[\\[\\]a-zA-Z0-9:._/@ -]{0,20}(:[0-9]{1,6})?") {
            if let Ok(address) = Address::parse(&text) {
                let uri: http::Uri = format!("http://{address}").parse().expect("a URI");
                prop_assert_eq!(uri.authority().map(|a| a.as_str().to_owned()), Some(address.to_string()));
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }
    }
}
