//! Rooms that need special treatment: those too large for one command, and those that could not be
//! read. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Found, Lookup};
use crate::expiring::ExpiringMap;
use crate::message::RoomId;

/// How long an unreadable room is not read again: its messages follow each other, and each attempt
/// holds up their partition.
const GIVEN_UP_FOR: Duration = Duration::from_secs(10);
/// How many rooms of either kind are remembered. What is forgotten beyond that is found out again.
const MOST: usize = 10_000;

/// What is remembered of rooms.
#[derive(Debug)]
pub(super) struct Rooms {
    large: HashSet<RoomId>,
    /// Why they could not be read.
    given_up: ExpiringMap<RoomId, Arc<str>>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { large: HashSet::new(), given_up: ExpiringMap::new(MOST) }
    }
}

/// How a look-up is carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// In a batch with others.
    Usual,
    /// In pages.
    Pages,
    /// Not now, for this reason.
    GivenUp(Arc<str>),
}

impl Rooms {
    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.large.is_empty() && self.given_up.is_empty()
    }

    pub(super) fn care(&self, lookup: &Lookup, now: Instant) -> Care {
        let Lookup::Room(room) = lookup else { return Care::Usual };
        match self.given_up.get(room, now) {
            Some(why) => Care::GivenUp(Arc::clone(why)),
            _ if self.large.contains(room) => Care::Pages,
            _ => Care::Usual,
        }
    }

    /// Marks rooms to be read in pages.
    pub(super) fn are_large<'a>(&mut self, lookups: impl IntoIterator<Item = &'a Lookup>) {
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
    pub(super) fn was_read(&mut self, room: &RoomId, found: &Found, small: bool, now: Instant) {
        if small {
            self.large.remove(room);
        }
        match found {
            Found::Unreadable(why) => {
                self.given_up.sweep(now);
                self.given_up.insert(room.clone(), Arc::clone(why), GIVEN_UP_FOR, now);
            }
            Found::Room(_) | Found::Key(_) => drop(self.given_up.remove(room)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Membership;

    #[test]
    fn a_room_that_was_given_up_is_read_again_after_a_while() {
        let (mut rooms, start) = (Rooms::default(), Instant::now());
        let lookup = Lookup::Room("r".into());
        assert_eq!(rooms.care(&lookup, start), Care::Usual);
        rooms.are_large([&lookup]);
        assert_eq!(rooms.care(&lookup, start), Care::Pages);
        rooms.was_read(&"r".into(), &Found::Unreadable("slow".into()), false, start);
        assert_eq!(rooms.care(&lookup, start), Care::GivenUp("slow".into()));
        let later = start + GIVEN_UP_FOR;
        assert_eq!(rooms.care(&lookup, later), Care::Pages);
        rooms.was_read(&"r".into(), &Found::Room(Membership::default()), true, later);
        assert!(rooms.is_empty());
        rooms.are_large([&Lookup::Key("r".into())]);
        assert!(rooms.is_empty(), "only rooms are large");
    }
}
