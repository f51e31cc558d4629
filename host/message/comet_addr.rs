//! Comet addresses, and their canonical form, which all modules compare.
//!
//! Addresses come from Redis, producers, plugins and configuration, so they may contain anything,
//! and one comet may be written in several ways. A [`CometAddr`] is canonical from the start: two
//! spellings of one comet are equal, so other modules group, look up and compare by equality.
//!
//! The canonical form is `host:port`, without a scheme (`http://` and `grpc://` are dropped; `https://`
//! stays, since such a comet speaks TLS), the host in lower case and without a trailing dot, the port
//! without leading zeros. An IPv4-mapped IPv6 address becomes the IPv4 address; an IPv6 address has its
//! shortest form (RFC 5952).
//! `localhost` becomes `127.0.0.1`: RFC 6761 reserves the name for loopback. There is no default
//! port: a text without one is a server name, which `[comets] addresses` may map.
//!
//! Pure.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A DNS name has at most 253 characters; a longer text is not an address.
const MAX_LENGTH: usize = 280;

/// A comet's gRPC address in its canonical form, such as `10.0.0.7:50051`; or, unchanged, a text
/// that is not an address, such as a server name.
#[derive(
    Clone, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display, derive_more::Debug, serde::Serialize,
)]
#[debug("{_0:?}")]
pub struct CometAddr(Arc<str>);

impl CometAddr {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the empty string.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same without `https://`, where all comets speak TLS.
    #[must_use]
    pub fn without_https(self) -> Self {
        match self.0.strip_prefix(HTTPS) {
            Some(rest) => Self(rest.into()),
            None => self,
        }
    }

    /// Host and port.
    ///
    /// # Errors
    /// When it is not an address.
    pub fn address(&self) -> Result<Address<'_>, InvalidAddress> {
        Address::parse(&self.0)
    }
}

impl<T: AsRef<str> + Into<Arc<str>>> From<T> for CometAddr {
    /// Converts the text to canonical form. Allocates once in any case.
    fn from(text: T) -> Self {
        match Address::parse(text.as_ref()) {
            Ok(address) if !address.is_canonical(text.as_ref()) => Self(address.to_string().into()),
            _ => Self(text.into()),
        }
    }
}

impl AsRef<str> for CometAddr {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A checked address: a host in its canonical form, and a port that is not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    host: Cow<'a, str>,
    is_ip: bool,
    port: u16,
    is_https: bool,
}

/// A text that is not an address, truncated and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host:port address")]
pub struct InvalidAddress(String);

impl<'a> Address<'a> {
    /// Parses `host:port` or `[IPv6]:port`, with or without `http://`, `https://` or `grpc://`.
    ///
    /// # Errors
    /// When the text is anything else, or an IPv4 address with ambiguous leading zeros.
    pub fn parse(text: &'a str) -> Result<Self, InvalidAddress> {
        let wrong = || InvalidAddress(text.chars().take(80).collect());
        if text.len() > MAX_LENGTH {
            return Err(wrong());
        }
        let (plain, is_https) = without_scheme(text);
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        let (host, port) = plain.rsplit_once(':').ok_or_else(wrong)?;
        let is_digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port != 0 && is_digits).ok_or_else(wrong)?;
        let (host, is_ip) = canonical_host(host).ok_or_else(wrong)?;
        Ok(Self { host, is_ip, port, is_https })
    }

    /// The DNS name to resolve and the port; `None` if the host is an IP address.
    pub fn name(&self) -> Option<(&str, u16)> {
        (!self.is_ip).then_some((&*self.host, self.port))
    }

    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// The IP address; `None` if the host is a name.
    pub fn ip(&self) -> Option<IpAddr> {
        if self.is_ip { self.host().parse().ok() } else { None }
    }

    /// The port, which is not 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it was written with `https://`: the comet speaks TLS.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Host and port, as a URI's authority.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether this text, from which it was parsed, is canonical.
    fn is_canonical(&self, text: &str) -> bool {
        // A changed host is owned. So only the text around it can differ.
        let digits = self.port.ilog10() as usize + 1;
        let scheme = if self.is_https { HTTPS.len() } else { 0 };
        let is_lower = !self.is_https || text.starts_with(HTTPS);
        matches!(self.host, Cow::Borrowed(_))
            && is_lower
            && text.len() == scheme + self.host.len() + 1 + digits
    }
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { HTTPS } else { "" };
        write!(f, "{scheme}{}:{}", self.host, self.port)
    }
}

/// How addresses of comets begin that speak TLS.
const HTTPS: &str = "https://";

/// The text without a scheme that is known, and whether that is `https`.
fn without_scheme(text: &str) -> (&str, bool) {
    let Some((scheme, rest)) = text.split_once("://") else { return (text, false) };
    let is = |known: &str| scheme.eq_ignore_ascii_case(known);
    match is("http") || is("grpc") || is("https") {
        true => (rest, is("https")),
        false => (text, false),
    }
}

/// The host in its canonical form, and whether it is an IP address.
fn canonical_host(host: &str) -> Option<(Cow<'_, str>, bool)> {
    if let Some(ip) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let ip: Ipv6Addr = ip.parse().ok()?;
        let canonical = match ip.to_ipv4_mapped() {
            Some(ip) => ip.to_string(),
            None => format!("[{ip}]"),
        };
        return Some((unless_equal(canonical, host), true));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    // Underscores are not valid in DNS names, but Docker Compose generates them.
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.split('.').any(str::is_empty) || !name.bytes().all(is_name_byte) {
        return None;
    }
    if is_numeric(name) {
        return Some((unless_equal(ipv4(name)?.to_string(), host), true));
    }
    if name.eq_ignore_ascii_case("localhost") {
        return Some((Cow::Owned("127.0.0.1".to_owned()), true));
    }
    let is_lower = !name.bytes().any(|b| b.is_ascii_uppercase());
    let name = if is_lower { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) };
    Some((name, false))
}

fn unless_equal(canonical: String, written: &str) -> Cow<'_, str> {
    if canonical == written { Cow::Borrowed(written) } else { Cow::Owned(canonical) }
}

/// Whether resolvers treat it as an IPv4 address: they do if its last label is a number.
fn is_numeric(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_hex = hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    is_hex || (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

/// Four decimal numbers. Some programs parse a number with a leading zero as octal, others as
/// decimal; it is accepted only if both agree.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty() && part.len() <= 3)?;
        let is_padded = part.len() > 1 && part.starts_with('0');
        *octet = part.parse().ok().filter(|octet| !is_padded || *octet < 8)?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        assert!(Address::parse(text).is_ok(), "{text:?}");
        CometAddr::from(text).to_string()
    }

    #[test]
    fn every_spelling_of_a_comet_is_one_address() {
        let spellings: [(&str, &[&str]); 5] = [
            ("127.0.0.1:50051", &["localhost:50051", "LocalHost.:050051", "[::ffff:127.0.0.1]:50051"]),
            ("10.0.0.7:1", &["10.000.000.007:1", "10.0.0.007:01", "[0:0::ffff:a00:7]:1", "10.0.0.7.:1"]),
            ("[::1]:80", &["[0:0:0:0:0:0:0:1]:80", "[::0001]:0080"]),
            ("[fd00::a]:80", &["[FD00:0::A]:80"]),
            ("comet_1.example:65535", &["Comet_1.EXAMPLE:65535", "comet_1.example.:65535"]),
        ];
        for (expected, spellings) in spellings {
            for text in spellings {
                assert_eq!(canonical(text), expected);
                for scheme in ["http://", "HTTP://", "grpc://"] {
                    assert_eq!(canonical(&format!("{scheme}{text}/")), expected);
                }
            }
            assert_eq!(canonical(expected), expected);
        }
    }

    #[test]
    fn a_comet_that_speaks_tls_keeps_its_scheme() {
        for text in ["https://Comet:01", "HTTPS://comet.:1/", "https://comet:1"] {
            assert_eq!(canonical(text), "https://comet:1");
        }
        let address = Address::parse("https://[::1]:1").expect("an address");
        assert_eq!(
            (address.is_https(), address.authority().as_str(), address.host()),
            (true, "[::1]:1", "::1")
        );
        assert_ne!(CometAddr::from("https://comet:1"), CometAddr::from("comet:1"));
    }

    #[test]
    fn only_names_are_resolved() {
        let name = |text| Address::parse(text).expect("an address").name().map(|(name, _)| name.to_owned());
        assert_eq!(name("Comet-1:1"), Some("comet-1".into()));
        assert_eq!((name("10.0.0.1:1"), name("[::1]:1"), name("localhost:1")), (None, None, None));
    }

    #[test]
    fn an_invalid_address_is_reported_and_kept_unchanged() {
        let wrong = [
            "",
            ":",
            "comet",
            "Comet-1",
            "comet:",
            ":50051",
            ".:50051",
            "comet..:50051",
            "comet..example:50051",
            "comet:0",
            "comet:65536",
            "comet:+80",
            "::1:50051",
            "[::1:1",
            "ftp://comet:1",
            "http://http://comet:1",
            "a b:1",
            "user@host:1",
            "host/path:1",
            "host:1/x",
            "[nonsense]:1",
            "h\u{f6}st:1",
            // Texts that resolvers treat as IPv4 addresses, in different ways.
            "127.1:1",
            "2130706433:1",
            "0x7f000001:1",
            "127.0.0.0x1:1",
            "10.0.0.010:1",
            "010.0.0.1:1",
            "10.0.0.256:1",
            "1.2.3.4.5:1",
        ];
        for text in wrong {
            assert!(Address::parse(text).is_err(), "{text:?}");
            assert_eq!(CometAddr::from(text).as_str(), text);
        }
        let error = Address::parse("comet\n").expect_err("no address").to_string();
        assert_eq!(error, r#""comet\n" is not a host:port address"#);
    }

    proptest! {
        #[test]
        fn every_address_is_a_uri_and_canonical(
            text in "((http|grpc|HTTP|https|Https)://)?[\\[\\]a-zA-Z0-9:._/@ -]{0,20}(:[0-9]{1,6})?"
        ) {
            let addr = CometAddr::from(text.as_str());
            prop_assert_eq!(&CometAddr::from(addr.as_str()), &addr);
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(addr.as_str(), address.to_string());
                let uri: http::Uri = format!("http://{}", address.authority()).parse().expect("a URI");
                prop_assert_eq!(uri.authority().map(|a| a.as_str().to_owned()), Some(address.authority()));
                let again = address.to_string();
                prop_assert_eq!(Address::parse(&again), Ok(address));
            } else {
                prop_assert_eq!(addr.as_str(), text);
            }
        }
    }
}
