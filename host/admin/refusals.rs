//! Counts what the admin listener refuses, by reason, and logs it with a throttle.

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

/// Log interval of one reason.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Maximum length of logged client input, in characters.
const LONGEST_LOGGED: usize = 200;

/// Why a connection or request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// All connections are writing.
    Connections,
    /// Closed for a newer connection.
    Evicted,
    /// Idle, or sent or read too slowly.
    Timeout,
    /// A request for another host.
    Host,
    /// A write from a browser.
    Origin,
    /// A token is required and missing.
    NoToken,
    /// A token that does not match.
    WrongToken,
    /// Too many failed tokens.
    Guessing,
    /// No token would help: none is configured, or it cannot be read.
    Forbidden,
    /// Above the concurrency limit.
    Busy,
    /// Too many unread response bytes.
    Unread,
    /// The system could not accept a connection.
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

    /// Clients that disconnect are normal.
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
    /// Creates and registers the metrics.
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

    /// Counts one refusal, and logs it unless this reason was logged recently. `what` describes it.
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

/// Client input, cut for a log line.
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
