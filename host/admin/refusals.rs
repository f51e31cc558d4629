//! What the admin listener refuses: counted by reason, and logged at most once in a while for each.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::warn;

use crate::admin::peer::Peer;
use crate::telemetry::{LogThrottle, escape};

/// How often one reason is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The most of what a client sent that is logged, in characters.
const LONGEST_LOGGED: usize = 200;

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// No room for one more connection, all of them being served.
    Connections,
    /// A connection that made room for a newer one.
    Evicted,
    /// A connection that was idle, or sent or read too slowly.
    Timeout,
    /// A request for another host.
    Host,
    /// A write from a browser.
    Origin,
    /// No token where one is needed.
    NoToken,
    /// A token that does not match.
    WrongToken,
    /// Too many tokens that did not match.
    Guessing,
    /// Where no token would help: none is configured, or it cannot be read.
    Forbidden,
    /// More look-ups than are done at a time.
    Busy,
    /// More answers than may be unread.
    Unread,
    /// The system gave no connection.
    Accept,
}

impl Reason {
    const ALL: [Self; 12] = [
        Self::Connections,
        Self::Evicted,
        Self::Timeout,
        Self::Host,
        Self::Origin,
        Self::NoToken,
        Self::WrongToken,
        Self::Guessing,
        Self::Forbidden,
        Self::Busy,
        Self::Unread,
        Self::Accept,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Evicted => "evicted",
            Self::Timeout => "timeout",
            Self::Host => "host",
            Self::Origin => "origin",
            Self::NoToken => "no_token",
            Self::WrongToken => "wrong_token",
            Self::Guessing => "guessing",
            Self::Forbidden => "forbidden",
            Self::Busy => "busy",
            Self::Unread => "unread",
            Self::Accept => "accept",
        }
    }

    /// Clients that go away without a word are everyday.
    fn is_everyday(self) -> bool {
        self == Self::Timeout
    }
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: Reason,
}

/// Counts and logs. Clones share their counts.
#[derive(Clone, Debug)]
pub(super) struct Refusals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    refused: Family<Labels, Counter>,
    log: [LogThrottle; Reason::ALL.len()],
}

impl Refusals {
    /// Makes and registers them.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let refused = Family::<Labels, Counter>::default();
        registry.register(
            "halley_admin_refused",
            "Connections and requests that the admin listener refused, by reason",
            refused.clone(),
        );
        for reason in Reason::ALL {
            drop(refused.get_or_create(&Labels { reason }));
        }
        let log = Reason::ALL.map(|_| LogThrottle::new(1, LOG_EVERY));
        Self(Arc::new(Inner { refused, log }))
    }

    /// Counts one; logs it if none was logged for this reason lately. `what` says what it was.
    pub(super) fn count(&self, reason: Reason, from: Option<Peer>, what: impl FnOnce() -> String) {
        self.0.refused.get_or_create(&Labels { reason }).inc();
        if reason.is_everyday() {
            return;
        }
        if let Some(held_back) = self.0.log[reason as usize].admit() {
            let from = from.map(tracing::field::display);
            warn!(from, reason = reason.as_str(), held_back, "admin: {}", what());
        }
    }
}

/// What a client sent, not too long for a log line.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    escape::cut(text, LONGEST_LOGGED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_in_the_order_of_their_logs() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
