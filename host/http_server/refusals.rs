//! Counts what a listener refuses, by reason, and logs it with a throttle.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::http_server::peer::Peer;
use crate::telemetry::{Counter, Family, LogThrottle, Registry, at_zero, escape, label_enum};

/// Log interval of one reason.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Maximum length of logged client input, in characters.
const LONGEST_LOGGED: usize = 200;

label_enum! {
    /// Why a connection or request was refused.
    pub(crate) enum RefusalReason as "reason" {
        /// All connections are writing.
        Connections = "connections",
        /// Closed for a newer connection.
        Evicted = "evicted",
        /// Idle, or sent or read too slowly.
        Timeout = "timeout",
        /// A request for another host.
        Host = "host",
        /// A write from a browser.
        Origin = "origin",
        /// A token is required and missing.
        NoToken = "no_token",
        /// A token that does not match.
        WrongToken = "wrong_token",
        /// Too many failed tokens.
        RateLimited = "guessing",
        /// No token would help: none is configured, or it cannot be read.
        Forbidden = "forbidden",
        /// Above the concurrency limit.
        Busy = "busy",
        /// Too many unread response bytes.
        ResponseBudget = "unread",
        /// The system could not accept a connection.
        Accept = "accept",
        /// The TLS handshake failed.
        Tls = "tls",
    }
}

impl RefusalReason {
    /// Clients that disconnect are normal.
    fn is_routine(self) -> bool {
        self == Self::Timeout
    }
}

/// Counts and logs. Clones share their counts.
#[derive(Clone, Debug)]
pub(crate) struct Refusals(Arc<RefusalsInner>);

#[derive(Debug)]
struct RefusalsInner {
    listener: &'static str,
    refused: Family<RefusalReason, Counter>,
    log: [LogThrottle; RefusalReason::ALL.len()],
}

impl Refusals {
    /// Creates and registers the metrics of the listener with this name, under `metric`.
    pub(crate) fn register(registry: &mut Registry, metric: &'static str, listener: &'static str) -> Self {
        let refused = at_zero(Family::default());
        let help = format!("Connections and requests that the {listener} listener refused, by reason");
        registry.register(metric, help, refused.clone());
        let log = RefusalReason::ALL.map(|_| LogThrottle::new(1, LOG_EVERY));
        Self(Arc::new(RefusalsInner { listener, refused, log }))
    }

    /// Counts one refusal, and logs it unless this reason was logged recently. `what` describes it.
    pub(crate) fn count(&self, reason: RefusalReason, from: Option<Peer>, what: impl FnOnce() -> String) {
        self.0.refused.get_or_create(&reason).inc();
        if reason.is_routine() {
            return;
        }
        if let Some(held_back) = self.0.log[reason as usize].admit() {
            let from = from.map(tracing::field::display);
            warn!(from, reason = reason.as_str(), held_back, "{}: {}", self.0.listener, what());
        }
    }
}

/// Client input, cut for a log line.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
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
