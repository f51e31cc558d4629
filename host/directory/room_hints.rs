//! Rooms that need special treatment: those too large for one command, and those that could not be
//! read. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smart_default::SmartDefault;

use super::{DirectoryReply, Lookup};
use crate::expiring::ExpiringMap;
use crate::message::RoomId;

/// How long an unreadable room is not read again: its messages follow each other, and each attempt
/// holds up their partition.
const GIVEN_UP_FOR: Duration = Duration::from_secs(10);
/// How many rooms of either kind are remembered. A forgotten one is detected again.
const MOST: usize = 10_000;

/// The rooms that need special treatment.
#[derive(Debug, SmartDefault)]
pub(super) struct RoomHints {
    large: HashSet<RoomId>,
    /// Why they could not be read.
    #[default(ExpiringMap::new(MOST))]
    unreadable: ExpiringMap<RoomId, Arc<str>>,
}

/// How a look-up is carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadStrategy {
    /// In a batch with others.
    Batched,
    /// In pages.
    Pages,
    /// Not now, for this reason.
    Skipped(Arc<str>),
}

impl RoomHints {
    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.large.is_empty() && self.unreadable.is_empty()
    }

    pub(super) fn strategy(&self, lookup: &Lookup, now: Instant) -> ReadStrategy {
        let Lookup::Room(room) = lookup else { return ReadStrategy::Batched };
        match self.unreadable.get(room, now) {
            Some(why) => ReadStrategy::Skipped(Arc::clone(why)),
            _ if self.large.contains(room) => ReadStrategy::Pages,
            _ => ReadStrategy::Batched,
        }
    }

    /// Marks rooms to be read in pages.
    pub(super) fn mark_large<'a>(&mut self, lookups: impl IntoIterator<Item = &'a Lookup>) {
        for lookup in lookups {
            if let Lookup::Room(room) = lookup {
                if self.large.len() >= MOST {
                    self.large.clear();
                }
                self.large.insert(room.clone());
            }
        }
    }

    /// Records the result of a paged read; `small`: paging is no longer necessary.
    pub(super) fn record_read(&mut self, room: &RoomId, found: &DirectoryReply, small: bool, now: Instant) {
        if small {
            self.large.remove(room);
        }
        match found {
            DirectoryReply::Unreadable(why) => {
                self.unreadable.sweep(now);
                self.unreadable.insert(room.clone(), Arc::clone(why), GIVEN_UP_FOR, now);
            }
            DirectoryReply::Room(_) | DirectoryReply::Key(_) => drop(self.unreadable.remove(room)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::RoomReading;
    use crate::membership::Membership;

    #[test]
    fn an_unreadable_room_is_retried_later() {
        let (mut room_hints, start) = (RoomHints::default(), Instant::now());
        let lookup = Lookup::Room("r".into());
        assert_eq!(room_hints.strategy(&lookup, start), ReadStrategy::Batched);
        room_hints.mark_large([&lookup]);
        assert_eq!(room_hints.strategy(&lookup, start), ReadStrategy::Pages);
        room_hints.record_read(&"r".into(), &DirectoryReply::Unreadable("slow".into()), false, start);
        assert_eq!(room_hints.strategy(&lookup, start), ReadStrategy::Skipped("slow".into()));
        let later = start + GIVEN_UP_FOR;
        assert_eq!(room_hints.strategy(&lookup, later), ReadStrategy::Pages);
        room_hints.record_read(
            &"r".into(),
            &DirectoryReply::Room(RoomReading::untracked(Membership::default())),
            true,
            later,
        );
        assert!(room_hints.is_empty());
        room_hints.mark_large([&Lookup::Key("r".into())]);
        assert!(room_hints.is_empty(), "only rooms are large");
    }
}
