//! Partitions that no member of the group has. Pure.
//!
//! Kafka gives a static member that comes back its previous assignment, and asks nobody to assign the
//! partitions that were added while it was away (KIP-345). When all members are static, nobody reads
//! them until the next rebalance. New partitions are normally assigned when the members next refresh
//! their metadata, so this only counts what stays unassigned for longer than that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consumer::partition_key::PartitionKey;
use crate::kafka::{AssignedPartitions, Topics};

/// Since when partitions are without a member.
#[derive(Debug)]
pub(super) struct Unassigned {
    grace: Duration,
    since: BTreeMap<PartitionKey, Instant>,
}

impl Unassigned {
    /// Members refresh their metadata this often; a partition may be without a member for twice as long.
    pub(super) fn new(metadata_refresh: Duration) -> Self {
        Self { grace: metadata_refresh.saturating_mul(2), since: BTreeMap::new() }
    }

    /// Takes what the group has now. Returns the partitions that are unassigned for too long.
    pub(super) fn update(
        &mut self,
        now: Instant,
        topics: &Topics,
        assigned: &AssignedPartitions,
    ) -> Vec<PartitionKey> {
        let described = topics.iter().filter_map(|(topic, state)| Some((topic, state.as_ref().ok()?)));
        let missing = described.flat_map(|(topic, state)| {
            let name: Arc<str> = Arc::from(topic.as_str());
            let numbers =
                (0..state.partitions).filter(|number| !assigned.contains(&(topic.clone(), *number)));
            numbers.map(move |number| (Arc::clone(&name), number))
        });
        self.since = missing.map(|key| (key.clone(), self.since.get(&key).copied().unwrap_or(now))).collect();
        let overdue = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= self.grace);
        overdue.map(|(key, _)| key.clone()).collect()
    }

    /// The group is rebalancing: partitions without a member are about to get one.
    pub(super) fn clear(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::TopicState;

    #[test]
    fn what_stays_unassigned_is_reported() {
        let topics = Topics::from([
            ("a".to_owned(), Ok(TopicState { id: None, partitions: 3 })),
            ("gone".to_owned(), Err(rdkafka::error::RDKafkaErrorCode::UnknownTopicOrPartition)),
        ]);
        let assigned = |numbers: &[i32]| numbers.iter().map(|number| ("a".to_owned(), *number)).collect();
        let (mut unassigned, start) = (Unassigned::new(Duration::from_secs(10)), Instant::now());
        let grace = Duration::from_secs(20);
        let some: AssignedPartitions = assigned(&[0, 2]);
        assert!(unassigned.update(start, &topics, &some).is_empty(), "it may be about to be assigned");
        let nearly = start + grace - Duration::from_millis(1);
        assert!(unassigned.update(nearly, &topics, &some).is_empty());
        let names = |keys: Vec<PartitionKey>| keys.iter().map(|key| key.1).collect::<Vec<_>>();
        assert_eq!(names(unassigned.update(start + grace, &topics, &some)), [1]);
        assert!(unassigned.update(start + grace, &topics, &assigned(&[0, 1, 2])).is_empty());
        assert!(unassigned.update(start + grace, &topics, &some).is_empty(), "the time starts again");
        unassigned.clear();
        assert!(unassigned.update(start + 2 * grace, &topics, &some).is_empty(), "and after a rebalance");
    }
}
