//! The consumer's metrics.
//!
//! Values that change with every record (in flight, paused, lag) are read from the partitions at
//! each scrape, so they are right even while the consumer is stalled.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};

use crate::memory_guard;
use crate::telemetry::{Counter, Family, Registry, metrics};

/// The consumer's metrics.
#[derive(Clone)]
pub struct Metrics {
    pub(super) counted: Counted,
    pub(super) memory: memory_guard::Metrics,
    live: PartitionCollector,
}

metrics! {
    /// What is counted where it happens.
    #[derive(Clone)]
    pub(super) struct Counted {
        /// Records read from Kafka.
        records: Family<TopicLabel, Counter> = "halley_records_consumed";
        /// Records removed by retention or by an operator before they were read.
        lost: Family<TopicLabel, Counter> = "halley_records_lost";
        /// Partitions whose topic was deleted and created again.
        topics_recreated: Counter = "halley_topics_recreated";
        /// Assignments and revocations.
        pub(super) rebalances: Counter = "halley_rebalances";
        /// Partitions of the consumed topics that no member of the group reads.
        pub(super) unassigned: Gauge = "halley_partitions_unassigned";
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    topic: String,
    partition: i32,
}

impl Metrics {
    /// Registers the consumer's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let live = PartitionCollector::default();
        registry.register_collector(Box::new(live.clone()));
        Self { counted: Counted::register(registry), memory: memory_guard::Metrics::register(registry), live }
    }

    /// The lag, in records and in seconds, under other names, for a process with two consumers.
    pub fn lag_collector(&self, names: [&'static str; 2]) -> LagCollector {
        LagCollector { names, live: self.live.clone() }
    }

    /// Sets where each scrape reads the partitions.
    pub(super) fn watch(&self, snapshots: impl Fn() -> Vec<PartitionSnapshot> + Send + Sync + 'static) {
        // A second consumer with the same metrics would be a bug; the first one stays.
        let _first = self.live.0.set(Box::new(snapshots));
    }

    /// Counts the records of this topic that were read.
    pub(super) fn records_of(&self, topic: &str) -> Counter {
        self.counted.records.get_or_create_owned(&TopicLabel { topic: topic.to_owned() })
    }

    pub(super) fn lost(&self, topic: &str, records: u64) {
        self.counted.lost.get_or_create(&TopicLabel { topic: topic.to_owned() }).inc_by(records);
    }

    /// A topic's series starts at zero, so that the first loss is an increase.
    pub(super) fn topic(&self, topic: &str) {
        drop(self.counted.lost.get_or_create(&TopicLabel { topic: topic.to_owned() }));
    }

    pub(super) fn topics_recreated(&self) {
        self.counted.topics_recreated.inc();
    }
}

/// Reads the partitions at each scrape.
#[derive(Clone, Default, derive_more::Debug)]
#[debug("Live")]
struct PartitionCollector(Arc<OnceLock<Snapshots>>);

/// Returns the current state of all partitions.
type Snapshots = Box<dyn Fn() -> Vec<PartitionSnapshot> + Send + Sync>;

/// One partition at a scrape.
pub(super) struct PartitionSnapshot {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) unsettled: usize,
    pub(super) paused: bool,
    pub(super) lag: Option<i64>,
    pub(super) lag_duration: Option<Duration>,
}

impl Collector for PartitionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let seen = self.0.get().map_or_else(Vec::new, |snapshots| snapshots());
        let totals = [
            ("halley_partitions_assigned", "Partitions assigned to this process", seen.len()),
            (
                "halley_partitions_paused",
                "Partitions whose pipeline is full",
                seen.iter().filter(|partition| partition.paused).count(),
            ),
        ];
        for (name, help, value) in totals {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(number(value)).encode(metric)?;
        }
        encode_each(&mut encoder, "halley_consumer_lag", LAG, &seen, |seen| seen.lag)?;
        encode_each(&mut encoder, "halley_consumer_lag_seconds", LAG_SECONDS, &seen, lag_seconds)?;
        encode_each(&mut encoder, "halley_unsettled_records", "Records in flight", &seen, |seen| {
            Some(number(seen.unsettled))
        })
    }
}

const LAG: &str = "Records between the group's position and the end of a partition";
const LAG_SECONDS: &str =
    "Age of the first record of a partition that is not settled, and at least how long that has been so";

fn lag_seconds(seen: &PartitionSnapshot) -> Option<f64> {
    seen.lag_duration.map(|age| age.as_secs_f64())
}

/// The lag of a consumer whose other metrics are not exported.
#[derive(Clone, Debug)]
pub struct LagCollector {
    /// The names of the lag in records, and of that in seconds.
    names: [&'static str; 2],
    live: PartitionCollector,
}

impl Collector for LagCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let seen = self.live.0.get().map_or_else(Vec::new, |snapshots| snapshots());
        let [records, seconds] = self.names;
        encode_each(&mut encoder, records, LAG, &seen, |seen| seen.lag)?;
        encode_each(&mut encoder, seconds, LAG_SECONDS, &seen, lag_seconds)
    }
}

/// Encodes a gauge with a series for each partition.
fn encode_each<N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    seen: &[PartitionSnapshot],
    value: fn(&PartitionSnapshot) -> Option<N>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for partition in seen {
        let labels = PartitionLabels { topic: partition.topic.to_string(), partition: partition.partition };
        if let Some(value) = value(partition) {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::consumer::in_flight_limit::InFlightLimit;
    use crate::consumer::metadata::CommitMetadata;
    use crate::consumer::partitions::Partitions;
    use crate::memory_guard::MemoryGuard;
    use crate::message::{Origin, Record};

    #[test]
    fn partitions_are_read_at_each_scrape() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let scrape = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
            text
        };
        assert!(scrape().contains("halley_partitions_assigned 0\n"));

        let limit = InFlightLimit { records: 1, bytes: 1000 };
        let guard = MemoryGuard::new(None, metrics.memory.clone());
        let partitions = Arc::new(Mutex::new(Partitions::new(limit, guard, metrics.clone())));
        let watched = Arc::downgrade(&partitions);
        metrics.watch(move || watched.upgrade().map_or_else(Vec::new, |seen| seen.lock().snapshots()));
        let key = (Arc::<str>::from("push"), 3);
        let _feed = {
            let mut partitions = partitions.lock();
            let stream = partitions.assign(Arc::clone(&key.0), key.1);
            partitions.begin(&key, Some(5), CommitMetadata { topic: None, initial_partitions: 1 });
            for offset in 5..7 {
                let origin = Origin { topic: Arc::clone(&key.0), partition: key.1, offset };
                let nothing = Record {
                    origin,
                    timestamp_ms: None,
                    key: None,
                    value: None,
                    headers: Vec::new(),
                    trusted: false,
                };
                partitions.accept(&key, nothing, std::time::Instant::now());
            }
            partitions.get_mut(&key).expect("is assigned").set_log_range(0, 9, std::time::Instant::now());
            partitions.get_mut(&key).expect("is assigned").pause();
            stream
        };
        let text = scrape();
        for line in [
            "halley_partitions_assigned 1",
            "halley_partitions_paused 1",
            "halley_unsettled_records{topic=\"push\",partition=\"3\"} 1",
            "halley_consumer_lag{topic=\"push\",partition=\"3\"} 4",
            "halley_records_lost_total{topic=\"push\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "no `{line}` in\n{text}");
        }
    }
}
