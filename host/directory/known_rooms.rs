//! The members of rooms as they were last read, so that only newcomers are fetched after a change.
//!
//! Small rooms are not remembered: reading all of one costs no more than finding out who is new. Bounded
//! like the route cache.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CacheConfig;
use super::freshness::RoomReading;
use crate::membership::Membership;
use crate::message::RoomId;

/// The size from which a room is remembered.
pub(super) const SMALLEST: usize = 100;
/// How often rooms that are too old are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A room as it was last read.
#[derive(Clone, Debug)]
pub(super) struct KnownRoom {
    pub(super) membership: Arc<Membership>,
    /// When the oldest details in it were read.
    pub(super) details_since: Instant,
}

/// Rooms as they were last read.
#[derive(Debug, Default)]
pub(super) struct KnownRooms {
    rooms: HashMap<RoomId, KnownRoom>,
    connections: usize,
    limits: CacheLimits,
    swept: Option<Instant>,
}

/// By default nothing is remembered.
#[derive(Debug, Default)]
struct CacheLimits {
    rooms: usize,
    connections: usize,
    max_age: Duration,
}

impl KnownRooms {
    pub(super) fn new(limits: &CacheConfig) -> Self {
        let rooms = if limits.is_exact() { limits.rooms } else { 0 };
        let limits = CacheLimits { rooms, connections: limits.connections, max_age: limits.presence_max_age };
        Self { limits, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// A room, unless its details are too old.
    pub(super) fn get(&self, room: &RoomId, now: Instant) -> Option<KnownRoom> {
        self.rooms.get(room).filter(|known| self.is_current(known, now)).cloned()
    }

    fn is_current(&self, known: &KnownRoom, now: Instant) -> bool {
        now.saturating_duration_since(known.details_since) < self.limits.max_age
    }

    /// Remembers a room that was read, if its changes are reported.
    pub(super) fn remember(&mut self, room: &RoomId, reading: &RoomReading) {
        self.forget(room);
        let (membership, now) = (&reading.membership, Instant::now());
        let size = membership.members.len();
        let is_worth_it = size >= SMALLEST && membership.stale <= size / 4;
        if reading.freshness.term.is_none() || !is_worth_it || size > self.limits.connections {
            return;
        }
        let details_since = reading.freshness.details_since;
        self.make_room(size, now);
        if self.rooms.len() < self.limits.rooms {
            self.connections += size;
            self.rooms.insert(room.clone(), KnownRoom { membership: Arc::clone(membership), details_since });
        }
    }

    fn make_room(&mut self, size: usize, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            let old: Vec<RoomId> = self
                .rooms
                .iter()
                .filter(|(_, known)| !self.is_current(known, now))
                .map(|(id, _)| id.clone())
                .collect();
            old.iter().for_each(|room| self.forget(room));
        }
        // Any other: one that is forgotten is read as a whole.
        while self.connections + size > self.limits.connections || self.rooms.len() >= self.limits.rooms {
            let Some(other) = self.rooms.keys().next().cloned() else { return };
            self.forget(&other);
        }
    }

    pub(super) fn forget(&mut self, room: &RoomId) {
        if let Some(known) = self.rooms.remove(room) {
            self.connections -= known.membership.members.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::freshness::Freshness;
    use crate::membership::Connection;
    use crate::redis_client::Lease;

    fn reading(size: usize) -> RoomReading {
        let connection = |n: usize| Connection {
            id: format!("c{n}").into(),
            user: None,
            comet: "a:1".into(),
            online: true,
        };
        let membership = Arc::new(Membership::new((0..size).map(connection), 0));
        let freshness = Freshness { term: Some(Lease::in_process().term()), ..Freshness::untracked() };
        RoomReading { membership, freshness }
    }

    #[test]
    fn rooms_are_remembered_within_limits() {
        let limits = CacheConfig { rooms: 3, connections: 1_000, ..CacheConfig::default() };
        let (mut rooms, now) = (KnownRooms::new(&limits), Instant::now());
        rooms.remember(&"small".into(), &reading(SMALLEST - 1));
        rooms.remember(&"huge".into(), &reading(1_001));
        let mut untracked = reading(200);
        untracked.freshness.term = None;
        rooms.remember(&"untracked".into(), &untracked);
        assert!(rooms.is_empty());
        for number in 0..10 {
            rooms.remember(&format!("r{number}").into(), &reading(200));
            assert!(rooms.get(&format!("r{number}").into(), now).is_some());
        }
        assert_eq!((rooms.rooms.len(), rooms.connections), (3, 600));
        rooms.remember(&"large".into(), &reading(900));
        assert_eq!((rooms.rooms.len(), rooms.connections), (1, 900));
        assert!(rooms.get(&"large".into(), now + limits.presence_max_age * 2).is_none(), "too old");
        rooms.forget(&"large".into());
        assert!(rooms.is_empty() && rooms.connections == 0);
        let off = CacheConfig { exact: crate::directory::Exactness::Off, ..CacheConfig::default() };
        let mut rooms = KnownRooms::new(&off);
        rooms.remember(&"r".into(), &reading(200));
        assert!(rooms.is_empty());
    }
}
