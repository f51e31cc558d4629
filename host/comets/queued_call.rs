//! A queued call, and the state that a comet's task shares with the fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::breaker::BreakerState;
use super::capacity::Capacity;
use super::hold::{HeldKeys, OrderHold};
use super::metrics::CometMetrics;
use super::order::Keys;
use super::shortage::ResourceShortage;
use super::stream::frames::Outgoing;
use super::wire::Payload;
use super::{CallOutcome, CallRequest, PartialDelivery, ReplyTo};
use crate::message::{CallTarget, CometAddr, ConnectionId, MessageId, RoomId};

/// The maximum number of calls for a message that a comet did not accept as a whole, unless one call
/// per `CALLED_TOGETHER` connections is more. The connections left after them are unreachable.
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
    pub(super) fn is_trusted(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery | Self::Directory)
    }

    /// Whether an operator lists the comet.
    pub(super) fn is_configured(self) -> bool {
        matches!(self, Self::Configured | Self::Dns | Self::Discovery)
    }
}

/// How messages reach a comet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ChannelMode {
    /// There is no channel, or the comet has not answered on it.
    Unknown,
    /// By unary calls.
    Unary,
    /// By stream.
    Stream,
    /// Not at all: `[comets] delivery` is `stream`, and the comet does not serve it.
    StreamNotServed,
}

impl ChannelMode {
    const ALL: [Self; 4] = [Self::Unknown, Self::Unary, Self::Stream, Self::StreamNotServed];
}

/// The state that a comet's task shares with the fleet.
#[derive(Debug)]
pub(super) struct CometState {
    pub(super) address: CometAddr,
    pub(super) metrics: CometMetrics,
    pub(super) shortage: Arc<ResourceShortage>,
    source: AtomicU8,
    state: AtomicU8,
    mode: AtomicU8,
    /// Calls without an outcome, and their size in bytes.
    unsettled: Capacity,
    bytes: Capacity,
    /// Notified when half of both is free again.
    pub(super) freed: Notify,
    /// Until when the comet counts as too slow, in milliseconds since `created_at`.
    slow_until: AtomicU64,
    /// The calls that are in flight.
    in_flight: AtomicUsize,
    /// The keys of messages that were given up and have no durable outcome yet.
    pub(super) held: Arc<HeldKeys>,
    /// The number of the next call.
    next_number: AtomicU64,
    created_at: Instant,
    /// The last answer, in milliseconds since `created_at`; 0 if there was none.
    answered: AtomicU64,
    /// When an entry of the directory last named it, and the latest such time that was shared with
    /// the other gateways: in milliseconds since 1970, 0 for never.
    named_at: AtomicU64,
    shared_at: AtomicU64,
    retired_at: AtomicU64,
    /// Whether it was evicted for another comet.
    evicted: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl CometState {
    pub(super) fn new(
        address: CometAddr,
        source: Source,
        metrics: CometMetrics,
        shortage: Arc<ResourceShortage>,
    ) -> Self {
        Self {
            address,
            metrics,
            shortage,
            source: AtomicU8::new(source as u8),
            state: AtomicU8::new(BreakerState::Closed as u8),
            mode: AtomicU8::new(ChannelMode::Unknown as u8),
            unsettled: Capacity::default(),
            bytes: Capacity::default(),
            freed: Notify::new(),
            slow_until: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            held: Arc::default(),
            next_number: AtomicU64::new(0),
            created_at: Instant::now(),
            answered: AtomicU64::new(0),
            named_at: AtomicU64::new(0),
            shared_at: AtomicU64::new(0),
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

    pub(super) fn breaker_state(&self) -> BreakerState {
        let known = [BreakerState::Closed, BreakerState::Open];
        let value = self.state.load(Ordering::Relaxed);
        known.into_iter().find(|state| *state as u8 == value).unwrap_or(BreakerState::HalfOpen)
    }

    pub(super) fn set_breaker_state(&self, state: BreakerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn channel_mode(&self) -> ChannelMode {
        let value = self.mode.load(Ordering::Relaxed);
        ChannelMode::ALL.into_iter().find(|mode| *mode as u8 == value).unwrap_or(ChannelMode::Unknown)
    }

    pub(super) fn set_channel_mode(&self, mode: ChannelMode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
        self.metrics.streaming.set(i64::from(mode == ChannelMode::Stream));
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
        self.answered.store((self.created_at.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
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
    pub(super) fn note_shared(&self, at_ms: u64) {
        self.shared_at.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// The latest time of being named that the other gateways know.
    pub(super) fn shared_at(&self) -> u64 {
        self.shared_at.load(Ordering::Relaxed)
    }

    /// A call expired before its first attempt: the comet counts as slow for as long again.
    pub(super) fn note_slow(&self, delivery_timeout: Duration) {
        let until = (self.created_at.elapsed() + delivery_timeout).as_millis() as u64;
        self.slow_until.store(until, Ordering::Relaxed);
    }

    /// Whether the comet keeps up, so that a full queue is worth waiting for.
    pub(super) fn keeps_up(&self) -> bool {
        let is_behind =
            (self.created_at.elapsed().as_millis() as u64) < self.slow_until.load(Ordering::Relaxed);
        self.breaker_state() == BreakerState::Closed && !is_behind
    }

    /// Takes room in the queue.
    fn take(self: &Arc<Self>, bytes: usize, room: QueueCapacity) -> Option<QueueSlot> {
        if !self.unsettled.take(1, room.messages) {
            return None;
        }
        if !self.bytes.take(bytes, room.bytes) {
            self.unsettled.release(1);
            return None;
        }
        self.metrics.waiting.inc();
        Some(QueueSlot { state: Arc::clone(self), bytes, room })
    }

    /// Holds the keys of a call that cannot be queued, for calls that are queued later.
    pub(super) fn hold_behind_queue(&self, target: &CallTarget, room: Option<&RoomId>) -> OrderHold {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.held.hold(keys_of(target, room).into_held(), number)
    }

    /// How long the comet has not answered.
    pub(super) fn silent_for(&self) -> Duration {
        self.created_at.elapsed().saturating_sub(Duration::from_millis(self.answered.load(Ordering::Relaxed)))
    }

    pub(super) fn note_error(&self, error: &str) {
        *self.last_error.lock() = Some(error.to_owned());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }
}

/// A queued call, or a part of one. Dropping it reports it as unreachable.
#[derive(Debug)]
pub(super) struct QueuedCall {
    pub(super) target: CallTarget,
    pub(super) room: Option<RoomId>,
    pub(super) payload: Payload,
    pub(super) message: MessageId,
    pub(super) queued: Instant,
    /// Numbers the calls to a comet in the order of their queueing; the parts of a call share its number.
    pub(super) number: u64,
    /// Why it has to be sent again, if it was sent by a stream that broke.
    pub(super) last_error: Option<Arc<str>>,
    /// Whether connections that need a call of their own have been split off.
    pub(super) is_divided: bool,
    reply: OutcomeSink,
}

/// Where the outcome goes.
#[derive(Debug)]
enum OutcomeSink {
    Whole { outcome: ReplyTo, slot: QueueSlot },
    Part(Arc<SplitCall>),
}

/// How much may be queued for one comet.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueCapacity {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// Room in the comet's queue, released on drop.
#[derive(Debug)]
struct QueueSlot {
    state: Arc<CometState>,
    bytes: usize,
    room: QueueCapacity,
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        let (state, room) = (&self.state, self.room);
        let bytes = state.bytes.release(self.bytes);
        let messages = state.unsettled.release(1);
        state.metrics.waiting.dec();
        if messages <= room.messages / 2 && bytes <= room.bytes / 2 {
            state.freed.notify_waiters();
        }
    }
}

/// What the parts of one call share. The call's outcome is known when the last part has its own.
#[derive(Debug)]
struct SplitCall {
    outcome: Option<ReplyTo>,
    slot: QueueSlot,
    room: Option<RoomId>,
    number: u64,
    /// How many connections the call is for.
    connections: usize,
    /// How many calls were made to find out which of them take it.
    calls: AtomicUsize,
    progress: Mutex<SplitProgress>,
}

/// The outcomes of the finished parts.
#[derive(Debug, Default)]
struct SplitProgress {
    taken: usize,
    unreachable: Vec<ConnectionId>,
    refused: Vec<ConnectionId>,
    /// Of the unreachable ones, those that may accept later messages.
    given_up: Vec<ConnectionId>,
    missing: Vec<ConnectionId>,
    /// The first reason of each kind.
    why: [Option<String>; 2],
    /// Whether the reason says that not all were tried.
    is_cut_short: bool,
    /// Why the comet did not accept the call as a whole.
    cause: Option<String>,
}

impl SplitProgress {
    fn note(&mut self, keys: &[ConnectionId], delivered: CallOutcome) {
        let (list, first, why) = match delivered {
            CallOutcome::Unreachable(why) => (&mut self.unreachable, &mut self.why[0], why),
            CallOutcome::Refused(why) => (&mut self.refused, &mut self.why[1], why),
            CallOutcome::Partial(partly) => {
                self.taken += keys.len().saturating_sub(partly.missing.len());
                return self.missing.extend(partly.missing);
            }
            CallOutcome::Acknowledged | CallOutcome::NobodyThere => return self.taken += keys.len(),
        };
        list.extend_from_slice(keys);
        first.get_or_insert(why);
    }

    /// `None` if a part was dropped without an outcome.
    fn outcome(self, connections: usize) -> Option<CallOutcome> {
        let Self { taken, unreachable, refused, missing, why: [why_unreachable, why_refused], .. } = self;
        if taken + unreachable.len() + refused.len() + missing.len() < connections {
            return None;
        }
        let whys: Vec<String> = why_unreachable.iter().chain(&why_refused).cloned().collect();
        Some(match (taken, why_unreachable, why_refused) {
            (_, None, None) if missing.is_empty() => CallOutcome::Acknowledged,
            (0, Some(why), None) if missing.is_empty() => CallOutcome::Unreachable(why),
            (0, None, Some(why)) if missing.is_empty() => CallOutcome::Refused(why),
            _ => {
                let why = whys.join("; ");
                CallOutcome::Partial(Box::new(PartialDelivery { unreachable, refused, missing, why }))
            }
        })
    }
}

impl Drop for SplitCall {
    fn drop(&mut self) {
        let mut progress = std::mem::take(self.progress.get_mut());
        let given_up = std::mem::take(&mut progress.given_up);
        // A reply that is dropped reports that no call is made.
        let (Some(reply), Some(delivered)) = (self.outcome.take(), progress.outcome(self.connections)) else {
            return;
        };
        // Those that were reached keep the room's order without it.
        let is_whole = matches!(delivered, CallOutcome::Unreachable(_)) && !given_up.is_empty();
        let room = self.room.take().filter(|_| is_whole);
        let held = room
            .map(OrderKey::Room)
            .into_iter()
            .chain(given_up.into_iter().map(OrderKey::Connection))
            .collect();
        send_outcome(reply, delivered, &self.slot.state, Some((held, self.number)));
    }
}

/// Reports the outcome of a call, and counts it. Holds these keys for calls after this number.
fn send_outcome(
    reply: ReplyTo,
    delivered: CallOutcome,
    state: &CometState,
    holds: Option<(Vec<OrderKey>, u64)>,
) {
    match &delivered {
        CallOutcome::Acknowledged | CallOutcome::Partial(_) | CallOutcome::NobodyThere => {
            state.metrics.success.inc()
        }
        CallOutcome::Unreachable(_) | CallOutcome::Refused(_) => state.metrics.failed.inc(),
    };
    let hold = holds.filter(|(keys, _)| !keys.is_empty()).map(|(keys, number)| state.held.hold(keys, number));
    reply.tell(delivered, hold);
}

impl QueuedCall {
    /// Takes a slot in the comet's queue.
    ///
    /// # Errors
    /// With the request if the queue is full.
    pub(super) fn queue(
        request: CallRequest,
        state: &Arc<CometState>,
        room: QueueCapacity,
        now: Instant,
    ) -> Result<Self, CallRequest> {
        let Some(slot) = state.take(request.cost(), room) else { return Err(request) };
        let CallRequest { target, room, payload, message, reply, .. } = request;
        Ok(Self {
            target,
            room,
            payload,
            message,
            queued: now,
            number: state.next_number.fetch_add(1, Ordering::Relaxed),
            last_error: None,
            is_divided: false,
            reply: OutcomeSink::Whole { outcome: reply, slot },
        })
    }

    /// The keys whose order it keeps.
    pub(super) fn order(&self) -> Keys<OrderKey> {
        keys_of(&self.target, self.room.as_ref())
    }

    /// The message for a stream.
    pub(super) fn outgoing(&self, seq: u64, with_id: bool) -> Outgoing<'_> {
        self.payload.outgoing(seq, with_id.then_some(&self.message), &self.target)
    }

    /// The connections that it names.
    pub(super) fn keys(&self) -> &[ConnectionId] {
        match &self.target {
            CallTarget::Connections(keys) => keys,
            CallTarget::Room(_) | CallTarget::Everyone { .. } => &[],
        }
    }

    /// Splits it into one part for each group; together the groups are all its connections.
    pub(super) fn split(self, groups: Vec<Vec<ConnectionId>>) -> Vec<Self> {
        let Self { room, payload, message, queued, number, reply, .. } = self;
        let parts = match reply {
            OutcomeSink::Part(parts) => parts,
            OutcomeSink::Whole { outcome, slot } => Arc::new(SplitCall {
                outcome: Some(outcome),
                slot,
                room: room.clone(),
                number,
                connections: groups.iter().map(Vec::len).sum(),
                calls: AtomicUsize::new(0),
                progress: Mutex::default(),
            }),
        };
        let part = |keys: Vec<ConnectionId>| Self {
            target: CallTarget::Connections(keys),
            room: room.clone(),
            payload: payload.clone(),
            message: message.clone(),
            queued,
            number,
            last_error: None,
            is_divided: true,
            reply: OutcomeSink::Part(Arc::clone(&parts)),
        };
        groups.into_iter().map(part).collect()
    }

    /// Whether its message was cancelled: the record is delivered again, perhaps by another gateway,
    /// and this call could arrive after later ones.
    pub(super) fn is_cancelled(&self) -> bool {
        match &self.reply {
            OutcomeSink::Whole { outcome, .. } => outcome.is_cancelled(),
            OutcomeSink::Part(parts) => parts.outcome.as_ref().is_none_or(ReplyTo::is_cancelled),
        }
    }

    /// Reports the outcome.
    pub(super) fn settle(self, delivered: CallOutcome) {
        match self.reply {
            OutcomeSink::Whole { outcome, slot } => send_outcome(outcome, delivered, &slot.state, None),
            OutcomeSink::Part(ref parts) => {
                let mut progress = parts.progress.lock();
                progress.note(self.keys(), delivered);
            }
        }
    }

    /// Reports it as unreachable. Its keys are held until its message has a durable outcome, since the
    /// comet may accept later calls.
    pub(super) fn give_up(self, why: String) {
        match self.reply {
            OutcomeSink::Whole { outcome, slot } => {
                let holds = Some((keys_of(&self.target, self.room.as_ref()).into_held(), self.number));
                send_outcome(outcome, CallOutcome::Unreachable(why), &slot.state, holds);
            }
            OutcomeSink::Part(ref parts) => {
                let mut progress = parts.progress.lock();
                progress.given_up.extend_from_slice(self.keys());
                progress.note(self.keys(), CallOutcome::Unreachable(why));
            }
        }
    }

    /// Whether the other is a part of the same call.
    pub(super) fn is_sibling_of(&self, other: &Self) -> bool {
        match (&self.reply, &other.reply) {
            (OutcomeSink::Part(mine), OutcomeSink::Part(others)) => Arc::ptr_eq(mine, others),
            _ => false,
        }
    }

    /// Counts an attempt at a part of a call; `false` if the limit is reached.
    pub(super) fn may_be_called(&self) -> bool {
        let OutcomeSink::Part(parts) = &self.reply else { return true };
        parts.calls.fetch_add(1, Ordering::Relaxed) < MAX_CALLS.max(parts.connections / CALLED_TOGETHER)
    }

    /// Reports its connections as unreachable without an attempt.
    pub(super) fn settle_unasked(self) {
        let OutcomeSink::Part(parts) = &self.reply else { return };
        let mut progress = parts.progress.lock();
        if !std::mem::replace(&mut progress.is_cut_short, true) {
            let calls = parts.calls.load(Ordering::Relaxed);
            let first = progress.why[0].take().unwrap_or_else(|| "not taken".to_owned());
            let rest = format!("after {calls} calls for one message its other connections were not tried");
            progress.why[0] = Some(format!("{first}; {rest}"));
        }
        progress.unreachable.extend_from_slice(self.keys());
        progress.given_up.extend_from_slice(self.keys());
    }

    /// The comet did not accept the call as a whole, for this reason.
    pub(super) fn note_not_taken_whole(&self, why: &str) {
        if let OutcomeSink::Part(parts) = &self.reply {
            parts.progress.lock().cause.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Why the comet did not accept the call as a whole.
    pub(super) fn not_taken_whole(&self) -> Option<String> {
        let OutcomeSink::Part(parts) = &self.reply else { return None };
        parts.progress.lock().cause.clone()
    }

    /// Whether it is a part of a split call.
    pub(super) fn is_part(&self) -> bool {
        matches!(self.reply, OutcomeSink::Part(_))
    }

    /// The reason of the refusal if at least this many connections of the call refused it and none
    /// accepted it.
    pub(super) fn refused_by_all(&self, connections: usize) -> Option<String> {
        let OutcomeSink::Part(parts) = &self.reply else { return None };
        let progress = parts.progress.lock();
        let is_refused = progress.taken == 0 && progress.refused.len() >= connections;
        progress.why[1].clone().filter(|_| is_refused)
    }

    /// How many connections of the call refused it; 0 if one accepted it.
    pub(super) fn refused_so_far(&self) -> usize {
        let OutcomeSink::Part(parts) = &self.reply else { return 0 };
        let progress = parts.progress.lock();
        if progress.taken == 0 { progress.refused.len() } else { 0 }
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
    /// The key of a call for one room, one connection, or everyone; `None` for several connections.
    pub(super) fn of(call: &QueuedCall) -> Option<Self> {
        match &call.target {
            CallTarget::Room(room) => Some(Self::Room(room.clone())),
            CallTarget::Everyone { .. } => Some(Self::Everyone),
            CallTarget::Connections(keys) => match keys.as_slice() {
                [key] => Some(Self::Connection(key.clone())),
                _ => None,
            },
        }
    }

    /// Whether a call has to stay behind others of this key.
    pub(super) fn covers(&self, call: &QueuedCall) -> bool {
        match self {
            Self::Room(room) => {
                call.room.as_ref() == Some(room) || call.target == CallTarget::Room(room.clone())
            }
            Self::Connection(_) | Self::Everyone => Self::of(call).as_ref() == Some(self),
        }
    }

    /// The order queues that its retry enters.
    pub(super) fn keys(&self) -> Keys<Self> {
        match self {
            Self::Everyone => Keys::Barrier,
            Self::Room(_) | Self::Connection(_) => Keys::One(self.clone()),
        }
    }
}

impl Keys<OrderKey> {
    /// The keys to hold when a call with these is given up.
    fn into_held(self) -> Vec<OrderKey> {
        match self {
            Self::One(key) => vec![key],
            Self::Many(keys) => keys,
            Self::Barrier => vec![OrderKey::Everyone],
        }
    }
}

/// A call to several connections keeps the order of all of them: it is one call. One that is part
/// of a room's messages keeps the room's as well.
fn keys_of(target: &CallTarget, room: Option<&RoomId>) -> Keys<OrderKey> {
    let connections = match target {
        CallTarget::Everyone { .. } => return Keys::Barrier,
        CallTarget::Room(room) => return Keys::One(OrderKey::Room(room.clone())),
        CallTarget::Connections(connections) => connections,
    };
    let rooms = room.cloned().map(OrderKey::Room).into_iter();
    // Callers never make a call without keys.
    Keys::of(rooms.chain(connections.iter().cloned().map(OrderKey::Connection))).unwrap_or(Keys::Barrier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_keeps_its_order_whether_it_is_called_as_a_whole_or_by_connection() {
        let (room, key) = (RoomId::from("lobby"), OrderKey::Room("lobby".into()));
        assert_eq!(keys_of(&CallTarget::Room(room.clone()), Some(&room)), Keys::One(key.clone()));
        let connections = CallTarget::Connections(vec!["c1".into(), "c1".into()]);
        let connection = OrderKey::Connection("c1".into());
        assert_eq!(keys_of(&connections, Some(&room)), Keys::Many(vec![key, connection.clone()]));
        assert_eq!(keys_of(&connections, None), Keys::One(connection));
        assert_eq!(keys_of(&CallTarget::Everyone { speed: 0 }, None), Keys::Barrier);
    }
}
