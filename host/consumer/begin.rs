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

use crate::consumer::mark::Mark;
use crate::kafka::{Start, TopicId};
use crate::time::to_record_ms;

/// A committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) offset: i64,
    pub(super) mark: Option<Mark>,
}

/// What is known of a topic when partitions of it are assigned.
#[derive(Clone, Debug)]
pub(super) struct TopicView {
    /// Its id, where brokers have them.
    pub(super) id: Option<TopicId>,
    /// How many partitions it has.
    pub(super) partitions: i32,
    /// What the group has committed, for all partitions of the topic.
    pub(super) committed: BTreeMap<i32, Committed>,
    /// This process has consumed the topic before, so the group is not new to it.
    pub(super) known: bool,
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// At the offset that the group has committed.
    Committed(i64),
    /// At the first available record.
    Beginning(Because),
    /// After the last record.
    End,
    /// At the first record of this time, in milliseconds since 1970.
    Time(i64),
}

/// Why a partition starts at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// The group is new, and `[kafka] start` says so.
    New,
    /// The partition was added after the group started to consume the topic.
    Added,
    /// The topic was deleted and created again.
    CreatedAgain,
}

impl TopicView {
    /// Where this partition starts.
    pub(super) fn position(&self, start: Start, partition: i32) -> Position {
        match self.committed.get(&partition) {
            Some(Committed { mark: Some(mark), .. }) if mark.is_of_another(self.id) => {
                Position::Beginning(Because::CreatedAgain)
            }
            Some(committed) => Position::Committed(committed.offset),
            None if partition < self.started() => match start {
                Start::Oldest => Position::Beginning(Because::New),
                Start::Newest => Position::End,
                Start::At(time) => Position::Time(to_record_ms(time)),
            },
            None => Position::Beginning(Because::Added),
        }
    }

    /// Whether the group was there before the partition's first record, so that what is missing at
    /// the log's start is lost. Not known of a group that another program has committed for.
    pub(super) fn owns_from_zero(&self, position: Position) -> bool {
        match position {
            Position::Beginning(Because::CreatedAgain) => true,
            Position::Beginning(Because::Added) => {
                self.known || self.committed.values().any(|committed| committed.mark.is_some())
            }
            _ => false,
        }
    }

    /// What to commit with the offsets of this topic from now on.
    pub(super) fn mark(&self) -> Mark {
        Mark { topic: self.id, started: self.started() }
    }

    /// `[kafka] start` applies to partitions below this number: to all if the group is new to
    /// the topic, or to those that existed when it was. It never applies to partitions that were
    /// added later, nor to a recreated topic.
    fn started(&self) -> i32 {
        if self.committed.is_empty() && !self.known {
            return self.partitions;
        }
        let marks = self.committed.values().filter_map(|committed| committed.mark);
        let present = marks.filter(|mark| !mark.is_of_another(self.id));
        present.map(|mark| mark.started).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    const OLD: u128 = 1;
    const NOW: u128 = 2;

    fn topic(partitions: i32, committed: &[(i32, i64, Option<Mark>)]) -> TopicView {
        let committed = committed
            .iter()
            .map(|(partition, offset, mark)| (*partition, Committed { offset: *offset, mark: *mark }));
        TopicView { id: TopicId::new(NOW), partitions, committed: committed.collect(), known: false }
    }

    fn mark(id: u128, started: i32) -> Option<Mark> {
        Some(Mark { topic: TopicId::new(id), started })
    }

    #[test]
    fn a_new_group_starts_where_configured() {
        let new = topic(4, &[]);
        let minute = Start::At(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(new.position(Start::Oldest, 3), Position::Beginning(Because::New));
        assert_eq!(new.position(Start::Newest, 3), Position::End);
        assert_eq!(new.position(minute, 3), Position::Time(60_000));
        assert_eq!(Some(new.mark()), mark(NOW, 4));
    }

    #[test]
    fn partitions_added_later_start_at_the_beginning() {
        // Another member has committed two of the four partitions that the group found.
        let at_first = topic(6, &[(0, 10, mark(NOW, 4)), (1, 0, mark(NOW, 4))]);
        assert_eq!(at_first.position(Start::Newest, 3), Position::End, "the group is new");
        assert_eq!(at_first.position(Start::Newest, 4), Position::Beginning(Because::Added));
        assert_eq!(Some(at_first.mark()), mark(NOW, 4));
        let added = Position::Beginning(Because::Added);
        assert!(at_first.owns_from_zero(added), "what retention has removed of it was never read");
        assert!(!at_first.owns_from_zero(Position::Beginning(Because::New)), "that was before the group");
        // Committed by a program that leaves no marks.
        let foreign = topic(2, &[(0, 10, None)]);
        assert_eq!(foreign.position(Start::Newest, 1), Position::Beginning(Because::Added));
        assert_eq!(Some(foreign.mark()), mark(NOW, 0));
        assert!(!foreign.owns_from_zero(added), "it is not known when the group came");
    }

    #[test]
    fn a_committed_offset_counts_only_for_its_topic_incarnation() {
        let topic = topic(3, &[(0, 7, mark(NOW, 3)), (1, 8, None), (2, 51, mark(OLD, 3))]);
        assert_eq!(topic.position(Start::Newest, 0), Position::Committed(7));
        assert_eq!(topic.position(Start::Newest, 1), Position::Committed(8));
        assert_eq!(topic.position(Start::Newest, 2), Position::Beginning(Because::CreatedAgain));
    }

    #[test]
    fn a_recreated_topic_is_read_from_the_beginning() {
        let again = topic(4, &[(0, 51, mark(OLD, 4))]);
        for partition in 0..4 {
            assert!(matches!(again.position(Start::Newest, partition), Position::Beginning(_)));
        }
        assert_eq!(Some(again.mark()), mark(NOW, 0), "holds for members that see only this commit");
        // Kafka forgets the committed offsets of a deleted topic; this process remembers the topic.
        let forgotten = TopicView { known: true, ..topic(4, &[]) };
        assert_eq!(forgotten.position(Start::Newest, 0), Position::Beginning(Because::Added));
        assert_eq!(Some(forgotten.mark()), mark(NOW, 0));
    }

    #[test]
    fn without_topic_ids_committed_offsets_are_trusted() {
        let topic = TopicView { id: None, ..topic(1, &[(0, 51, mark(OLD, 1))]) };
        assert_eq!(topic.position(Start::Newest, 0), Position::Committed(51));
    }
}
