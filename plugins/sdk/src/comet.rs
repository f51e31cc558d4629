//! Comet addresses in the gateway's spelling.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Normalizes an address to the one spelling that policies see and the gateway compares.
///
/// Addresses that policies receive are normalized already, and the gateway normalizes their answers.
/// Normalize addresses from a policy's own configuration before you compare them:
///
/// ```
/// use halley_plugin::canonical_comet;
///
/// assert_eq!(canonical_comet("http://Comet-1.Example.:50051/"), "comet-1.example:50051");
/// assert_eq!(canonical_comet("localhost:50051"), "127.0.0.1:50051");
/// assert_eq!(canonical_comet("[::ffff:10.0.0.7]:050051"), "10.0.0.7:50051");
/// ```
///
/// The scheme is removed, the host is in lower case without a trailing dot, the port has no leading
/// zeros, `localhost` is `127.0.0.1`, and an IPv6 address has its shortest form. A text that is not
/// an address, such as a server name, is returned unchanged.
pub fn canonical_comet(address: &str) -> String {
    canonical(address).unwrap_or_else(|| address.to_owned())
}

fn canonical(address: &str) -> Option<String> {
    let plain = match address.split_once("://") {
        Some((scheme, rest)) => {
            ["http", "grpc"].iter().any(|s| scheme.eq_ignore_ascii_case(s)).then_some(rest)?
        }
        None => address,
    };
    let (host, port) = plain.strip_suffix('/').unwrap_or(plain).rsplit_once(':')?;
    let is_number = port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|port| is_number && *port != 0)?;
    if let Some(ip) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let ip: Ipv6Addr = ip.parse().ok()?;
        return Some(
            ip.to_ipv4_mapped().map_or_else(|| format!("[{ip}]:{port}"), |ip| format!("{ip}:{port}")),
        );
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.is_empty() || !host.bytes().all(is_name) {
        return None;
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        return Some(format!("{}:{port}", ipv4(&host)?));
    }
    let host = if host == "localhost" { "127.0.0.1" } else { &host };
    Some(format!("{host}:{port}"))
}

/// Some parsers read a number with a leading zero as octal: it is accepted only if both readings
/// agree.
fn ipv4(host: &str) -> Option<Ipv4Addr> {
    let octet = |part: &str| {
        let is_padded = part.len() > 1 && part.starts_with('0');
        part.parse::<u8>().ok().filter(|octet| part.len() <= 3 && (!is_padded || *octet < 8))
    };
    let octets: Vec<u8> = host.split('.').map(octet).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_address_stays() {
        for text in ["comet-1", "", "https://a:1", "127.1:1", "010.0.0.1:1", "a:0", "host:1/x", "[x]:1"] {
            assert_eq!(canonical_comet(text), text);
        }
        assert_eq!(canonical_comet("10.000.0.07:1"), "10.0.0.7:1");
    }
}
