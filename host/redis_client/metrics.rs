//! How long Redis takes and how often it fails, by operation.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::latency_histogram;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: &'static str,
}

/// The shared client's metrics. Operations are named in the code, so the labels are bounded.
#[derive(Clone, Debug)]
pub struct Metrics {
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    errors: Family<Labels, Counter>,
}

impl Metrics {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = Family::new_with_constructor(latency_histogram as fn() -> Histogram);
        let errors = Family::default();
        registry.register("halley_redis_seconds", "Time Redis took to answer, by operation", seconds.clone());
        registry.register(
            "halley_redis_errors",
            "Calls that Redis did not answer, by operation",
            errors.clone(),
        );
        Self { seconds, errors }
    }

    pub(crate) fn answered(&self, operation: &'static str, took: Duration) {
        self.seconds.get_or_create(&Labels { operation }).observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, operation: &'static str) {
        self.errors.get_or_create(&Labels { operation }).inc();
    }
}
