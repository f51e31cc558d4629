//! What the pipeline counts and times.

use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::telemetry::latency_histogram;

/// A station of a batch, timed as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Station {
    Filter,
    Guard,
    Resolve,
    Dispatch,
    Deliver,
    Offline,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StationLabel {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The pipeline's metrics.
#[derive(Clone)]
pub struct Metrics {
    stages: Family<StationLabel, Histogram, fn() -> Histogram>,
    messages: Family<OutcomeLabel, Counter>,
    recipients: Family<OutcomeLabel, Counter>,
    batch: Histogram,
    message: Histogram,
    pub(super) in_flight: Gauge,
}

impl Metrics {
    /// Registers the pipeline's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            stages: Family::new_with_constructor(latency_histogram as fn() -> Histogram),
            messages: Family::default(),
            recipients: Family::default(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            message: latency_histogram(),
            in_flight: Gauge::default(),
        };
        registry.register("halley_stage_seconds", "Time in a stage", metrics.stages.clone());
        registry.register("halley_messages", "Settled messages by outcome", metrics.messages.clone());
        registry.register("halley_recipients", "Recipients by outcome", metrics.recipients.clone());
        registry.register("halley_batch_records", "Records in a batch", metrics.batch.clone());
        let help = "From the start of its batch until a message is settled";
        registry.register("halley_message_seconds", help, metrics.message.clone());
        registry.register("halley_in_flight", "Messages being delivered", metrics.in_flight.clone());
        metrics
    }

    pub(super) fn stage(&self, station: Station, since: Instant) {
        let stage = match station {
            Station::Filter => "filter",
            Station::Guard => "guard",
            Station::Resolve => "resolve",
            Station::Dispatch => "dispatch",
            Station::Deliver => "deliver",
            Station::Offline => "offline",
        };
        self.stages.get_or_create(&StationLabel { stage }).observe(since.elapsed().as_secs_f64());
    }

    pub(super) fn batch(&self, records: usize) {
        self.batch.observe(records as f64);
    }

    pub(super) fn settled(&self, outcome: &'static str, since: Instant) {
        self.messages.get_or_create(&OutcomeLabel { outcome }).inc();
        self.message.observe(since.elapsed().as_secs_f64());
    }

    pub(super) fn recipients(&self, outcome: &'static str, count: usize) {
        if count > 0 {
            self.recipients.get_or_create(&OutcomeLabel { outcome }).inc_by(count as u64);
        }
    }
}
