//! A queued call, and how it is split and settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;

use super::message_run::{CallMessage, MessageRun};
use super::order::Keys;
use super::order_key::{OrderKey, keys_of};
use super::outcome::{CallOutcome, PartialDelivery};
use super::request::CallRequest;
use super::state::{CometState, QueueCapacity, QueueSlot};
use super::stream::frames::Outgoing;
use super::stream::window::Messages;
use super::wire::Payload;
use crate::message::{CallTarget, ConnectionId, RoomId};

/// The maximum number of calls for a message that a comet did not accept as a whole, unless one call
/// per `CALLED_TOGETHER` connections is more. The connections left after them are unreachable.
const MAX_CALLS: usize = 4096;
const CALLED_TOGETHER: usize = 4;

/// A queued call, or a part of one: its messages, or some of the connections of its only one. Dropping
/// it reports it as unreachable.
#[derive(Debug)]
pub(super) struct QueuedCall {
    pub(super) target: CallTarget,
    pub(super) room: Option<RoomId>,
    run: MessageRun,
    pub(super) queued: Instant,
    /// Numbers the messages to a comet in the order of their queueing: the number of the first one.
    pub(super) number: u64,
    /// Why it has to be sent again, if it was sent by a stream that broke.
    pub(super) last_error: Option<Arc<str>>,
    /// Whether connections that need a call of their own have been split off.
    pub(super) is_divided: bool,
    outcome: OutcomeSink,
}

/// Where the outcome goes.
#[derive(Debug)]
enum OutcomeSink {
    /// To the messages; they have this room in the queue.
    Run(QueueSlot),
    /// To the call that this is a part of.
    Part(Arc<SplitCall>),
}

/// What the parts of one call share. The call's outcome is known when the last part has its own.
#[derive(Debug)]
struct SplitCall {
    /// `None` once the outcome is reported.
    run: Option<MessageRun>,
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
        // A run that is dropped reports that no call is made.
        let (Some(run), Some(delivered)) = (self.run.take(), progress.outcome(self.connections)) else {
            return;
        };
        // Those that were reached keep the room's order without it.
        let is_whole = matches!(delivered, CallOutcome::Unreachable(_)) && !given_up.is_empty();
        let room = self.room.take().filter(|_| is_whole);
        let given_up = given_up.into_iter().map(OrderKey::Connection);
        let held: Vec<_> = room.map(OrderKey::Room).into_iter().chain(given_up).collect();
        report(run, &delivered, &self.slot.state, Some((&held, self.number)));
    }
}

/// Reports the outcome of messages, and counts it. Holds these keys for messages after each of them,
/// the first of which has this number.
fn report(run: MessageRun, delivered: &CallOutcome, state: &CometState, holds: Option<(&[OrderKey], u64)>) {
    let counter = match delivered {
        CallOutcome::Acknowledged | CallOutcome::Partial(_) | CallOutcome::NobodyThere => {
            &state.metrics.success
        }
        CallOutcome::Unreachable(_) | CallOutcome::Refused(_) => &state.metrics.failed,
    };
    counter.inc_by(run.len() as u64);
    let holds = holds.filter(|(keys, _)| !keys.is_empty());
    run.tell(delivered, |at| holds.map(|(keys, first)| state.held.hold(keys.to_vec(), first + at as u64)));
}

impl Messages for QueuedCall {
    fn count(&self) -> usize {
        self.run.len()
    }

    fn split_first(&mut self, count: usize) -> Self {
        let run = self.run.split_first(count);
        let outcome = match &mut self.outcome {
            OutcomeSink::Run(slot) => OutcomeSink::Run(slot.split(count, run.bytes())),
            // Has one message.
            OutcomeSink::Part(parts) => OutcomeSink::Part(Arc::clone(parts)),
        };
        let number = self.number;
        self.number += count as u64;
        Self {
            target: self.target.clone(),
            room: self.room.clone(),
            run,
            queued: self.queued,
            number,
            last_error: self.last_error.clone(),
            is_divided: self.is_divided,
            outcome,
        }
    }
}

impl QueuedCall {
    /// Takes room in the comet's queue.
    ///
    /// # Errors
    /// With the request if the queue is full.
    pub(super) fn queue(
        request: CallRequest,
        state: &Arc<CometState>,
        room: QueueCapacity,
        now: Instant,
    ) -> Result<Self, CallRequest> {
        let count = request.run.len();
        let Some(slot) = state.take(count, request.cost(), room) else { return Err(request) };
        let CallRequest { target, room, run, .. } = request;
        Ok(Self {
            target,
            room,
            run,
            queued: now,
            number: state.next_number.fetch_add(count as u64, Ordering::Relaxed),
            last_error: None,
            is_divided: false,
            outcome: OutcomeSink::Run(slot),
        })
    }

    /// Its messages; several only if it is for a room.
    pub(super) fn messages(&self) -> &[CallMessage] {
        self.run.messages()
    }

    /// The ids of its messages as metadata.
    pub(super) fn ids(&self) -> Option<HeaderValue> {
        self.run.ids()
    }

    /// The frames of its messages in goim's dialect.
    pub(super) fn frames(&self) -> Bytes {
        self.run.frames()
    }

    /// How many messages it has.
    pub(super) fn len(&self) -> usize {
        self.run.len()
    }

    /// The content of its first message.
    pub(super) fn payload(&self) -> &Payload {
        &self.run.first().payload
    }

    /// The size of its messages where they are merged.
    pub(super) fn merge_size(&self) -> usize {
        self.run.merge_size()
    }

    /// Calls with one of its messages each.
    pub(super) fn into_singles(mut self) -> impl Iterator<Item = Self> {
        let mut firsts = Vec::new();
        while self.len() > 1 {
            firsts.push(self.split_first(1));
        }
        firsts.into_iter().chain([self])
    }

    /// The keys whose order it keeps.
    pub(super) fn order(&self) -> Keys<OrderKey> {
        keys_of(&self.target, self.room.as_ref())
    }

    /// One of its messages for a stream.
    pub(super) fn outgoing<'a>(&'a self, message: &'a CallMessage, seq: u64, with_id: bool) -> Outgoing<'a> {
        let CallMessage { payload, id, .. } = message;
        payload.outgoing(seq, with_id.then_some(id), &self.target)
    }

    /// The connections that it names.
    pub(super) fn keys(&self) -> &[ConnectionId] {
        match &self.target {
            CallTarget::Connections(keys) => keys,
            CallTarget::Room(_) | CallTarget::Everyone { .. } => &[],
        }
    }

    /// Splits it into one part for each group; together the groups are all its connections. It has one
    /// message.
    pub(super) fn split(self, groups: Vec<Vec<ConnectionId>>) -> Vec<Self> {
        let Self { room, run, queued, number, outcome, .. } = self;
        let silent = run.silent();
        let parts = match outcome {
            OutcomeSink::Part(parts) => parts,
            OutcomeSink::Run(slot) => Arc::new(SplitCall {
                run: Some(run),
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
            run: silent.silent(),
            queued,
            number,
            last_error: None,
            is_divided: true,
            outcome: OutcomeSink::Part(Arc::clone(&parts)),
        };
        groups.into_iter().map(part).collect()
    }

    /// Whether its messages were cancelled: the records are delivered again, perhaps by another gateway,
    /// and this call could arrive after later ones.
    pub(super) fn is_cancelled(&self) -> bool {
        self.run.is_cancelled()
    }

    /// Reports the outcome of its messages.
    pub(super) fn settle(self, delivered: &CallOutcome) {
        match self.outcome {
            OutcomeSink::Run(slot) => report(self.run, delivered, &slot.state, None),
            OutcomeSink::Part(ref parts) => {
                let mut progress = parts.progress.lock();
                progress.note(self.keys(), delivered.clone());
            }
        }
    }

    /// Reports it as unreachable. Its keys are held until its messages have a durable outcome, since the
    /// comet may accept later calls.
    pub(super) fn give_up(self, why: String) {
        match self.outcome {
            OutcomeSink::Run(slot) => {
                let keys = keys_of(&self.target, self.room.as_ref()).into_held();
                report(self.run, &CallOutcome::Unreachable(why), &slot.state, Some((&keys, self.number)));
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
        match (&self.outcome, &other.outcome) {
            (OutcomeSink::Part(mine), OutcomeSink::Part(others)) => Arc::ptr_eq(mine, others),
            _ => false,
        }
    }

    /// Counts an attempt at a part of a call; `false` if the limit is reached.
    pub(super) fn may_be_called(&self) -> bool {
        let OutcomeSink::Part(parts) = &self.outcome else { return true };
        parts.calls.fetch_add(1, Ordering::Relaxed) < MAX_CALLS.max(parts.connections / CALLED_TOGETHER)
    }

    /// Reports its connections as unreachable without an attempt.
    pub(super) fn settle_unasked(self) {
        let OutcomeSink::Part(parts) = &self.outcome else { return };
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
        if let OutcomeSink::Part(parts) = &self.outcome {
            parts.progress.lock().cause.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Why the comet did not accept the call as a whole.
    pub(super) fn not_taken_whole(&self) -> Option<String> {
        let OutcomeSink::Part(parts) = &self.outcome else { return None };
        parts.progress.lock().cause.clone()
    }

    /// Whether it is a part of a split call.
    pub(super) fn is_part(&self) -> bool {
        matches!(self.outcome, OutcomeSink::Part(_))
    }

    /// The reason of the refusal if at least this many connections of the call refused it and none
    /// accepted it.
    pub(super) fn refused_by_all(&self, connections: usize) -> Option<String> {
        let OutcomeSink::Part(parts) = &self.outcome else { return None };
        let progress = parts.progress.lock();
        let is_refused = progress.taken == 0 && progress.refused.len() >= connections;
        progress.why[1].clone().filter(|_| is_refused)
    }

    /// How many connections of the call refused it; 0 if one accepted it.
    pub(super) fn refused_so_far(&self) -> usize {
        let OutcomeSink::Part(parts) = &self.outcome else { return 0 };
        let progress = parts.progress.lock();
        if progress.taken == 0 { progress.refused.len() } else { 0 }
    }
}
