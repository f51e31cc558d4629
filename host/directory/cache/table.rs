//! Content of the route cache: values by room and by age, and computations in progress.
//!
//! Plain data under the cache's lock; nothing here waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tokio::sync::watch;

use super::config::CacheConfig;
use crate::directory::freshness::{Freshness, LeaseTerm};
use crate::message::RoomId;

/// The worker that computes a value: that of this partition.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{topic}/{partition}")]
pub struct LookupLeader {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
}

/// What a caller accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whatever counts now.
    Cached,
    /// What is known to include every change before this time. If the flag is set, values that are being
    /// computed already include them, too.
    Since(Instant, bool),
}

/// A room of this size is hot if it changes faster than it can be read. Smaller rooms cost too little to
/// matter: a thousand readings of them in a second take less than a fifth of it.
pub(super) const HOT_ROOM: usize = 1_000;
/// A hot room is not read again for this many times as long as reading it took: a fifth of the time.
const PAUSE: u32 = 4;
/// How long to wait for a reading under way that is outdated already.
const UNDER_WAY: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct CacheTable<V> {
    limits: CacheConfig,
    pub(super) cached: HashMap<RoomId, CachedRoute<V>, RandomState>,
    /// The rooms in `cached` in the order of publication, by stamp.
    pub(super) by_age: BTreeMap<u64, RoomId>,
    pub(super) weight: usize,
    /// Computations in progress: rarely more than one for a room.
    pub(super) in_flight: HashMap<RoomId, Vec<PendingLookup<V>>, RandomState>,
    next_stamp: u64,
}

#[derive(Debug)]
pub(super) struct CachedRoute<V> {
    pub(super) generation: u64,
    /// The stamp of the publication.
    pub(super) stamp: u64,
    /// The stamp of the computation.
    pub(super) begun: u64,
    pub(super) since: Instant,
    pub(super) weight: usize,
    pub(super) value: V,
    pub(super) freshness: Freshness,
    /// The room has changed since; kept for the time until it may be read again.
    pub(super) outdated: bool,
    /// Not to be read again before this time, if it is hot.
    pub(super) due: Instant,
}

#[derive(Debug)]
pub(super) struct PendingLookup<V> {
    pub(super) generation: u64,
    pub(super) stamp: u64,
    pub(super) leader: LookupLeader,
    pub(super) receiver: watch::Receiver<Option<V>>,
    /// The room has changed since the computation began.
    pub(super) outdated: bool,
}

/// What is cached for a room.
pub(super) enum Found<V> {
    Valid(V),
    /// The room has changed, and may be read again only after this time.
    Deferred(V, Duration),
    Nothing,
}

/// How a computation ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completed {
    Valid,
    Outdated,
    /// It had ended before.
    Ended,
}

impl<V: Clone> CacheTable<V> {
    /// An empty table.
    pub(super) fn new(limits: CacheConfig) -> Self {
        let (cached, by_age, in_flight) = Default::default();
        Self { limits, cached, by_age, weight: 0, in_flight, next_stamp: 0 }
    }

    pub(super) fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    pub(super) fn find(&self, room: &RoomId, generation: u64, need: Need, now: Instant) -> Found<V> {
        let Some(cached) = self.cached.get(room).filter(|cached| cached.generation == generation) else {
            return Found::Nothing;
        };
        if !cached.outdated {
            let valid = !self.is_expired(cached, now) && is_covered(&cached.freshness, need);
            return if valid { Found::Valid(cached.value.clone()) } else { Found::Nothing };
        }
        if cached.freshness.term.as_ref().is_none_or(LeaseTerm::is_over) {
            return Found::Nothing;
        }
        let pause = cached.due.saturating_duration_since(now);
        match self.pending(room, generation) {
            Some(pending) if !pending.outdated => Found::Nothing,
            Some(_) => Found::Deferred(cached.value.clone(), pause.max(UNDER_WAY)),
            None if pause.is_zero() => Found::Nothing,
            None => Found::Deferred(cached.value.clone(), pause),
        }
    }

    /// What is cached for a room, for information: also while the server is silent.
    pub(super) fn peek(&self, room: &RoomId, generation: u64, now: Instant) -> Option<&CachedRoute<V>> {
        let cached = self.cached.get(room).filter(|cached| cached.generation == generation)?;
        let age = now.saturating_duration_since(cached.freshness.details_since);
        let counts = match &cached.freshness.term {
            None => !self.is_expired(cached, now),
            Some(term) => !term.is_over() && age < self.limits.presence_max_age,
        };
        counts.then_some(cached)
    }

    /// The latest computation of a room's value.
    pub(super) fn pending(&self, room: &RoomId, generation: u64) -> Option<&PendingLookup<V>> {
        self.in_flight.get(room)?.iter().rev().find(|pending| pending.generation == generation)
    }

    /// Whether a room's value is cached whose changes are reported, or is being computed.
    pub(super) fn depends_on_reports(&self, room: &RoomId) -> bool {
        self.in_flight.contains_key(room)
            || self.cached.get(room).is_some_and(|cached| cached.freshness.term.is_some())
    }

    fn is_expired(&self, cached: &CachedRoute<V>, now: Instant) -> bool {
        let age = |since| now.saturating_duration_since(since);
        let Freshness { term, details_since, complete, .. } = &cached.freshness;
        let is_old = || age(cached.since) >= self.limits.max_age;
        match term {
            None => is_old(),
            Some(_) if !complete && is_old() => true,
            Some(term) => !term.is_valid(now) || age(*details_since) >= self.limits.presence_max_age,
        }
    }

    /// Ends a computation.
    pub(super) fn complete(&mut self, room: &RoomId, stamp: u64) -> Completed {
        let Some(pending) = self.in_flight.get_mut(room) else { return Completed::Ended };
        let Some(at) = pending.iter().position(|pending| pending.stamp == stamp) else {
            return Completed::Ended;
        };
        let outdated = pending.remove(at).outdated;
        if pending.is_empty() {
            self.in_flight.remove(room);
        }
        if outdated { Completed::Outdated } else { Completed::Valid }
    }

    /// Stores a value, unless one of a newer generation or computation exists, and evicts others.
    pub(super) fn store(&mut self, room: RoomId, mut cached: CachedRoute<V>, now: Instant) {
        let is_newer = |present: &CachedRoute<V>| {
            present.generation > cached.generation
                || present.generation == cached.generation && present.begun > cached.begun
        };
        if self.cached.get(&room).is_some_and(is_newer) {
            return;
        }
        self.remove(&room);
        let is_over = cached.freshness.term.as_ref().is_some_and(LeaseTerm::is_over);
        let is_useless = is_over || cached.outdated && !is_hot(&cached);
        if is_useless || cached.weight > self.limits.connections || self.limits.rooms == 0 {
            return;
        }
        cached.due = now + cached.freshness.cost * PAUSE;
        self.weight += cached.weight;
        self.by_age.insert(cached.stamp, room.clone());
        self.cached.insert(room, cached);
        while let Some((_, oldest)) = self.by_age.first_key_value() {
            let expired = self.cached.get(oldest).is_none_or(|cached| self.is_expired(cached, now));
            let too_much = self.cached.len() > self.limits.rooms || self.weight > self.limits.connections;
            if !expired && !too_much {
                break;
            }
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    /// The room has changed: nothing read before now is current.
    pub(super) fn outdate(&mut self, room: &RoomId) {
        for pending in self.in_flight.get_mut(room).into_iter().flatten() {
            pending.outdated = true;
        }
        match self.cached.get_mut(room) {
            Some(cached) if is_hot(cached) => cached.outdated = true,
            Some(_) => self.remove(room),
            None => {}
        }
    }

    /// Removes what was read under terms that have ended.
    pub(super) fn remove_ended(&mut self) {
        let is_over =
            |cached: &CachedRoute<V>| cached.freshness.term.as_ref().is_some_and(LeaseTerm::is_over);
        let ended: Vec<RoomId> =
            self.cached.iter().filter(|(_, cached)| is_over(cached)).map(|(room, _)| room.clone()).collect();
        ended.iter().for_each(|room| self.remove(room));
    }

    /// Whether the room's value has been cached for a tenth of its time.
    pub(super) fn is_older_than_a_tenth(&self, room: &RoomId) -> bool {
        self.cached.get(room).is_some_and(|cached| cached.since.elapsed() >= self.limits.max_age / 10)
    }

    pub(super) fn remove(&mut self, room: &RoomId) {
        if let Some(cached) = self.cached.remove(room) {
            self.by_age.remove(&cached.stamp);
            self.weight -= cached.weight;
        }
    }
}

/// Whether reading the room costs so much that it may have to be deferred.
fn is_hot<V>(cached: &CachedRoute<V>) -> bool {
    cached.weight >= HOT_ROOM && cached.freshness.term.is_some()
}

fn is_covered(freshness: &Freshness, need: Need) -> bool {
    match (need, &freshness.term) {
        (Need::Since(time, _), Some(term)) => term.covers(time),
        (Need::Cached, _) | (Need::Since(..), None) => true,
    }
}
