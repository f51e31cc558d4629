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
pub(super) enum RefusalReason {
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
    RateLimited,
    /// No token would help: none is configured, or it cannot be read.
    Forbidden,
    /// Above the concurrency limit.
    Busy,
    /// Too many unread response bytes.
    ResponseBudget,
    /// The system could not accept a connection.
    Accept,
}

impl RefusalReason {
    const ALL: [Self; 12] = [
        Self::Connections,
        Self::Evicted,
        Self::Timeout,
        Self::Host,
        Self::Origin,
        Self::NoToken,
        Self::WrongToken,
        Self::RateLimited,
        Self::Forbidden,
        Self::Busy,
        Self::ResponseBudget,
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
            Self::RateLimited => "guessing",
            Self::Forbidden => "forbidden",
            Self::Busy => "busy",
            Self::ResponseBudget => "unread",
            Self::Accept => "accept",
        }
    }

    /// Clients that disconnect are normal.
    fn is_routine(self) -> bool {
        self == Self::Timeout
    }
}

impl EncodeLabelValue for RefusalReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: RefusalReason,
}

/// Counts and logs. Clones share their counts.
#[derive(Clone, Debug)]
pub(super) struct Refusals(Arc<RefusalsInner>);

#[derive(Debug)]
struct RefusalsInner {
    refused: Family<RefusalLabels, Counter>,
    log: [LogThrottle; RefusalReason::ALL.len()],
}

impl Refusals {
    /// Creates and registers the metrics.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let refused = Family::<RefusalLabels, Counter>::default();
        registry.register(
            "halley_admin_refused",
            "Connections and requests that the admin listener refused, by reason",
            refused.clone(),
        );
        for reason in RefusalReason::ALL {
            drop(refused.get_or_create(&RefusalLabels { reason }));
        }
        let log = RefusalReason::ALL.map(|_| LogThrottle::new(1, LOG_EVERY));
        Self(Arc::new(RefusalsInner { refused, log }))
    }

    /// Counts one refusal, and logs it unless this reason was logged recently. `what` describes it.
    pub(super) fn count(&self, reason: RefusalReason, from: Option<Peer>, what: impl FnOnce() -> String) {
        self.0.refused.get_or_create(&RefusalLabels { reason }).inc();
        if reason.is_routine() {
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
    fn reasons_are_in_the_order_of_their_logs() {
        for (index, reason) in RefusalReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
