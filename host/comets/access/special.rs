//! Special address blocks, where no comet of another host can be: loopback, link-local, groups.
//!
//! Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::comets::metrics::RefusedReason;

/// The blocks of special addresses (RFC 6890).
impl RefusedReason {
    /// The block of an address; `None` for an ordinary one. An IPv4 address that is embedded in an
    /// IPv6 one counts as the IPv4 address.
    pub(super) fn of_special(ip: IpAddr) -> Option<Self> {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    /// The block that contains the whole network.
    pub(super) fn of_special_net(net: &IpNet) -> Option<Self> {
        let (first, last) = (Self::of_special(net.network()), Self::of_special(net.broadcast()));
        if first == last { first } else { None }
    }

    fn of_v4(ip: Ipv4Addr) -> Option<Self> {
        match ip.octets() {
            // "This network"; 0.0.0.0 is this host for a client on Linux.
            [0, ..] => Some(Self::Unspecified),
            [127, ..] => Some(Self::Loopback),
            [169, 254, ..] => Some(Self::LinkLocal),
            [255, 255, 255, 255] => Some(Self::Broadcast),
            [224..=239, ..] => Some(Self::Multicast),
            _ => None,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Option<Self> {
        // Forms in which translators and tunnels embed an IPv4 address: NAT64 (RFC 6052), 6to4, and
        // the old IPv4-compatible form.
        let [a, b, c, d, e, f, g, h] = ip.segments();
        let v4 =
            |high: u16, low: u16| Self::of_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
        match (a, b) {
            _ if ip.is_loopback() => Some(Self::Loopback),
            _ if ip.is_unspecified() => Some(Self::Unspecified),
            (0xff00..=0xffff, _) => Some(Self::Multicast),
            (0xfe80..=0xfebf, _) => Some(Self::LinkLocal),
            (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => v4(g, h),
            (0x2002, _) => v4(b, c),
            (0, 0) if [c, d, e, f] == [0; 4] => v4(g, h),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ip: &str) -> Option<RefusedReason> {
        RefusedReason::of_special(ip.parse().expect("an IP address"))
    }

    #[test]
    fn special_addresses_are_detected_in_every_form() {
        for ip in [
            "127.0.0.1",
            "127.255.255.255",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ] {
            assert_eq!(of(ip), Some(RefusedReason::Loopback), "{ip}");
        }
        for ip in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "febf::1", "64:ff9b::a9fe:a9fe"] {
            assert_eq!(of(ip), Some(RefusedReason::LinkLocal), "{ip}");
        }
        for ip in ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"] {
            assert_eq!(of(ip), Some(RefusedReason::Unspecified), "{ip}");
        }
        assert_eq!(of("224.0.0.1"), Some(RefusedReason::Multicast));
        assert_eq!(of("ff02::1"), Some(RefusedReason::Multicast));
        assert_eq!(of("255.255.255.255"), Some(RefusedReason::Broadcast));
        for ip in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "2001:db8::1", "64:ff9b::a00:1"] {
            assert_eq!(of(ip), None, "{ip}");
        }
    }

    #[test]
    fn a_network_is_special_if_all_of_it_is() {
        let of = |net: &str| RefusedReason::of_special_net(&net.parse().expect("a network"));
        assert_eq!(of("127.0.0.0/8"), Some(RefusedReason::Loopback));
        assert_eq!(of("169.254.1.0/24"), Some(RefusedReason::LinkLocal));
        assert_eq!(of("fe80::/10"), Some(RefusedReason::LinkLocal));
        assert_eq!((of("0.0.0.0/0"), of("126.0.0.0/7"), of("10.0.0.0/8")), (None, None, None));
    }
}
