//! `[comets] allow`: the addresses that the directory, records and plugins may name.
//!
//! An entry is a host, optionally with a port or a range of ports:
//!
//! ```text
//! 10.0.0.0/8            every port of these addresses
//! 10.1.2.3:3109         one port
//! [fd00::/8]:3100-3109  an IPv6 address is in brackets if a port follows
//! comet-*.internal:3109 a name; `*` matches any characters except a dot
//! ```
//!
//! Pure: names are resolved elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use regex::Regex;

use crate::comets::metrics::RefusedReason;

/// The mistake in an entry: the second half of a sentence that begins with it.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("has an opening bracket but no closing one")]
    OpenBracket,
    #[error("has something other than `:port` after its bracket")]
    AfterBracket,
    #[error("has the port `{0}`; write a number such as 3109, or a range such as 3100-3109")]
    Port(String),
    #[error("has `{0}`, which is not a network")]
    NotANetwork(String),
    #[error("has bits behind its prefix; write {0}")]
    HostBits(IpNet),
    #[error("is not a host name, an IP address or a network")]
    NotAHost,
    #[error("looks like an IP address but is not one; write four decimal numbers")]
    AlmostAnAddress,
    #[error("is a name for loopback; write 127.0.0.1")]
    Localhost,
}

/// The parsed list.
#[derive(Clone, Debug, Default)]
pub(in crate::comets) struct AllowList(Vec<AllowEntry>);

#[derive(Clone, Debug)]
struct AllowEntry {
    hosts: HostPattern,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug)]
enum HostPattern {
    Net(IpNet),
    /// A pattern in lower case.
    Name(Regex),
}

impl AllowList {
    /// Parses the entries.
    ///
    /// # Errors
    /// One sentence per invalid entry.
    pub(in crate::comets) fn parse(entries: &[String]) -> Result<Self, Vec<String>> {
        let (mut good, mut wrong) = (Vec::new(), Vec::new());
        for text in entries {
            match AllowEntry::parse(text.trim()) {
                Ok(entry) => good.push(entry),
                Err(why) => wrong.push(format!("{text:?} {why}")),
            }
        }
        if wrong.is_empty() { Ok(Self(good)) } else { Err(wrong) }
    }

    /// Whether an entry matches this address. Loopback, link-local and other special addresses are
    /// matched only by entries within their block: `0.0.0.0/0` does not match 127.0.0.1, but
    /// `127.0.0.0/8` does.
    pub(super) fn has_address(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let special = RefusedReason::of_special(ip);
        self.0.iter().any(|entry| match &entry.hosts {
            HostPattern::Net(net) => {
                let is_meant = special.is_none() || RefusedReason::of_special_net(net) == special;
                net.contains(&ip) && is_meant && entry.ports.contains(&address.port())
            }
            HostPattern::Name(_) => false,
        })
    }

    /// Whether an entry matches this lower-case host name with this port.
    pub(super) fn has_name(&self, name: &str, port: u16) -> bool {
        self.0.iter().any(|entry| match &entry.hosts {
            HostPattern::Name(pattern) => entry.ports.contains(&port) && pattern.is_match(name),
            HostPattern::Net(_) => false,
        })
    }
}

impl AllowEntry {
    fn parse(text: &str) -> Result<Self, EntryError> {
        let (host, ports) = split(text)?;
        let ports = ports.map_or(Ok(1..=u16::MAX), ports_of)?;
        Ok(Self { hosts: HostPattern::parse(host)?, ports })
    }
}

impl HostPattern {
    fn parse(host: &str) -> Result<Self, EntryError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Self::Net(ip.to_canonical().into()));
        }
        if host.contains('/') {
            let net: IpNet = host.parse().map_err(|_| EntryError::NotANetwork(host.to_owned()))?;
            if net.trunc() != net {
                return Err(EntryError::HostBits(net.trunc()));
            }
            return Ok(Self::Net(net));
        }
        let pattern = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
        if pattern.is_empty() || !pattern.bytes().all(is_name) {
            return Err(EntryError::NotAHost);
        }
        // Resolvers treat a name whose last label is a number as an IPv4 address.
        let last = pattern.rsplit('.').next().unwrap_or(&pattern);
        if last.starts_with("0x") || last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(EntryError::AlmostAnAddress);
        }
        if pattern == "localhost" {
            return Err(EntryError::Localhost);
        }
        name_pattern(&pattern).map(Self::Name)
    }
}

/// The host without brackets, and the text of the ports.
fn split(text: &str) -> Result<(&str, Option<&str>), EntryError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(EntryError::OpenBracket)?;
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((host, Some(ports))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(EntryError::AfterBracket),
        };
    }
    match text.split_once(':') {
        // An IPv6 address or network.
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((host, ports)) => Ok((host, Some(ports))),
        None => Ok((text, None)),
    }
}

fn ports_of(text: &str) -> Result<RangeInclusive<u16>, EntryError> {
    let wrong = || EntryError::Port(text.to_owned());
    let port = |text: &str| {
        let is_digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| is_digits && *port > 0).ok_or_else(wrong)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last { Err(wrong()) } else { Ok(first..=last) }
}

/// A pattern in which `*` matches any characters except a dot.
fn name_pattern(pattern: &str) -> Result<Regex, EntryError> {
    let labels = regex::escape(pattern).replace(r"\*", "[^.]*");
    Regex::new(&format!("^{labels}$")).map_err(|_| EntryError::NotAHost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> AllowList {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        AllowList::parse(&entries).unwrap_or_else(|wrong| panic!("{wrong:?}"))
    }

    fn has(entries: &[&str], address: &str) -> bool {
        list(entries).has_address(address.parse().expect("a socket address"))
    }

    #[test]
    fn networks_addresses_and_ports_are_matched() {
        for (entry, inside, outside) in [
            ("10.0.0.0/8", &["10.1.2.3:1", "[::ffff:10.1.2.3]:1"][..], &["11.0.0.1:1"][..]),
            ("10.0.0.0/8:3109", &["10.1.2.3:3109"], &["10.1.2.3:3110"]),
            ("10.1.2.3:3100-3109", &["10.1.2.3:3100", "10.1.2.3:3109"], &["10.1.2.3:3099", "10.1.2.4:3100"]),
            ("[fd00::/8]:3109", &["[fd12::1]:3109"], &["[fd12::1]:1", "[fe00::1]:3109"]),
            ("fd00::/8", &["[fd12::1]:7"], &["[2001:db8::1]:7"]),
            ("[::ffff:10.0.0.1]", &["10.0.0.1:9"], &["10.0.0.2:9"]),
        ] {
            assert!(inside.iter().all(|address| has(&[entry], address)), "{entry}");
            assert!(!outside.iter().any(|address| has(&[entry], address)), "{entry}");
        }
    }

    #[test]
    fn special_addresses_need_an_entry_in_their_block() {
        for (entry, address, expected) in [
            ("0.0.0.0/0", "127.0.0.1:1", false),
            ("0.0.0.0/0", "169.254.169.254:80", false),
            ("::/0", "[::1]:1", false),
            ("::/0", "[fe80::1]:1", false),
            ("0.0.0.0/0", "8.8.8.8:1", true),
            ("127.0.0.0/8", "127.0.0.1:1", true),
            ("127.0.0.1", "127.0.0.1:1", true),
            ("127.0.0.1:50051", "127.0.0.1:50052", false),
            ("127.0.0.0/8", "[::ffff:127.0.0.1]:1", true),
            ("169.254.0.0/16", "169.254.169.254:80", true),
            ("::1", "[::1]:1", true),
            ("fe80::/10", "[fe80::1]:1", true),
        ] {
            assert_eq!(has(&[entry], address), expected, "{entry} {address}");
        }
    }

    #[test]
    fn names_are_matched_label_by_label() {
        for (entry, name, expected) in [
            ("comet-*.internal", "comet-1.internal", true),
            ("Comet-*.Internal.", "comet-.internal", true),
            ("comet-*.internal", "comet-1.evil.internal", false),
            ("comet-*.internal", "comet-1.internal.evil", false),
            ("*.internal", "internal", false),
            ("a*b*c", "axxbyybzzc", true),
            ("a*b*c", "axxbyybzzcd", false),
            ("*", "comet", true),
            ("*", "comet.internal", false),
            ("comet:7", "comet", false),
        ] {
            assert_eq!(list(&[entry]).has_name(name, 1), expected, "{entry} {name}");
        }
        assert!(list(&["comet:7"]).has_name("comet", 7));
    }

    #[test]
    fn mistakes_name_their_entry() {
        for (entry, said) in [
            ("", "is not a host name"),
            ("a b", "is not a host name"),
            ("http://a:1", "not a network"),
            ("10.0.0.1/8", "write 10.0.0.0/8"),
            ("10.0.0.0/33", "not a network"),
            ("127.1", "looks like an IP address"),
            ("0x7f000001", "looks like an IP address"),
            ("010.0.0.1", "looks like an IP address"),
            ("localhost:1", "write 127.0.0.1"),
            ("a:0", "has the port"),
            ("a:1-", "has the port"),
            ("a:2-1", "has the port"),
            ("a:+1", "has the port"),
            ("[::1", "but no closing one"),
            ("[::1]1", "after its bracket"),
            ("fe80::1%eth0", "is not a host name"),
        ] {
            let wrong = AllowList::parse(&[entry.to_owned(), "10.0.0.1".to_owned()]).expect_err(entry);
            assert!(wrong.len() == 1 && wrong[0].contains(said), "{wrong:?}");
            assert!(wrong[0].starts_with(&format!("{entry:?}")), "{wrong:?}");
        }
    }
}
