//! Whether a room's history has messages already, found by walking back from its newest entry.
//!
//! A partition's messages are stored in the order of their offsets. So the walk ends at the first entry of
//! the same partition with a lower offset than all that are wanted: after a restart, it passes what was in
//! flight, and otherwise one entry. Messages that were redriven are out of order: they are marked, do not
//! end a walk, and are themselves looked for up to its limit.
//!
//! Pure.

use std::collections::HashMap;

use crate::inbox::Position;
use crate::message::MessageId;

/// Entries of a walk at most. What is further back counts as absent.
const MOST: usize = 1000;

/// A walk back through one room.
#[derive(Debug)]
pub(super) struct Lookback<'a> {
    topic: &'a str,
    partition: i32,
    /// The messages that have not been found, with their index.
    wanted: HashMap<&'a str, usize>,
    /// The lowest offset of those that are in order; `None` if any is not.
    lowest: Option<i64>,
    walked: usize,
    newest: Option<i64>,
    found: Vec<(usize, Position)>,
}

impl<'a> Lookback<'a> {
    /// For messages of one partition: index, id, and the offset if it is in order.
    pub(super) fn new(
        topic: &'a str,
        partition: i32,
        wanted: impl Iterator<Item = (usize, &'a MessageId, Option<i64>)>,
    ) -> Self {
        let (mut by_id, mut lowest) = (HashMap::new(), Some(i64::MAX));
        for (index, id, offset) in wanted {
            by_id.insert(id.as_str(), index);
            lowest = lowest.and_then(|lowest| Some(lowest.min(offset?)));
        }
        Self { topic, partition, wanted: by_id, lowest, walked: 0, newest: None, found: Vec::new() }
    }

    /// Takes the next older entry, at this place. Returns whether the walk goes on.
    pub(super) fn take(&mut self, place: Position, id: &str, is_redriven: bool) -> bool {
        self.walked += 1;
        self.found.extend(self.wanted.remove(id).map(|index| (index, place)));
        let offset = self.offset_of(id).filter(|_| !is_redriven);
        self.newest = self.newest.max(offset);
        let is_past = matches!((offset, self.lowest), (Some(offset), Some(lowest)) if offset < lowest);
        !is_past && !self.wanted.is_empty() && self.walked < MOST
    }

    /// The messages that were found, with their places, and the newest offset of the partition that was seen.
    pub(super) fn finish(self) -> (Vec<(usize, Position)>, Option<i64>) {
        (self.found, self.newest)
    }

    /// The offset of a message of this partition.
    fn offset_of(&self, id: &str) -> Option<i64> {
        let mut parts = id.rsplitn(4, '/');
        let (_, offset, partition, topic) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_same = topic == self.topic && partition.parse() == Ok(self.partition);
        offset.parse().ok().filter(|_| is_same)
    }
}
