//! What librdkafka reports of the partitions, and what is reported of them.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::Statistics;

use super::Partitions;
use crate::consumer::metrics::PartitionSnapshot;
use crate::consumer::partition::LogPosition;
use crate::consumer::stuck_detector::FetchPosition;
use crate::time;

impl Partitions {
    /// Takes librdkafka's statistics, once a second. Returns the fetch positions of the partitions
    /// that are not paused.
    pub(in crate::consumer) fn observe(&mut self, statistics: &Statistics) -> Vec<FetchPosition> {
        let (mut fetched, now) = (Vec::new(), Instant::now());
        for (key, partition) in &mut self.assigned {
            let topic = statistics.topics.get(&*key.0);
            let Some(found) = topic.and_then(|topic| topic.partitions.get(&key.1)) else { continue };
            let end = if found.ls_offset >= 0 { found.ls_offset } else { found.hi_offset };
            if end < 0 {
                continue;
            }
            // Records held by open transactions count as lag: a hanging producer must show.
            let last = found.hi_offset.max(end);
            partition.set_log_range(found.lo_offset, last, now);
            if partition.log_position() == LogPosition::Known && !partition.is_paused() {
                fetched.push(FetchPosition { key: key.clone(), next: found.next_offset, end, last });
            }
        }
        fetched
    }

    /// The current state of all partitions.
    pub(in crate::consumer) fn snapshots(&self) -> Vec<PartitionSnapshot> {
        let (now, now_ms) = (Instant::now(), time::now_record_ms());
        let mut seen: Vec<_> = self
            .assigned
            .iter()
            .map(|((topic, number), partition)| PartitionSnapshot {
                topic: Arc::clone(topic),
                partition: *number,
                unsettled: partition.unsettled().records,
                paused: partition.is_paused(),
                lag: partition.lag(),
                lag_duration: partition.lag_duration(now, now_ms),
            })
            .collect();
        seen.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        seen
    }
}
