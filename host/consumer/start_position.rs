//! Decides where an assigned partition starts. Pure.
//!
//! - At the group's committed offset, if that offset belongs to the current incarnation of the
//!   topic.
//! - At the beginning, if the committed offset belongs to a deleted topic of the same name: an
//!   offset of that log has no meaning in this one.
//! - Where `[kafka] start` says, if the group has committed nothing in the topic, or if other
//!   members of the group are starting there at this moment. The decision is committed, so a
//!   restart does not decide again.
//! - At the beginning, if the partition was added later (KIP-842).

use std::collections::BTreeMap;

use crate::consumer::metadata::CommitMetadata;
use crate::kafka::{StartFrom, TopicId};
use crate::time::to_record_ms;

/// A committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommittedOffset {
    pub(super) offset: i64,
    pub(super) metadata: Option<CommitMetadata>,
}

/// What is known of a topic when partitions of it are assigned.
#[derive(Clone, Debug)]
pub(super) struct TopicView {
    /// Its id, where brokers have them.
    pub(super) id: Option<TopicId>,
    /// How many partitions it has.
    pub(super) partitions: i32,
    /// What the group has committed, for all partitions of the topic.
    pub(super) committed: BTreeMap<i32, CommittedOffset>,
    /// This process has consumed the topic before, so the group is not new to it.
    pub(super) known: bool,
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartPosition {
    /// At the offset that the group has committed.
    Committed(i64),
    /// At the first available record.
    Beginning(StartReason),
    /// After the last record.
    End,
    /// At the first record of this time, in milliseconds since 1970.
    Time(i64),
}

/// Why a partition starts at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartReason {
    /// The group is new, and `[kafka] start` says so.
    NewGroup,
    /// The partition was added after the group started to consume the topic.
    PartitionAdded,
    /// The topic was deleted and created again.
    TopicRecreated,
}

impl TopicView {
    /// Where this partition starts.
    pub(super) fn position(&self, start: StartFrom, partition: i32) -> StartPosition {
        match self.committed.get(&partition) {
            Some(CommittedOffset { metadata: Some(metadata), .. }) if metadata.is_of_other_topic(self.id) => {
                StartPosition::Beginning(StartReason::TopicRecreated)
            }
            Some(committed) => StartPosition::Committed(committed.offset),
            None if partition < self.initial_partitions() => match start {
                StartFrom::Oldest => StartPosition::Beginning(StartReason::NewGroup),
                StartFrom::Newest => StartPosition::End,
                StartFrom::At(time) => StartPosition::Time(to_record_ms(time)),
            },
            None => StartPosition::Beginning(StartReason::PartitionAdded),
        }
    }

    /// Whether the group existed before the partition's first record, so that records missing at the
    /// log's start are lost. Unknown if another program has committed for the group.
    pub(super) fn owns_from_zero(&self, position: StartPosition) -> bool {
        match position {
            StartPosition::Beginning(StartReason::TopicRecreated) => true,
            StartPosition::Beginning(StartReason::PartitionAdded) => {
                self.known || self.committed.values().any(|committed| committed.metadata.is_some())
            }
            _ => false,
        }
    }

    /// The metadata to commit with offsets of this topic.
    pub(super) fn metadata(&self) -> CommitMetadata {
        CommitMetadata { topic: self.id, initial_partitions: self.initial_partitions() }
    }

    /// `[kafka] start` applies to partitions below this number: to all if the group is new to
    /// the topic, or to those that existed when it was. It never applies to partitions that were
    /// added later, nor to a recreated topic.
    fn initial_partitions(&self) -> i32 {
        if self.committed.is_empty() && !self.known {
            return self.partitions;
        }
        let marks = self.committed.values().filter_map(|committed| committed.metadata);
        let present = marks.filter(|metadata| !metadata.is_of_other_topic(self.id));
        present.map(|metadata| metadata.initial_partitions).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    const OLD: u128 = 1;
    const NOW: u128 = 2;

    fn topic(partitions: i32, committed: &[(i32, i64, Option<CommitMetadata>)]) -> TopicView {
        let committed = committed.iter().map(|(partition, offset, metadata)| {
            (*partition, CommittedOffset { offset: *offset, metadata: *metadata })
        });
        TopicView { id: TopicId::new(NOW), partitions, committed: committed.collect(), known: false }
    }

    fn metadata(id: u128, initial_partitions: i32) -> Option<CommitMetadata> {
        Some(CommitMetadata { topic: TopicId::new(id), initial_partitions })
    }

    #[test]
    fn a_new_group_starts_where_configured() {
        let new = topic(4, &[]);
        let minute = StartFrom::At(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(new.position(StartFrom::Oldest, 3), StartPosition::Beginning(StartReason::NewGroup));
        assert_eq!(new.position(StartFrom::Newest, 3), StartPosition::End);
        assert_eq!(new.position(minute, 3), StartPosition::Time(60_000));
        assert_eq!(Some(new.metadata()), metadata(NOW, 4));
    }

    #[test]
    fn partitions_added_later_start_at_the_beginning() {
        // Another member has committed two of the four partitions that the group found.
        let at_first = topic(6, &[(0, 10, metadata(NOW, 4)), (1, 0, metadata(NOW, 4))]);
        assert_eq!(at_first.position(StartFrom::Newest, 3), StartPosition::End, "the group is new");
        assert_eq!(
            at_first.position(StartFrom::Newest, 4),
            StartPosition::Beginning(StartReason::PartitionAdded)
        );
        assert_eq!(Some(at_first.metadata()), metadata(NOW, 4));
        let added = StartPosition::Beginning(StartReason::PartitionAdded);
        assert!(at_first.owns_from_zero(added), "what retention has removed of it was never read");
        assert!(
            !at_first.owns_from_zero(StartPosition::Beginning(StartReason::NewGroup)),
            "that was before the group"
        );
        // Committed by a program that writes no metadata.
        let foreign = topic(2, &[(0, 10, None)]);
        assert_eq!(
            foreign.position(StartFrom::Newest, 1),
            StartPosition::Beginning(StartReason::PartitionAdded)
        );
        assert_eq!(Some(foreign.metadata()), metadata(NOW, 0));
        assert!(!foreign.owns_from_zero(added), "it is not known when the group came");
    }

    #[test]
    fn a_committed_offset_counts_only_for_its_topic_incarnation() {
        let topic = topic(3, &[(0, 7, metadata(NOW, 3)), (1, 8, None), (2, 51, metadata(OLD, 3))]);
        assert_eq!(topic.position(StartFrom::Newest, 0), StartPosition::Committed(7));
        assert_eq!(topic.position(StartFrom::Newest, 1), StartPosition::Committed(8));
        assert_eq!(
            topic.position(StartFrom::Newest, 2),
            StartPosition::Beginning(StartReason::TopicRecreated)
        );
    }

    #[test]
    fn a_recreated_topic_is_read_from_the_beginning() {
        let again = topic(4, &[(0, 51, metadata(OLD, 4))]);
        for partition in 0..4 {
            assert!(matches!(again.position(StartFrom::Newest, partition), StartPosition::Beginning(_)));
        }
        assert_eq!(Some(again.metadata()), metadata(NOW, 0), "holds for members that see only this commit");
        // Kafka forgets the committed offsets of a deleted topic; this process remembers the topic.
        let forgotten = TopicView { known: true, ..topic(4, &[]) };
        assert_eq!(
            forgotten.position(StartFrom::Newest, 0),
            StartPosition::Beginning(StartReason::PartitionAdded)
        );
        assert_eq!(Some(forgotten.metadata()), metadata(NOW, 0));
    }

    #[test]
    fn without_topic_ids_committed_offsets_are_trusted() {
        let topic = TopicView { id: None, ..topic(1, &[(0, 51, metadata(OLD, 1))]) };
        assert_eq!(topic.position(StartFrom::Newest, 0), StartPosition::Committed(51));
    }
}
