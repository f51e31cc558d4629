//! A queued call, and the state that a comet's task shares with the fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::breaker::State;
use super::metrics::CometMetrics;
use super::order::Keys;
use super::places::Places;
use super::shortage::Shortage;
use super::wire::Payload;
use super::{Delivered, Parcel, Partly, ReplyTo};
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
    /// It is in `[comets] nodes` or `[comets] addresses`.
    Configured,
    /// A name in `[comets] nodes` has this address.
    Dns,
    /// `[comets.discovery]` found it.
    Discovery,
    /// Entries of the directory named it.
    Directory,
    /// Only a record (`server`) or a policy named it: it gets the calls sent to it, and no
    /// BROADCASTs.
    Named,
    /// It was configured, in DNS or discovered, and no longer is: it gets no BROADCASTs.
    Retired,
}

impl Source {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Configured, Self::Dns, Self::Discovery, Self::Directory, Self::Named, Self::Retired];

    /// Whether it is known from more than a record or a plugin.
    pub(super) fn is_own(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery | Self::Directory)
    }

    /// Whether an operator lists the comet.
    pub(super) fn is_wanted(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery)
    }
}

/// The state that a comet's task shares with the fleet.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) address: CometAddr,
    pub(super) metrics: CometMetrics,
    pub(super) shortage: Arc<Shortage>,
    source: AtomicU8,
    state: AtomicU8,
    /// Calls without an outcome, and their size in bytes.
    unsettled: Places,
    bytes: Places,
    /// Notified when half of both is free again.
    pub(super) freed: Notify,
    /// Until when the comet counts as too slow, in milliseconds since `born`.
    behind: AtomicU64,
    /// Those of them that are in flight.
    in_flight: AtomicUsize,
    born: Instant,
    /// The last answer, in milliseconds since `born`; 0 if there was none.
    answered: AtomicU64,
    /// When an entry of the directory last named it, and the latest such time that was shared with
    /// the other gateways; milliseconds since 1970, or 0.
    named_at: AtomicU64,
    told_at: AtomicU64,
    retired_at: AtomicU64,
    /// Whether it was evicted for another comet.
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

    /// Evicts it for another comet: its queued calls fail once it has no senders.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
    }

    /// Whether it was evicted for another comet.
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

    /// An entry of the directory named it, as seen by this or another gateway.
    pub(super) fn note_named(&self, at_ms: u64) {
        self.named_at.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// When an entry of the directory last named it, in milliseconds since 1970; 0 for never.
    pub(super) fn named_at(&self) -> u64 {
        self.named_at.load(Ordering::Relaxed)
    }

    /// An operator no longer lists it.
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

    /// The latest time of being named that the other gateways know.
    pub(super) fn told_at(&self) -> u64 {
        self.told_at.load(Ordering::Relaxed)
    }

    /// A call expired before its first attempt: the comet counts as slow for as long again.
    pub(super) fn note_behind(&self, give_up_after: Duration) {
        let until = (self.born.elapsed() + give_up_after).as_millis() as u64;
        self.behind.store(until, Ordering::Relaxed);
    }

    /// Whether the comet keeps up, so that a full queue is worth waiting for.
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

    /// How long the comet has not answered.
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

/// A queued call, or a part of one. Dropping it resolves its handle as unreachable.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) room: Option<RoomId>,
    pub(super) payload: Payload,
    pub(super) message: MessageId,
    pub(super) order: Keys<OrderKey>,
    pub(super) queued: Instant,
    /// Whether connections that need a call of their own have been split off.
    pub(super) is_divided: bool,
    reply: Reply,
}

/// Where the outcome goes.
#[derive(Debug)]
enum Reply {
    Whole { outcome: ReplyTo, place: Place },
    Part(Arc<Parts>),
}

/// How much may be queued for one comet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// Room in the comet's queue, released on drop.
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

/// What the parts of one call share. The call's outcome is known when the last part has its own.
#[derive(Debug)]
struct Parts {
    outcome: Option<ReplyTo>,
    place: Place,
    /// How many connections the call is for.
    connections: usize,
    /// How many calls were made to find out which of them take it.
    calls: AtomicUsize,
    so_far: Mutex<SoFar>,
}

/// The outcomes of the finished parts.
#[derive(Debug, Default)]
struct SoFar {
    taken: usize,
    unreachable: Vec<ConnectionId>,
    refused: Vec<ConnectionId>,
    /// The first reason of each kind.
    why: [Option<String>; 2],
    /// Whether the reason says that not all were tried.
    is_cut_short: bool,
    /// Why the parcel was not taken as a whole.
    cause: Option<String>,
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

    /// `None` if a part was dropped without an outcome.
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
        // A reply that is dropped tells that nobody calls.
        if let (Some(reply), Some(delivered)) = (self.outcome.take(), so_far.outcome(self.connections)) {
            tell(reply, delivered, &self.place.standing);
        }
    }
}

/// Tells the outcome of a parcel, and counts it.
fn tell(reply: ReplyTo, delivered: Delivered, standing: &Standing) {
    match &delivered {
        Delivered::Acknowledged | Delivered::Partly(_) => standing.metrics.success.inc(),
        Delivered::Unreachable(_) | Delivered::Refused(_) => standing.metrics.failed.inc(),
    };
    reply.tell(delivered);
}

impl Job {
    /// Takes a place in the queue, which gives the parcel back when it has no room for it.
    pub(super) fn queue(parcel: Parcel, standing: &Arc<Standing>, room: Room) -> Result<Self, Parcel> {
        let Some(place) = standing.take(parcel.cost(), room) else { return Err(parcel) };
        let Parcel { target, room, payload, message, reply, .. } = parcel;
        Ok(Self {
            order: keys_of(&target, room.as_ref()),
            target,
            room,
            payload,
            message,
            queued: Instant::now(),
            is_divided: false,
            reply: Reply::Whole { outcome: reply, place },
        })
    }

    /// The connections that it names.
    pub(super) fn keys(&self) -> &[ConnectionId] {
        match &self.target {
            Target::Connections(keys) => keys,
            Target::Room(_) | Target::Everyone { .. } => &[],
        }
    }

    /// Splits it into one part for each group; together the groups are all its connections.
    pub(super) fn split(self, groups: Vec<Vec<ConnectionId>>) -> Vec<Self> {
        let Self { room, payload, message, queued, reply, .. } = self;
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
        let part = |keys: Vec<ConnectionId>| Self {
            order: keys_of(&Target::Connections(keys.clone()), room.as_ref()),
            target: Target::Connections(keys),
            room: room.clone(),
            payload: payload.clone(),
            message: message.clone(),
            queued,
            is_divided: true,
            reply: Reply::Part(Arc::clone(&parts)),
        };
        groups.into_iter().map(part).collect()
    }

    /// Whether its handle was dropped: the record is delivered again, perhaps by another gateway, and
    /// this call could arrive after later ones.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.reply {
            Reply::Whole { outcome, .. } => outcome.is_abandoned(),
            Reply::Part(parts) => parts.outcome.as_ref().is_none_or(ReplyTo::is_abandoned),
        }
    }

    /// Reports the outcome.
    pub(super) fn settle(self, delivered: Delivered) {
        match self.reply {
            Reply::Whole { outcome, place } => tell(outcome, delivered, &place.standing),
            Reply::Part(ref parts) => {
                let mut so_far = parts.so_far.lock();
                so_far.note(self.keys(), delivered);
            }
        }
    }

    /// Whether the other is a part of the same call.
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

    /// Its parcel was not taken as a whole, for this reason.
    pub(super) fn note_not_taken_whole(&self, why: &str) {
        if let Reply::Part(parts) = &self.reply {
            parts.so_far.lock().cause.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Why its parcel was not taken as a whole.
    pub(super) fn not_taken_whole(&self) -> Option<String> {
        let Reply::Part(parts) = &self.reply else { return None };
        parts.so_far.lock().cause.clone()
    }

    /// Whether it is a part of a parcel.
    pub(super) fn is_part(&self) -> bool {
        matches!(self.reply, Reply::Part(_))
    }

    /// Why the connections of its parcel were refused, when so many were and none took it.
    pub(super) fn refused_by_all(&self, connections: usize) -> Option<String> {
        let Reply::Part(parts) = &self.reply else { return None };
        let so_far = parts.so_far.lock();
        let is_refused = so_far.taken == 0 && so_far.refused.len() >= connections;
        so_far.why[1].clone().filter(|_| is_refused)
    }

    /// How many connections of its parcel were refused, while none took it.
    pub(super) fn refused_so_far(&self) -> usize {
        let Reply::Part(parts) = &self.reply else { return 0 };
        let so_far = parts.so_far.lock();
        if so_far.taken == 0 { so_far.refused.len() } else { 0 }
    }
}

/// Whose order a message keeps at its comet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum OrderKey {
    Room(RoomId),
    Connection(ConnectionId),
    Everyone,
}

impl OrderKey {
    /// The key of a job for one room, one connection, or everyone.
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

    /// Whether a job has to keep its place behind others of this key.
    pub(super) fn covers(&self, job: &Job) -> bool {
        match self {
            Self::Room(room) => job.room.as_ref() == Some(room) || job.target == Target::Room(room.clone()),
            Self::Connection(_) | Self::Everyone => Self::of(job).as_ref() == Some(self),
        }
    }

    /// What it needs for its turn.
    pub(super) fn keys(&self) -> Keys<Self> {
        match self {
            Self::Everyone => Keys::Barrier,
            Self::Room(_) | Self::Connection(_) => Keys::One(self.clone()),
        }
    }
}

/// A call to several connections keeps the order of all of them: it is one call. One that is part
/// of a room's messages keeps the room's as well.
fn keys_of(target: &Target, room: Option<&RoomId>) -> Keys<OrderKey> {
    let connections = match target {
        Target::Everyone { .. } => return Keys::Barrier,
        Target::Room(room) => return Keys::One(OrderKey::Room(room.clone())),
        Target::Connections(connections) => connections,
    };
    let rooms = room.cloned().map(OrderKey::Room).into_iter();
    // Nobody makes a call without keys.
    Keys::of(rooms.chain(connections.iter().cloned().map(OrderKey::Connection))).unwrap_or(Keys::Barrier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_keeps_its_order_whether_it_is_called_as_a_whole_or_by_connection() {
        let (room, key) = (RoomId::from("lobby"), OrderKey::Room("lobby".into()));
        assert_eq!(keys_of(&Target::Room(room.clone()), Some(&room)), Keys::One(key.clone()));
        let connections = Target::Connections(vec!["c1".into(), "c1".into()]);
        let connection = OrderKey::Connection("c1".into());
        assert_eq!(keys_of(&connections, Some(&room)), Keys::Many(vec![key, connection.clone()]));
        assert_eq!(keys_of(&connections, None), Keys::One(connection));
        assert_eq!(keys_of(&Target::Everyone { speed: 0 }, None), Keys::Barrier);
    }
}
