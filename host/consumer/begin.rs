//! Where an assigned partition begins. Pure.
//!
//! - With what the group has committed there, when that is of the topic as it stands.
//! - At its start, when the committed offset is of a topic of the same name that was deleted:
//!   what was counted in that log says nothing of this one.
//! - Where `[kafka] start` says, when the group has committed nothing in the topic at all, or
//!   when others of the group do the same at the moment. Once committed, that holds: a restart
//!   does not decide again.
//! - At its start, when it was added later (KIP-842).

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
    /// What the group has committed there, of all partitions.
    pub(super) committed: BTreeMap<i32, Committed>,
    /// This process has had partitions of it before: the group is not new to it.
    pub(super) known: bool,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// At the offset that the group has committed.
    Committed(i64),
    /// At the first record that is there.
    Beginning(Because),
    /// After the last record.
    End,
    /// At the first record of this time, in milliseconds since 1970.
    Time(i64),
}

/// Why a partition begins at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// The group is new, and `[kafka] start` says so.
    New,
    /// It was added to a topic that the group had come to before.
    Added,
    /// The topic was deleted and created again.
    CreatedAgain,
}

impl TopicView {
    /// Where this partition begins.
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

    /// What to commit with the offsets of this topic from now on.
    pub(super) fn mark(&self) -> Mark {
        Mark { topic: self.id, started: self.started() }
    }

    /// `[kafka] start` is for partitions below this number: all, when the group has never come
    /// here; those that it found, when some of them are committed; none that came later, and
    /// none of a topic that was created again.
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
    fn a_new_group_begins_where_start_says() {
        let new = topic(4, &[]);
        let minute = Start::At(SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(new.position(Start::Oldest, 3), Position::Beginning(Because::New));
        assert_eq!(new.position(Start::Newest, 3), Position::End);
        assert_eq!(new.position(minute, 3), Position::Time(60_000));
        assert_eq!(Some(new.mark()), mark(NOW, 4));
    }

    #[test]
    fn partitions_that_come_later_begin_at_their_start() {
        // Another member has committed two of the four partitions that the group found.
        let at_first = topic(6, &[(0, 10, mark(NOW, 4)), (1, 0, mark(NOW, 4))]);
        assert_eq!(at_first.position(Start::Newest, 3), Position::End, "the group has just come");
        assert_eq!(at_first.position(Start::Newest, 4), Position::Beginning(Because::Added));
        assert_eq!(Some(at_first.mark()), mark(NOW, 4));
        // Committed by a program that leaves no marks.
        let foreign = topic(2, &[(0, 10, None)]);
        assert_eq!(foreign.position(Start::Newest, 1), Position::Beginning(Because::Added));
        assert_eq!(Some(foreign.mark()), mark(NOW, 0));
    }

    #[test]
    fn what_is_committed_counts_when_it_is_of_this_topic() {
        let topic = topic(3, &[(0, 7, mark(NOW, 3)), (1, 8, None), (2, 51, mark(OLD, 3))]);
        assert_eq!(topic.position(Start::Newest, 0), Position::Committed(7));
        assert_eq!(topic.position(Start::Newest, 1), Position::Committed(8));
        assert_eq!(topic.position(Start::Newest, 2), Position::Beginning(Because::CreatedAgain));
    }

    #[test]
    fn a_topic_that_was_created_again_is_read_from_its_start_whatever_start_says() {
        let again = topic(4, &[(0, 51, mark(OLD, 4))]);
        for partition in 0..4 {
            assert!(matches!(again.position(Start::Newest, partition), Position::Beginning(_)));
        }
        assert_eq!(Some(again.mark()), mark(NOW, 0), "also for members that see only this commit");
        // Kafka forgets what was committed in a topic that is deleted; this process does not.
        let forgotten = TopicView { known: true, ..topic(4, &[]) };
        assert_eq!(forgotten.position(Start::Newest, 0), Position::Beginning(Because::Added));
        assert_eq!(Some(forgotten.mark()), mark(NOW, 0));
    }

    #[test]
    fn without_topic_ids_what_is_committed_is_taken_as_it_is() {
        let topic = TopicView { id: None, ..topic(1, &[(0, 51, mark(OLD, 1))]) };
        assert_eq!(topic.position(Start::Newest, 0), Position::Committed(51));
    }
}
