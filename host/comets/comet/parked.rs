//! Rooms and connections that a comet answers for, but does not take messages for now.
//!
//! What is to be tried again is *parked* by the name that its order belongs to: a room, or one
//! connection. Its lane goes on with others. Later messages of that name line up behind it, and
//! nothing else does. When its moment has come it takes its turn in the lane again.
//!
//! Connections that did not take a message lately are remembered, so that messages for many get
//! to the others in a call of their own: comets go through the keys of a call one by one and
//! stop at the first that does not take it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::comets::job::Job;
use crate::comets::lanes::LaneSet;
use crate::comets::wire::key_len;
use crate::expiring::ExpiringMap;
use crate::message::{ConnectionId, RoomId, Target};

/// How many names may be parked: it bounds the calls that a comet which refuses everything gets.
const MAX_PARKED: usize = 256;
/// How many connections are remembered, and for how long since they did not take a message.
const MAX_REMEMBERED: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// How large a request for many connections may be: gRPC servers refuse more than 4 MiB by
/// default. A large message leaves this much room for keys nevertheless.
const MAX_REQUEST: usize = 1024 * 1024;
const MIN_KEYS: usize = 256 * 1024;

/// What the order of messages belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Room(RoomId),
    Connection(ConnectionId),
    Everyone,
}

impl Name {
    /// The name of a job for one room, one connection, or everyone.
    pub(super) fn of(job: &Job) -> Option<Self> {
        match &job.target {
            Target::Room(room) => Some(Self::Room(room.clone())),
            Target::Everyone { .. } => Some(Self::Everyone),
            Target::Connections(keys) => match keys.as_slice() {
                [key] => Some(Self::Connection(key.clone())),
                _ => None,
            },
        }
    }

    /// Whether a job has to keep its place behind others of this name.
    pub(super) fn covers(&self, job: &Job) -> bool {
        match self {
            Self::Room(room) => job.room.as_ref() == Some(room) || job.target == Target::Room(room.clone()),
            Self::Connection(_) | Self::Everyone => Self::of(job).as_ref() == Some(self),
        }
    }

    /// The lanes that it needs for its turn.
    pub(super) fn lanes(&self, lanes: usize) -> LaneSet {
        match self {
            Self::Room(room) => LaneSet::of(room.as_str(), lanes),
            Self::Connection(key) => LaneSet::of(key.as_str(), lanes),
            Self::Everyone => LaneSet::all(lanes),
        }
    }
}

/// The messages of one name that wait for another attempt, in order.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) jobs: VecDeque<Job>,
    pub(super) failures: u32,
    pub(super) last_error: Option<String>,
    /// `None` once it stands in its lane again.
    again: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Parked {
    waiting: HashMap<Name, Waiting>,
    reluctant: ExpiringMap<ConnectionId, ()>,
}

impl Default for Parked {
    fn default() -> Self {
        Self { waiting: HashMap::new(), reluctant: ExpiringMap::new(MAX_REMEMBERED) }
    }
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether another name may be parked.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_PARKED
    }

    /// Parks what is left of a call until this moment.
    pub(super) fn park(
        &mut self,
        name: Name,
        jobs: VecDeque<Job>,
        failures: u32,
        error: String,
        again: Instant,
    ) {
        let waiting = Waiting { jobs, failures, last_error: Some(error), again: Some(again) };
        self.waiting.insert(name, waiting);
    }

    /// Lines up what is left of a call, whose turn the caller sees to, in front of what has come since.
    pub(super) fn line_up(
        &mut self,
        name: Name,
        mut jobs: VecDeque<Job>,
        failures: u32,
        last_error: Option<String>,
    ) {
        if let Some(since) = self.waiting.remove(&name) {
            jobs.extend(since.jobs);
        }
        self.waiting.insert(name, Waiting { jobs, failures, last_error, again: None });
    }

    /// When the next name is to be tried again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiting| waiting.again).min()
    }

    /// The names whose moment has come, each once: they take their turn in the lanes.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Name> {
        let is_due = |waiting: &Waiting| waiting.again.is_some_and(|again| again <= now);
        let mut due = Vec::new();
        for (name, waiting) in self.waiting.iter_mut().filter(|(_, waiting)| is_due(waiting)) {
            waiting.again = None;
            due.push(name.clone());
        }
        due
    }

    /// What waits under a name, whose lane is held by the caller from now on.
    pub(super) fn take(&mut self, name: &Name) -> Option<Waiting> {
        self.waiting.remove(name)
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> {
        self.waiting.drain().flat_map(|(_, waiting)| waiting.jobs)
    }

    /// This connection did not take a message.
    pub(super) fn remember(&mut self, key: &ConnectionId, now: Instant) {
        self.reluctant.sweep(now);
        self.reluctant.insert(key.clone(), (), REMEMBERED_FOR, now);
    }

    /// These connections took a message.
    pub(super) fn forget(&mut self, keys: &[ConnectionId]) {
        if !self.reluctant.is_empty() {
            for key in keys {
                self.reluctant.remove(key);
            }
        }
    }

    /// Divides a job that is about to be called: what is too large for one call, connections
    /// that need a call of their own, and what has to wait behind something parked. The parts
    /// that may be called now are put in front of `call`.
    pub(super) fn divide(&mut self, mut job: Job, call: &mut VecDeque<Job>, now: Instant) {
        if let Some(waiting) = self.ahead_of(&job) {
            waiting.jobs.push_back(job);
            return;
        }
        job.is_divided = true;
        let limit = MAX_REQUEST.saturating_sub(job.payload.len()).max(MIN_KEYS);
        let is_large = job.keys().len() > 1 && job.keys().iter().map(key_len).sum::<usize>() > limit;
        let knows_any = !self.waiting.is_empty() || !self.reluctant.is_empty();
        if job.keys().len() < 2 || !(is_large || knows_any) {
            return call.push_front(job);
        }
        let (mut together, mut apart, mut behind) = (Vec::new(), Vec::new(), Vec::new());
        for key in job.keys() {
            if self.waiting.contains_key(&Name::Connection(key.clone())) {
                behind.push(vec![key.clone()]);
            } else if self.is_reluctant(key, now) {
                apart.push(vec![key.clone()]);
            } else {
                together.push(key.clone());
            }
        }
        if apart.is_empty() && behind.is_empty() && !is_large {
            return call.push_front(job);
        }
        let mut groups = by_size(together, limit);
        groups.append(&mut apart);
        let now_called = groups.len();
        groups.append(&mut behind);
        let mut parts = job.split(groups);
        for part in parts.split_off(now_called) {
            match self.ahead_of(&part) {
                Some(waiting) => waiting.jobs.push_back(part),
                None => parts.push(part),
            }
        }
        parts.into_iter().rev().for_each(|part| call.push_front(part));
    }

    fn is_reluctant(&self, key: &ConnectionId, now: Instant) -> bool {
        self.reluctant.get(key, now).is_some()
    }

    /// What is parked and has to be called before all of this job.
    fn ahead_of(&mut self, job: &Job) -> Option<&mut Waiting> {
        if self.waiting.is_empty() {
            return None;
        }
        let room = job.room.clone().map(Name::Room).filter(|name| self.waiting.contains_key(name));
        self.waiting.get_mut(&room.or_else(|| Name::of(job))?)
    }
}

/// Connections in their order, in groups that fit in this many bytes of a request.
fn by_size(keys: Vec<ConnectionId>, limit: usize) -> Vec<Vec<ConnectionId>> {
    let mut groups: Vec<Vec<ConnectionId>> = Vec::new();
    let mut size = usize::MAX;
    for key in keys {
        let length = key_len(&key);
        if size.saturating_add(length) > limit {
            groups.push(Vec::new());
            size = 0;
        }
        size += length;
        if let Some(group) = groups.last_mut() {
            group.push(key);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn groups_fit_keep_the_order_and_lose_nobody(
            lengths in proptest::collection::vec(0usize..300, 0..200), limit in 1usize..2000
        ) {
            let keys: Vec<ConnectionId> = lengths.iter().map(|n| "k".repeat(*n).as_str().into()).collect();
            let groups = by_size(keys.clone(), limit);
            prop_assert_eq!(groups.concat(), keys);
            for group in &groups {
                let size: usize = group.iter().map(key_len).sum();
                prop_assert!(group.len() == 1 || !group.is_empty() && size <= limit);
            }
        }
    }
}
