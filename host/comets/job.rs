//! A parcel that waits for its comet, and what a comet's task shows to the fleet.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::breaker::State;
use super::lanes::LaneSet;
use super::metrics::CometMetrics;
use super::places::Places;
use super::wire::Payload;
use super::{Delivered, Parcel};
use crate::message::{CometAddr, MessageId, RoomId, Target};

/// How a comet came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Source {
    /// It stands in `[comets] nodes`.
    Configured,
    /// A name in `[comets] nodes` has this address.
    Dns,
    /// Something was to be delivered there.
    Learned,
    /// It was configured or in DNS and is so no more: BROADCAST leaves it out.
    Retired,
}

/// What a comet's task shows to the fleet.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) address: CometAddr,
    pub(super) metrics: CometMetrics,
    source: AtomicU8,
    state: AtomicU8,
    /// Parcels without an outcome.
    unsettled: Places,
    /// Those of them whose call is under way.
    in_flight: AtomicUsize,
    born: Instant,
    /// Milliseconds from `born` to the last answer.
    answered: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Standing {
    pub(super) fn new(address: CometAddr, source: Source, metrics: CometMetrics) -> Self {
        Self {
            address,
            metrics,
            source: AtomicU8::new(source as u8),
            state: AtomicU8::new(State::Closed as u8),
            unsettled: Places::default(),
            in_flight: AtomicUsize::new(0),
            born: Instant::now(),
            answered: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }

    pub(super) fn source(&self) -> Source {
        let known = [Source::Configured, Source::Dns, Source::Learned];
        let value = self.source.load(Ordering::Relaxed);
        known.into_iter().find(|source| *source as u8 == value).unwrap_or(Source::Retired)
    }

    pub(super) fn set_source(&self, source: Source) {
        self.source.store(source as u8, Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> State {
        let known = [State::Closed, State::Open];
        let value = self.state.load(Ordering::Relaxed);
        known.into_iter().find(|state| *state as u8 == value).unwrap_or(State::HalfOpen)
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.taken()
    }

    pub(super) fn in_flight(&self) -> &AtomicUsize {
        &self.in_flight
    }

    /// The comet answered a call.
    pub(super) fn note_answer(&self) {
        self.answered.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// For how long the comet, known or not, has answered nothing.
    pub(super) fn silent_for(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.answered.load(Ordering::Relaxed)))
    }

    pub(super) fn note_error(&self, error: &str) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_owned());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A parcel that waits for its comet. Dropping it tells its receipt that nobody will call.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) payload: Payload,
    pub(super) message: MessageId,
    pub(super) lanes: LaneSet,
    pub(super) queued: Instant,
    outcome: Option<oneshot::Sender<Delivered>>,
    standing: Arc<Standing>,
}

impl Job {
    /// Takes a place in the queue; `None` when all `queue` places are taken.
    pub(super) fn queue(
        parcel: Parcel,
        standing: &Arc<Standing>,
        lanes: usize,
        queue: usize,
    ) -> Option<(Self, oneshot::Receiver<Delivered>)> {
        if !standing.unsettled.take(queue) {
            return None;
        }
        standing.metrics.waiting.inc();
        let (outcome, receipt) = oneshot::channel();
        let Parcel { target, room, payload, message, .. } = parcel;
        let job = Self {
            lanes: lanes_of(&target, room.as_ref(), lanes),
            target,
            payload,
            message,
            queued: Instant::now(),
            outcome: Some(outcome),
            standing: Arc::clone(standing),
        };
        Some((job, receipt))
    }

    /// Tells the outcome.
    pub(super) fn settle(mut self, delivered: Delivered) {
        match &delivered {
            Delivered::Acknowledged => self.standing.metrics.success.inc(),
            Delivered::Unreachable(_) | Delivered::Refused(_) => self.standing.metrics.failed.inc(),
        };
        if let Some(outcome) = self.outcome.take() {
            // Whoever sent the parcel may have lost interest.
            let _ = outcome.send(delivered);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.standing.unsettled.give_back();
        self.standing.metrics.waiting.dec();
    }
}

/// A call to several connections occupies the lanes of all of them: it is one call, and still
/// in order for each. One that is part of a room's messages occupies the room's lane as well.
fn lanes_of(target: &Target, room: Option<&RoomId>, lanes: usize) -> LaneSet {
    let own = match target {
        Target::Room(room) => LaneSet::of(room.as_str(), lanes),
        Target::Everyone { .. } => LaneSet::all(lanes),
        Target::Connections(keys) => {
            let each = keys.iter().map(|key| LaneSet::of(key.as_str(), lanes));
            // Nobody makes a call without keys; it would have to wait for some lane.
            each.reduce(LaneSet::union).unwrap_or_else(|| LaneSet::of("", lanes))
        }
    };
    room.map_or(own, |room| own.union(LaneSet::of(room.as_str(), lanes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_keeps_its_lane_whether_it_is_called_as_a_whole_or_by_connection() {
        let room = RoomId::from("lobby");
        let whole = lanes_of(&Target::Room(room.clone()), Some(&room), 8);
        let partial = lanes_of(&Target::Connections(vec!["c1".into()]), Some(&room), 8);
        assert_eq!(partial.union(whole), partial, "the partial call waits for the whole one");
        let push = lanes_of(&Target::Connections(vec!["c1".into()]), None, 8);
        assert_eq!(partial, whole.union(push));
    }
}
