//! Logs and metrics: tracing set-up and what the modules' metrics share.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// A histogram of latencies in seconds: 50 microseconds to about 13 seconds, doubling.
pub fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 19))
}
