//! Parks calls for rooms and connections that a reachable comet does not accept messages for now.
//!
//! A call to retry is *parked* under the key whose order it keeps: a room, or one connection. It
//! leaves its order queues, so other calls proceed. Later messages of that key queue behind it.
//! When its retry is due, it enters the order queues again. Calls behind a message that was given up
//! (`hold`) wait here as well, until its keys are released.
//!
//! Connections that recently did not accept a message are remembered, so that messages for many
//! connections reach the others in a separate call: comets process the keys of a call one by one,
//! and stop at the first that fails.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use smart_default::SmartDefault;

use crate::comets::hold::HeldKeys;
use crate::comets::order_key::OrderKey;
use crate::comets::queued_call::QueuedCall;
use crate::comets::wire::key_len;
use crate::expiring::ExpiringMap;
use crate::message::ConnectionId;

/// How many keys may be parked. This bounds the calls to a comet that rejects everything.
const MAX_PARKED: usize = 256;
/// How many failing connections are remembered, and for how long.
const MAX_REMEMBERED: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// The size of a request for many connections: gRPC servers reject more than 4 MiB by default. A
/// large message still leaves `MIN_KEYS` bytes for keys.
const MAX_REQUEST: usize = 1024 * 1024;
const MIN_KEYS: usize = 256 * 1024;

/// What parked calls wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    /// The time of their retry.
    Time(Instant),
    /// The release of their key.
    Release,
    /// Their turn in the order queues.
    Turn,
}

/// The messages of one key that wait for another attempt, in order.
#[derive(Debug)]
pub(super) struct ParkedCalls {
    pub(super) calls: VecDeque<QueuedCall>,
    pub(super) failures: u32,
    pub(super) last_error: Option<String>,
    /// Whether they waited for the release of their key: the first one has an attempt, however long
    /// it has waited.
    pub(super) was_held: bool,
    waits_for: WaitsFor,
}

impl ParkedCalls {
    fn held() -> Self {
        let (calls, waits_for) = (VecDeque::new(), WaitsFor::Release);
        Self { calls, failures: 0, last_error: None, was_held: true, waits_for }
    }

    /// Adds a call in its place: one that a stream had may come back after later ones.
    fn insert(&mut self, call: QueuedCall) {
        let at = self.calls.partition_point(|other| other.number <= call.number);
        self.calls.insert(at, call);
    }
}

#[derive(Debug, SmartDefault)]
pub(super) struct ParkedQueue {
    waiting: HashMap<OrderKey, ParkedCalls>,
    #[default(ExpiringMap::new(MAX_REMEMBERED))]
    unresponsive: ExpiringMap<ConnectionId, ()>,
}

impl ParkedQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether another key may be parked.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_PARKED
    }

    /// Parks the rest of a call until this time.
    pub(super) fn park(
        &mut self,
        name: OrderKey,
        calls: VecDeque<QueuedCall>,
        failures: u32,
        error: String,
        again: Instant,
    ) {
        let waits_for = WaitsFor::Time(again);
        let mut waiting =
            ParkedCalls { calls, failures, last_error: Some(error), was_held: false, waits_for };
        if let Some(behind) = self.waiting.remove(&name) {
            waiting.calls.extend(behind.calls);
        }
        self.waiting.insert(name, waiting);
    }

    /// When the next retry is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let time = |waiting: &ParkedCalls| match waiting.waits_for {
            WaitsFor::Time(again) => Some(again),
            WaitsFor::Release | WaitsFor::Turn => None,
        };
        self.waiting.values().filter_map(time).min()
    }

    /// The keys whose retry is due, each returned once, to be put into the order queues.
    pub(super) fn ready(&mut self, now: Instant) -> Vec<OrderKey> {
        self.take_turns(|_, waiting| matches!(waiting.waits_for, WaitsFor::Time(again) if again <= now))
    }

    /// The keys that have been released, each returned once, to be put into the order queues.
    pub(super) fn released(&mut self, held: &HeldKeys) -> Vec<OrderKey> {
        self.take_turns(|name, waiting| {
            let is_held = |call: &QueuedCall| held.holds(name, call.number);
            waiting.waits_for == WaitsFor::Release && !waiting.calls.front().is_some_and(is_held)
        })
    }

    /// All keys that wait for the time of their retry, to be put into the order queues.
    pub(super) fn all_ready(&mut self) -> Vec<OrderKey> {
        self.take_turns(|_, waiting| matches!(waiting.waits_for, WaitsFor::Time(_)))
    }

    fn take_turns(&mut self, is_ready: impl Fn(&OrderKey, &ParkedCalls) -> bool) -> Vec<OrderKey> {
        let mut ready = Vec::new();
        for (name, waiting) in self.waiting.iter_mut().filter(|(name, waiting)| is_ready(name, waiting)) {
            waiting.waits_for = WaitsFor::Turn;
            ready.push(name.clone());
        }
        ready
    }

    /// Whether a call has to wait for the release of its key.
    pub(super) fn is_held(call: &QueuedCall, held: &HeldKeys) -> bool {
        !held.is_empty() && order_keys(call).any(|key| held.holds(&key, call.number))
    }

    /// Whether a call has to wait behind parked calls, or for the release of its key.
    pub(super) fn has_to_wait(&self, call: &QueuedCall, held: &HeldKeys) -> bool {
        let may_wait = !self.waiting.is_empty() || !held.is_empty();
        may_wait && order_keys(call).any(|key| self.is_behind(&key, call.number, held))
    }

    /// Removes the parked calls of a key. From now on the caller holds the key's order.
    pub(super) fn take(&mut self, name: &OrderKey) -> Option<ParkedCalls> {
        self.waiting.remove(name)
    }

    /// Removes all parked calls.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = QueuedCall> {
        self.waiting.drain().flat_map(|(_, waiting)| waiting.calls)
    }

    /// This connection did not accept a message.
    pub(super) fn remember(&mut self, key: &ConnectionId, now: Instant) {
        self.unresponsive.sweep(now);
        self.unresponsive.insert(key.clone(), (), REMEMBERED_FOR, now);
    }

    /// These connections accepted a message.
    pub(super) fn forget(&mut self, keys: &[ConnectionId]) {
        if !self.unresponsive.is_empty() {
            for key in keys {
                self.unresponsive.remove(key);
            }
        }
    }

    /// Splits a call before its attempt: by size, for connections that need a call of their own, and
    /// for connections that have to wait behind parked calls or a held key. The parts that may be
    /// called now are put in front of `rest`.
    pub(super) fn divide(
        &mut self,
        mut call: QueuedCall,
        rest: &mut VecDeque<QueuedCall>,
        held: &HeldKeys,
        now: Instant,
    ) {
        if let Some(waiting) = self.ahead_of(&call, held) {
            return waiting.insert(call);
        }
        call.is_divided = true;
        let limit = MAX_REQUEST.saturating_sub(call.payload().len()).max(MIN_KEYS);
        let is_large = call.keys().len() > 1 && call.keys().iter().map(key_len).sum::<usize>() > limit;
        let knows_any = !self.waiting.is_empty() || !self.unresponsive.is_empty() || !held.is_empty();
        if call.keys().len() < 2 || !(is_large || knows_any) {
            return rest.push_front(call);
        }
        let (mut together, mut separate, mut behind) = (Vec::new(), Vec::new(), Vec::new());
        for key in call.keys() {
            if self.is_behind(&OrderKey::Connection(key.clone()), call.number, held) {
                behind.push(vec![key.clone()]);
            } else if self.is_unresponsive(key, now) {
                separate.push(vec![key.clone()]);
            } else {
                together.push(key.clone());
            }
        }
        if separate.is_empty() && behind.is_empty() && !is_large {
            return rest.push_front(call);
        }
        let mut groups = by_size(together, limit);
        groups.append(&mut separate);
        let now_called = groups.len();
        groups.append(&mut behind);
        let mut parts = call.split(groups);
        for part in parts.split_off(now_called) {
            match self.ahead_of(&part, held) {
                Some(waiting) => waiting.insert(part),
                None => parts.push(part),
            }
        }
        parts.into_iter().rev().for_each(|part| rest.push_front(part));
    }

    fn is_unresponsive(&self, key: &ConnectionId, now: Instant) -> bool {
        self.unresponsive.get(key, now).is_some()
    }

    /// The parked calls that this one has to wait behind, if any.
    fn ahead_of(&mut self, call: &QueuedCall, held: &HeldKeys) -> Option<&mut ParkedCalls> {
        if self.waiting.is_empty() && held.is_empty() {
            return None;
        }
        let key = order_keys(call).find(|key| self.is_behind(key, call.number, held))?;
        Some(self.waiting.entry(key).or_insert_with(ParkedCalls::held))
    }

    /// Only behind earlier calls: the message that a parked one waits for may wait for this one.
    fn is_behind(&self, key: &OrderKey, number: u64, held: &HeldKeys) -> bool {
        let first = self.waiting.get(key).and_then(|waiting| waiting.calls.front());
        first.is_some_and(|first| first.number < number) || held.holds(key, number)
    }
}

/// The keys under which a call may be parked.
fn order_keys(call: &QueuedCall) -> impl Iterator<Item = OrderKey> {
    call.room.clone().map(OrderKey::Room).into_iter().chain(OrderKey::of(&call.target))
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
        fn groups_fit_keep_their_order_and_lose_no_key(
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
