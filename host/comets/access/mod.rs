//! Decides which addresses may be connected to: a producer of records, the directory or a plugin
//! must not be able to make the gateway connect to arbitrary hosts.
//!
//! The source of a comet decides. Comets from the configuration, its DNS names and discovery are
//! always dialled. Addresses in the directory have to match `[comets] allow` if that is set;
//! without it, the directory may name any address except link-local, multicast, broadcast and
//! unspecified ones. Addresses from records and trusted plugins have to match as well; without
//! `allow` they also must not be loopback, unless one of the gateway's own comets has that address.
//! Other plugins may name only known comets, which `fleet` enforces.
//!
//! Names are checked by their addresses: each resolved address, right before it is dialled, without
//! resolving again. See [`DialGate`].
//!
//! # Layout
//! - `allow`: the list. `special`: loopback and similar blocks. `gate`: the check at the channel.

mod allow;
mod gate;
mod special;

use std::net::SocketAddr;
use std::time::Instant;

use tracing::warn;

use super::metrics::{RefusedMetrics, RefusedReason};
use super::name_lookup::NameLookup;
use super::recent_warning::RecentWarning;
use super::source::Source;
use crate::message::{CometAddr, NamedBy};
use crate::telemetry::LogThrottle;
pub(super) use allow::AllowList;
pub(super) use gate::{DialGate, GatedConnector};

/// How far the source of a comet's address is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamerTrust {
    /// An operator.
    Operator,
    Directory,
    /// A record, or a plugin.
    Others,
}

impl From<Source> for NamerTrust {
    fn from(source: Source) -> Self {
        match source {
            Source::Configured | Source::Dns | Source::Discovery => Self::Operator,
            // A retired comet was listed by an operator until recently.
            Source::Directory | Source::Retired => Self::Directory,
            Source::Named => Self::Others,
        }
    }
}

/// An address that may not be connected to, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {}; {REMEDY}", why(*reason))]
pub(super) struct AddressRefused {
    what: String,
    reason: RefusedReason,
}

// Short: a dead letter has room for 150 characters of each comet's reason.
const REMEDY: &str = "not connected to; list it in [comets] allow, or in [comets] nodes";

impl AddressRefused {
    pub(super) fn new(what: impl ToString, reason: RefusedReason) -> Self {
        Self { what: what.to_string(), reason }
    }
}

fn why(reason: RefusedReason) -> &'static str {
    match reason {
        RefusedReason::NotListed => "is not in [comets] allow",
        RefusedReason::Loopback => "is a loopback address, which only configured comets may have",
        RefusedReason::LinkLocal => "is a link-local address",
        RefusedReason::Unspecified => "is an unspecified address",
        RefusedReason::Multicast => "is a multicast address",
        RefusedReason::Broadcast => "is a broadcast address",
        RefusedReason::UnknownComet => {
            "is unknown and was named by a plugin (the plugin's `comets = \"any\"` allows it)"
        }
    }
}

/// The rules, and the last refusal.
pub(super) struct AccessRules {
    allow: Option<AllowList>,
    metrics: RefusedMetrics,
    log: LogThrottle,
    last: RecentWarning,
    names: NameLookup,
}

impl AccessRules {
    pub(super) fn new(allow: Option<AllowList>, metrics: RefusedMetrics) -> Self {
        let (log, last) = (LogThrottle::per_record(), RecentWarning::default());
        Self { allow, metrics, log, last, names: NameLookup::default() }
    }

    /// The resolver of names.
    pub(super) fn names(&self) -> &NameLookup {
        &self.names
    }

    /// Whether an address may be dialled; `name` is the name that resolved to it, if any.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(
        &self,
        trust: NamerTrust,
        name: Option<&str>,
        address: SocketAddr,
    ) -> Result<(), AddressRefused> {
        let special = RefusedReason::of_special(address.ip());
        if trust == NamerTrust::Operator {
            return Ok(());
        }
        if let Some(allow) = &self.allow {
            // A listed name does not allow special addresses, such as loopback.
            let by_name =
                || special.is_none() && name.is_some_and(|name| allow.has_name(name, address.port()));
            if allow.has_address(address) || by_name() {
                return Ok(());
            }
            return Err(AddressRefused::new(address, special.unwrap_or(RefusedReason::NotListed)));
        }
        match (trust, special) {
            (_, None) | (NamerTrust::Directory, Some(RefusedReason::Loopback)) => Ok(()),
            (_, Some(special)) => Err(AddressRefused::new(address, special)),
        }
    }

    /// The same for a comet's address, as far as that is known without resolving a name.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check_comet(&self, trust: NamerTrust, comet: &CometAddr) -> Result<(), AddressRefused> {
        match comet.address() {
            Ok(address) => match address.ip() {
                Some(ip) => self.check(trust, None, SocketAddr::new(ip, address.port())),
                None => Ok(()),
            },
            Err(_) => Ok(()),
        }
    }

    /// Counts and logs that something was refused.
    pub(super) fn note(&self, refused: &AddressRefused, named_by: NamedBy) {
        self.metrics.count(refused.reason, named_by);
        if let Some(held_back) = self.log.admit() {
            let by = named_by.as_str();
            warn!(
                named_by = by,
                held_back, "refusing to call a comet: {refused}; its recipients go to the offline policy"
            );
            self.last.note(format!("a comet that {by} named is not called: {refused}"), Instant::now());
        }
    }

    /// The last refusal, if it is recent.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        self.last.get(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(allow: Option<&[&str]>) -> AccessRules {
        let allow = allow.map(|entries| {
            let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
            AllowList::parse(&entries).expect("a list")
        });
        AccessRules::new(allow, RefusedMetrics::default())
    }

    fn may(access: &AccessRules, trust: NamerTrust, name: Option<&str>, address: &str) -> bool {
        access.check(trust, name, address.parse().expect("a socket address")).is_ok()
    }

    const SPECIAL: [&str; 5] =
        ["127.0.0.1:1", "169.254.169.254:80", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1"];

    #[test]
    fn without_a_list_the_source_decides() {
        let access = access(None);
        for address in ["10.0.0.1:1", "8.8.8.8:1", "[fd00::1]:1"] {
            for trust in [NamerTrust::Operator, NamerTrust::Directory, NamerTrust::Others] {
                assert!(may(&access, trust, None, address), "{trust:?} {address}");
            }
        }
        for address in SPECIAL {
            assert!(may(&access, NamerTrust::Operator, None, address), "{address}");
            assert_eq!(
                may(&access, NamerTrust::Directory, None, address),
                address.starts_with("127."),
                "{address}"
            );
            assert!(!may(&access, NamerTrust::Others, Some("innocent.example"), address), "{address}");
        }
    }

    #[test]
    fn a_list_decides_for_all_but_operators() {
        let access = access(Some(&["10.0.0.0/8:3109", "comet-*.internal:3109", "127.0.0.1:7"]));
        for trust in [NamerTrust::Directory, NamerTrust::Others] {
            for (name, address, expected) in [
                (None, "10.0.0.1:3109", true),
                (None, "[::ffff:10.0.0.1]:3109", true),
                (None, "10.0.0.1:3110", false),
                (None, "11.0.0.1:3109", false),
                (Some("comet-1.internal"), "11.0.0.1:3109", true),
                (Some("comet-1.internal"), "11.0.0.1:3110", false),
                (Some("evil.example"), "11.0.0.1:3109", false),
                (Some("evil.example"), "10.0.0.1:3109", true),
                (Some("comet-1.internal"), "127.0.0.1:3109", false),
                (Some("comet-1.internal"), "169.254.169.254:3109", false),
                (None, "127.0.0.1:7", true),
                (None, "127.0.0.1:8", false),
            ] {
                assert_eq!(may(&access, trust, name, address), expected, "{trust:?} {name:?} {address}");
            }
        }
        for address in SPECIAL.iter().chain(&["11.0.0.1:1"]) {
            assert!(may(&access, NamerTrust::Operator, None, address), "{address}");
        }
    }

    #[test]
    fn an_empty_list_allows_operators_alone() {
        let access = access(Some(&[]));
        assert!(!may(&access, NamerTrust::Directory, Some("comet"), "10.0.0.1:1"));
        assert!(may(&access, NamerTrust::Operator, Some("comet"), "10.0.0.1:1"));
    }

    #[test]
    fn refusals_are_reported_with_their_remedy() {
        let access = access(None);
        let now = Instant::now();
        assert_eq!(access.warning(now), None);
        let refused = access.check_comet(NamerTrust::Others, &"127.0.0.1:22".into()).expect_err("loopback");
        access.note(&refused, NamedBy::Record);
        let warning = access.warning(Instant::now()).expect("just noted");
        assert!(warning.contains("127.0.0.1:22") && warning.contains("[comets] allow"), "{warning}");
        assert_eq!(access.warning(Instant::now() + RecentWarning::LASTS), None);
        access.check_comet(NamerTrust::Others, &"a-name:22".into()).expect("nobody looked it up");
    }
}
