//! The peer of a connection, as the kernel reports it. `X-Forwarded-For` and similar headers are
//! ignored.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// The peer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over the Unix socket, with the uid from `SO_PEERCRED`.
    Unix(Option<u32>),
}

/// The unit that limits apply to: one IPv4 address, one IPv6 /64 network (a host owns all addresses
/// of one), or one local user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerKey {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The network of an IPv6 address.
    V6([u16; 4]),
    /// A user.
    User(Option<u32>),
}

impl Peer {
    /// The unit that limits count this peer as.
    pub(crate) fn key(self) -> PeerKey {
        match self {
            Self::Tcp(address) => match address.ip().to_canonical() {
                IpAddr::V4(ip) => PeerKey::V4(ip),
                IpAddr::V6(ip) => {
                    let [a, b, c, d, ..] = ip.segments();
                    PeerKey::V6([a, b, c, d])
                }
            },
            Self::Unix(user) => PeerKey::User(user),
        }
    }

    /// Whether the kernel identifies the peer as root or the gateway's own user, who control the
    /// process anyway.
    pub(crate) fn is_operator(self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(None) => false,
            Self::Unix(Some(user)) => user == 0 || user == current_uid(),
        }
    }
}

/// The names in the certificate of a client, if the listener verified one; for logs. An extension of every
/// request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientName(Option<Arc<str>>);

impl ClientName {
    /// Of a listener that wants no certificates.
    pub(crate) const NONE: Self = Self(None);

    /// Of a certificate that was verified.
    pub(crate) fn of_certificate(names: String) -> Self {
        Self(Some(names.into()))
    }

    /// The names, if there is a certificate.
    pub(crate) fn as_deref(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// The effective uid of this process.
pub(crate) fn current_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(Some(user)) => write!(f, "uid {user}"),
            Self::Unix(None) => f.write_str("a process without credentials"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_host_count_as_one() {
        let key = |address: &str| Peer::Tcp(address.parse().unwrap()).key();
        assert_eq!(key("10.0.0.1:1"), key("10.0.0.1:2"));
        assert_eq!(key("10.0.0.1:1"), key("[::ffff:10.0.0.1]:1"));
        assert_ne!(key("10.0.0.1:1"), key("10.0.0.2:1"));
        assert_eq!(key("[2001:db8:1:2::3]:1"), key("[2001:db8:1:2:ffff::4]:1"));
        assert_ne!(key("[2001:db8:1:2::3]:1"), key("[2001:db8:1:3::3]:1"));
    }

    #[test]
    fn only_peer_credentials_identify_operators() {
        assert!(Peer::Unix(Some(0)).is_operator() && Peer::Unix(Some(current_uid())).is_operator());
        assert!(!Peer::Unix(Some(current_uid() + 1)).is_operator() && !Peer::Unix(None).is_operator());
        assert!(!Peer::Tcp("127.0.0.1:1".parse().unwrap()).is_operator());
    }
}
