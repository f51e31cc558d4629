//! A parcel that waits for its comet, and what a comet's task shows to the fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::breaker::State;
use super::lanes::LaneSet;
use super::metrics::CometMetrics;
use super::places::Places;
use super::shortage::Shortage;
use super::wire::Payload;
use super::{Delivered, Parcel, Partly};
use crate::message::{CometAddr, ConnectionId, MessageId, RoomId, Target};

/// The most calls for one parcel that a comet did not take as a whole, or one for so many of its
/// connections: what is left after them is unreachable.
const MAX_CALLS: usize = 4096;
const CALLED_TOGETHER: usize = 4;

/// How a comet came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Source {
    /// It stands in `[comets] nodes` or `[comets] addresses`.
    Configured,
    /// A name in `[comets] nodes` has this address.
    Dns,
    /// `[comets.discovery]` found it.
    Discovery,
    /// Entries of the directory named it.
    Directory,
    /// Only a record (`server`) or a policy named it: it gets what is sent there, and no
    /// BROADCAST.
    Named,
    /// It was configured, in DNS or discovered and is so no more: BROADCAST leaves it out.
    Retired,
}

impl Source {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Configured, Self::Dns, Self::Discovery, Self::Directory, Self::Named, Self::Retired];

    /// Whether it is known for more than that a record or a plugin named it.
    pub(super) fn is_own(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery | Self::Directory)
    }

    /// Whether an operator says that the comet is there.
    pub(super) fn is_wanted(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery)
    }
}

/// What a comet's task shows to the fleet.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) address: CometAddr,
    pub(super) metrics: CometMetrics,
    pub(super) shortage: Arc<Shortage>,
    source: AtomicU8,
    state: AtomicU8,
    /// Parcels without an outcome, and what they take in bytes.
    unsettled: Places,
    bytes: Places,
    /// Told when half of either is free again.
    pub(super) freed: Notify,
    /// Milliseconds from `born` until when the comet counts as too slow for what is sent to it.
    behind: AtomicU64,
    /// Those of them whose call is under way.
    in_flight: AtomicUsize,
    born: Instant,
    /// Milliseconds from `born` to the last answer; 0 where there was none.
    answered: AtomicU64,
    /// When an entry of the directory last named it, and which such moment was last told to the
    /// other gateways; milliseconds since 1970, or 0.
    named_at: AtomicU64,
    told_at: AtomicU64,
    retired_at: AtomicU64,
    /// Whether it gave its place to another comet.
    evicted: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl Standing {
    pub(super) fn new(
        address: CometAddr,
        source: Source,
        metrics: CometMetrics,
        shortage: Arc<Shortage>,
    ) -> Self {
        Self {
            address,
            metrics,
            shortage,
            source: AtomicU8::new(source as u8),
            state: AtomicU8::new(State::Closed as u8),
            unsettled: Places::default(),
            bytes: Places::default(),
            freed: Notify::new(),
            behind: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            born: Instant::now(),
            answered: AtomicU64::new(0),
            named_at: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            retired_at: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            last_error: Mutex::new(None),
        }
    }

    pub(super) fn source(&self) -> Source {
        let value = self.source.load(Ordering::Relaxed);
        Source::ALL.into_iter().find(|source| *source as u8 == value).unwrap_or(Source::Retired)
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

    /// Another comet has its place: what waits for it is given up once nobody can send there.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
    }

    /// Whether another comet has its place.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// The comet answered a call.
    pub(super) fn note_answer(&self) {
        self.answered.store((self.born.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// Whether the comet has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) > 0
    }

    /// An entry of the directory named it, here or in the sight of another gateway.
    pub(super) fn note_named(&self, at_ms: u64) {
        self.named_at.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// When an entry of the directory last named it, in milliseconds since 1970; 0 for never.
    pub(super) fn named_at(&self) -> u64 {
        self.named_at.load(Ordering::Relaxed)
    }

    /// An operator does not name it any more.
    pub(super) fn retire(&self, at_ms: u64) {
        self.retired_at.store(at_ms, Ordering::Relaxed);
        self.set_source(Source::Retired);
    }

    /// When it was last retired, in milliseconds since 1970; 0 for never.
    pub(super) fn retired_at(&self) -> u64 {
        self.retired_at.load(Ordering::Relaxed)
    }

    /// The other gateways know that it was named at this moment.
    pub(super) fn note_told(&self, at_ms: u64) {
        self.told_at.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// The last moment of being named that the other gateways know of.
    pub(super) fn told_at(&self) -> u64 {
        self.told_at.load(Ordering::Relaxed)
    }

    /// A message waited for its first call until it was too late: for as long again, a full
    /// queue is the comet's own.
    pub(super) fn note_behind(&self, give_up_after: Duration) {
        let until = (self.born.elapsed() + give_up_after).as_millis() as u64;
        self.behind.store(until, Ordering::Relaxed);
    }

    /// Whether the comet takes messages, so that a full queue is worth waiting for.
    pub(super) fn keeps_up(&self) -> bool {
        let is_behind = (self.born.elapsed().as_millis() as u64) < self.behind.load(Ordering::Relaxed);
        self.state() == State::Closed && !is_behind
    }

    /// Takes room in the queue.
    fn take(self: &Arc<Self>, bytes: usize, room: Room) -> Option<Place> {
        if !self.unsettled.take(1, room.messages) {
            return None;
        }
        if !self.bytes.take(bytes, room.bytes) {
            self.unsettled.give_back(1);
            return None;
        }
        self.metrics.waiting.inc();
        Some(Place { standing: Arc::clone(self), bytes, room })
    }

    /// For how long the comet, known or not, has answered nothing.
    pub(super) fn silent_for(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.answered.load(Ordering::Relaxed)))
    }

    pub(super) fn note_error(&self, error: &str) {
        *self.last_error.lock() = Some(error.to_owned());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }
}

/// A parcel, or a part of one, that waits for its comet. Dropping it tells its receipt that
/// nobody will call.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) room: Option<RoomId>,
    pub(super) payload: Payload,
    pub(super) message: MessageId,
    pub(super) lanes: LaneSet,
    pub(super) queued: Instant,
    /// Whether it was looked at for connections that need a call of their own.
    pub(super) is_divided: bool,
    reply: Reply,
}

/// Who waits for the outcome.
#[derive(Debug)]
enum Reply {
    Whole { outcome: oneshot::Sender<Delivered>, place: Place },
    Part(Arc<Parts>),
}

/// How much may wait for one comet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// A place in the comet's queue.
#[derive(Debug)]
struct Place {
    standing: Arc<Standing>,
    bytes: usize,
    room: Room,
}

impl Drop for Place {
    fn drop(&mut self) {
        let (standing, room) = (&self.standing, self.room);
        let bytes = standing.bytes.give_back(self.bytes);
        let messages = standing.unsettled.give_back(1);
        standing.metrics.waiting.dec();
        if messages <= room.messages / 2 && bytes <= room.bytes / 2 {
            standing.freed.notify_waiters();
        }
    }
}

/// What the parts of one parcel have in common. The parcel's outcome is known when the last of
/// them has its own.
#[derive(Debug)]
struct Parts {
    outcome: Option<oneshot::Sender<Delivered>>,
    place: Place,
    /// How many connections the parcel is for.
    connections: usize,
    /// How many calls were made to find out which of them take it.
    calls: AtomicUsize,
    so_far: Mutex<SoFar>,
}

/// What became of the parts that have their outcome.
#[derive(Debug, Default)]
struct SoFar {
    taken: usize,
    unreachable: Vec<ConnectionId>,
    refused: Vec<ConnectionId>,
    /// The first reason of each kind.
    why: [Option<String>; 2],
    /// Whether the reason says that not all were tried.
    is_cut_short: bool,
}

impl SoFar {
    fn note(&mut self, keys: &[ConnectionId], delivered: Delivered) {
        let (list, first, why) = match delivered {
            Delivered::Unreachable(why) => (&mut self.unreachable, &mut self.why[0], why),
            Delivered::Refused(why) => (&mut self.refused, &mut self.why[1], why),
            Delivered::Acknowledged | Delivered::Partly(_) => return self.taken += keys.len(),
        };
        list.extend_from_slice(keys);
        first.get_or_insert(why);
    }

    /// `None` when a part was dropped without an outcome.
    fn outcome(self, connections: usize) -> Option<Delivered> {
        let Self { taken, unreachable, refused, why: [why_unreachable, why_refused], .. } = self;
        if taken + unreachable.len() + refused.len() < connections {
            return None;
        }
        let whys: Vec<String> = why_unreachable.iter().chain(&why_refused).cloned().collect();
        Some(match (taken, why_unreachable, why_refused) {
            (_, None, None) => Delivered::Acknowledged,
            (0, Some(why), None) => Delivered::Unreachable(why),
            (0, None, Some(why)) => Delivered::Refused(why),
            _ => Delivered::Partly(Box::new(Partly { unreachable, refused, why: whys.join("; ") })),
        })
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let so_far = std::mem::take(self.so_far.get_mut());
        let (Some(sender), Some(delivered)) = (self.outcome.take(), so_far.outcome(self.connections)) else {
            return;
        };
        tell(sender, delivered, &self.place.standing);
    }
}

/// Tells the outcome of a parcel, and counts it.
fn tell(outcome: oneshot::Sender<Delivered>, delivered: Delivered, standing: &Standing) {
    match &delivered {
        Delivered::Acknowledged | Delivered::Partly(_) => standing.metrics.success.inc(),
        Delivered::Unreachable(_) | Delivered::Refused(_) => standing.metrics.failed.inc(),
    };
    // Whoever sent the parcel may have lost interest.
    let _ = outcome.send(delivered);
}

impl Job {
    /// Takes a place in the queue, which gives the parcel back when it has no room for it.
    pub(super) fn queue(
        parcel: Parcel,
        standing: &Arc<Standing>,
        lanes: usize,
        room: Room,
    ) -> Result<(Self, oneshot::Receiver<Delivered>), Parcel> {
        let Some(place) = standing.take(parcel.cost(), room) else { return Err(parcel) };
        let (outcome, receipt) = oneshot::channel();
        let Parcel { target, room, payload, message, .. } = parcel;
        let job = Self {
            lanes: lanes_of(&target, room.as_ref(), lanes),
            target,
            room,
            payload,
            message,
            queued: Instant::now(),
            is_divided: false,
            reply: Reply::Whole { outcome, place },
        };
        Ok((job, receipt))
    }

    /// The connections that it is for by name.
    pub(super) fn keys(&self) -> &[ConnectionId] {
        match &self.target {
            Target::Connections(keys) => keys,
            Target::Room(_) | Target::Everyone { .. } => &[],
        }
    }

    /// One job for each group of its connections, which together are all of them.
    pub(super) fn split(self, groups: Vec<Vec<ConnectionId>>) -> Vec<Self> {
        let Self { room, payload, message, lanes, queued, reply, .. } = self;
        let parts = match reply {
            Reply::Part(parts) => parts,
            Reply::Whole { outcome, place } => Arc::new(Parts {
                outcome: Some(outcome),
                place,
                connections: groups.iter().map(Vec::len).sum(),
                calls: AtomicUsize::new(0),
                so_far: Mutex::default(),
            }),
        };
        let part = |keys| Self {
            target: Target::Connections(keys),
            room: room.clone(),
            payload: payload.clone(),
            message: message.clone(),
            lanes,
            queued,
            is_divided: true,
            reply: Reply::Part(Arc::clone(&parts)),
        };
        groups.into_iter().map(part).collect()
    }

    /// Whether nobody waits for the outcome any more: the record will be delivered again, perhaps by
    /// another gateway, and behind that this call would come late.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.reply {
            Reply::Whole { outcome, .. } => outcome.is_closed(),
            Reply::Part(parts) => parts.outcome.as_ref().is_none_or(oneshot::Sender::is_closed),
        }
    }

    /// Tells the outcome.
    pub(super) fn settle(self, delivered: Delivered) {
        match self.reply {
            Reply::Whole { outcome, place } => tell(outcome, delivered, &place.standing),
            Reply::Part(ref parts) => {
                let mut so_far = parts.so_far.lock();
                so_far.note(self.keys(), delivered);
            }
        }
    }

    /// Whether the other is a part of the same parcel.
    pub(super) fn is_sibling_of(&self, other: &Self) -> bool {
        match (&self.reply, &other.reply) {
            (Reply::Part(mine), Reply::Part(others)) => Arc::ptr_eq(mine, others),
            _ => false,
        }
    }

    /// Counts a call for a part of a parcel; `false` when there were as many as may be.
    pub(super) fn may_be_called(&self) -> bool {
        let Reply::Part(parts) = &self.reply else { return true };
        parts.calls.fetch_add(1, Ordering::Relaxed) < MAX_CALLS.max(parts.connections / CALLED_TOGETHER)
    }

    /// Tells that nobody asked the comet.
    pub(super) fn settle_unasked(self) {
        let Reply::Part(parts) = &self.reply else { return };
        let mut so_far = parts.so_far.lock();
        if !std::mem::replace(&mut so_far.is_cut_short, true) {
            let calls = parts.calls.load(Ordering::Relaxed);
            let first = so_far.why[0].take().unwrap_or_else(|| "not taken".to_owned());
            let rest = format!("after {calls} calls for one message its other connections were not tried");
            so_far.why[0] = Some(format!("{first}; {rest}"));
        }
        so_far.unreachable.extend_from_slice(self.keys());
    }

    /// Whether it is for one connection of a parcel that has several.
    pub(super) fn is_single_part(&self) -> bool {
        matches!(self.reply, Reply::Part(_)) && self.keys().len() == 1
    }

    /// How many connections of its parcel were refused, while none took it.
    pub(super) fn refused_so_far(&self) -> usize {
        let Reply::Part(parts) = &self.reply else { return 0 };
        let so_far = parts.so_far.lock();
        if so_far.taken == 0 { so_far.refused.len() } else { 0 }
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
