//! Addresses of listeners, `host:port`. Pure.

use std::net::{IpAddr, Ipv4Addr};

use crate::mistake::{Mistake, mistake};

/// The host in `host:port`; `None` for any other form.
pub(crate) fn host_of(listen: &str) -> Option<&str> {
    let (host, port) = listen.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|_| !host.is_empty())?;
    Some(host)
}

/// Its port.
pub(crate) fn port_of(listen: &str) -> Option<u16> {
    listen.rsplit_once(':')?.1.parse().ok()
}

/// Its IP address. Any other name stands for itself.
fn ip_of(host: &str) -> Option<IpAddr> {
    match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        _ => host.trim_start_matches('[').trim_end_matches(']').parse().ok(),
    }
}

/// Whether this host of a listener is reached from this machine only.
pub(super) fn is_loopback(host: &str) -> bool {
    ip_of(host).is_some_and(|ip| ip.is_loopback())
}

/// Listeners, by key and address, of which only one could be bound.
pub(super) fn overlaps(listeners: &[(&str, &str)]) -> Vec<Mistake> {
    let mut problems = Vec::new();
    for (at, (key, listen)) in listeners.iter().enumerate() {
        for (other, taken) in listeners[..at].iter().filter(|(_, taken)| overlap(listen, taken)) {
            let text =
                format!("is `{listen}`, which `{other}` (`{taken}`) takes already; give it another port");
            problems.push(mistake!("{key}", "{text}").and(other));
        }
    }
    problems
}

/// Whether two addresses have a port in common on some interface. Port 0 is a free one each time.
fn overlap(one: &str, other: &str) -> bool {
    let (Some(a), Some(b)) = (host_of(one), host_of(other)) else { return false };
    // `[::]` takes IPv4 as well, unless `net.ipv6.bindv6only` is set.
    let covers = |all: &str, host: &str| match ip_of(all) {
        Some(IpAddr::V6(ip)) => ip.is_unspecified(),
        Some(IpAddr::V4(ip)) => ip.is_unspecified() && !ip_of(host).is_some_and(|ip| ip.is_ipv6()),
        None => false,
    };
    let is_same = || ip_of(a).map_or(a == b, |ip| ip_of(b) == Some(ip));
    port_of(one) == port_of(other) && port_of(one) != Some(0) && (is_same() || covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_overlap_on_a_port_and_an_interface() {
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "localhost:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "gateway.local:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::]:1", "0.0.0.0:1"),
            ("[::]:1", "[::1]:1"),
            ("gateway.local:1", "gateway.local:1"),
        ] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:0", "0.0.0.0:0"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("9093", "9093"),
        ] {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
        let named = overlaps(&[("admin.listen", "0.0.0.0:1"), ("api.listen", "127.0.0.1:1")]);
        let text = "`api.listen` is `127.0.0.1:1`, which `admin.listen` (`0.0.0.0:1`) takes already; give it another port";
        assert_eq!(named, [Mistake::about("api.listen", text).and("admin.listen")]);
    }
}
