//! The metrics of traces.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::telemetry::{label_enum, metrics};

label_enum! {
    /// Why spans were dropped.
    pub(super) enum DropReason {
        /// The collector takes them more slowly than they come.
        QueueFull = "queue-full",
        /// The collector did not take them in time.
        Failed = "failed",
        /// The collector refused them.
        Rejected = "rejected",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabel {
    reason: DropReason,
}

metrics! {
    /// Spans by what became of them.
    #[derive(Clone, Debug)]
    struct Counters {
        /// Spans that the collector of traces took.
        exported: Counter = "halley_spans_exported";
        /// Spans that were dropped instead, by reason. Delivery is not affected.
        dropped: Family<DropLabel, Counter> = "halley_spans_dropped";
    }
}

/// The metrics of traces.
#[derive(Clone, Debug)]
pub(super) struct Metrics(Counters);

impl Metrics {
    /// Every series exists from the start, at zero.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counters = Counters::register(registry);
        for reason in DropReason::ALL {
            drop(counters.dropped.get_or_create(&DropLabel { reason }));
        }
        Self(counters)
    }

    pub(super) fn exported(&self, spans: u64) {
        self.0.exported.inc_by(spans);
    }

    pub(super) fn dropped(&self, reason: DropReason, spans: u64) {
        self.0.dropped.get_or_create(&DropLabel { reason }).inc_by(spans);
    }

    /// How many spans were dropped for this reason.
    #[cfg(test)]
    pub(super) fn count_of(&self, reason: DropReason) -> u64 {
        self.0.dropped.get_or_create(&DropLabel { reason }).get()
    }
}
