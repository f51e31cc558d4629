//! The metrics of traces.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::telemetry::{at_zero, label_enum, metrics};

label_enum! {
    /// Why spans were dropped.
    pub(super) enum DropReason as "reason" {
        /// The collector takes them more slowly than they come.
        QueueFull = "queue-full",
        /// The collector did not take them in time.
        Failed = "failed",
        /// The collector refused them.
        Rejected = "rejected",
    }
}

metrics! {
    /// Spans by what became of them.
    #[derive(Clone, Debug)]
    pub(super) struct Metrics {
        /// Spans that the collector of traces took.
        exported: Counter = "halley_spans_exported";
        /// Spans that were dropped instead, by reason. Delivery is not affected.
        dropped: Family<DropReason, Counter> = "halley_spans_dropped" in at_zero(Family::default());
    }
}

impl Metrics {
    pub(super) fn exported(&self, spans: u64) {
        self.exported.inc_by(spans);
    }

    pub(super) fn dropped(&self, reason: DropReason, spans: u64) {
        self.dropped.get_or_create(&reason).inc_by(spans);
    }

    /// How many spans were dropped for this reason.
    #[cfg(test)]
    pub(super) fn count_of(&self, reason: DropReason) -> u64 {
        self.dropped.get_or_create(&reason).get()
    }
}
