//! Latency and errors of Redis by operation.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::{
    Counter, EncodeLabelSet, Family, Gauge, Histogram, LogThrottle, at_zero, label_enum, latency_histogram,
    metrics,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

label_enum! {
    /// Whether the server of a connection reports changes.
    pub(super) enum TrackingLabel as "state" {
        Active = "active",
        Refused = "refused",
    }
}

metrics! {
    /// Metrics of the shared client. Operations are constants, so the labels are bounded.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Time that Redis took to answer, by operation.
        seconds: Family<OperationLabels, Histogram, fn() -> Histogram> = "halley_redis_call_duration_seconds"
            in Family::new_with_constructor(latency_histogram);
        /// Calls that Redis did not answer, by operation.
        errors: Family<OperationLabels, Counter> = "halley_redis_errors";
        /// Oversized strings in Redis' replies, which were replaced by nil.
        values_refused: Counter = "halley_redis_values_refused";
        /// Replies of Redis that were larger than `[redis] max_reply` or malformed, and closed their
        /// connection.
        replies_refused: Counter = "halley_redis_replies_refused";
        /// Connections that read rooms, by whether their server reports changes: `active`, or `refused`.
        tracking: Family<TrackingLabel, Gauge> = "halley_redis_tracking_connections" in at_zero(Family::default());
        ..
        warning: Arc<LogThrottle> = Arc::new(LogThrottle::per_record());
    }
}

impl Metrics {
    pub(crate) fn record_latency(&self, operation: &'static str, took: Duration) {
        self.seconds.get_or_create(&OperationLabels { operation }).observe(took.as_secs_f64());
    }

    pub(super) fn value_refused(&self, length: usize) {
        self.values_refused.inc();
        if let Some(held_back) = self.warning.admit() {
            tracing::warn!(
                length,
                held_back,
                "ignoring an oversized string in a reply of Redis; see halley_redis_values_refused_total"
            );
        }
    }

    pub(super) fn reply_refused(&self) {
        self.replies_refused.inc();
    }

    pub(super) fn tracking(&self, state: TrackingLabel) -> Gauge {
        self.tracking.get_or_create_owned(&state)
    }

    pub(crate) fn record_failure(&self, operation: &'static str) {
        self.errors.get_or_create(&OperationLabels { operation }).inc();
    }
}
