//! A call with its messages (several only if the dialect merges them), and one attempt at it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::comets::breaker::AttemptPermit;
use crate::comets::channel::{self, CometClient};
use crate::comets::comet::parked::{ParkedCalls, ParkedQueue};
use crate::comets::grpc::CallFailure;
use crate::comets::hold::HeldKeys;
use crate::comets::message_run::{MAX_MERGED_BYTES, MAX_MERGED_MESSAGES};
use crate::comets::order::{OrderQueues, OrderToken};
use crate::comets::order_key::OrderKey;
use crate::comets::queued_call::QueuedCall;
use crate::comets::stream::open::Offered;
use crate::comets::trace_metadata::TraceMetadata;
use crate::comets::wire::Method;
use crate::comets::{CallOutcome, Dialect};
use crate::message::{CallTarget, ConnectionId};

/// When a comet does not accept a call for many connections, they are tried in groups of
/// `SPLIT_SIZE`, then of `DIVIDE_AGAIN`, then one by one.
const SPLIT_SIZE: usize = 64;
const DIVIDE_AGAIN: usize = 8;

/// An item of the order queues.
#[derive(Debug)]
pub(super) enum OrderItem {
    /// A new call.
    QueuedCall(QueuedCall),
    /// The retry of the calls that are parked under this key.
    Turn(OrderKey),
}

/// A call that holds the order of its keys.
pub(super) struct InFlightCall {
    token: OrderToken,
    /// In order; the front ones are part of the next attempt.
    calls: VecDeque<QueuedCall>,
    /// Whether each message gets a call of its own, although there are several. Then each call has one
    /// message.
    unmerged: bool,
    /// Whether its messages were parked, in this order.
    was_parked: bool,
    /// Whether the front message has an attempt even if it has expired.
    may_be_late: bool,
    failures: u32,
    last_error: Option<String>,
}

impl InFlightCall {
    /// A new call that may start. It merges with others, or each message has a call of its own.
    pub(super) fn new(token: OrderToken, call: QueuedCall, merges: bool) -> Self {
        let sent_before = || call.last_error.as_deref().map(str::to_owned);
        let last_error = call.not_taken_whole().or_else(sent_before);
        let calls = if merges { VecDeque::from([call]) } else { call.into_singles().collect() };
        let unmerged = calls.len() > 1;
        Self { token, calls, unmerged, was_parked: false, may_be_late: false, failures: 0, last_error }
    }

    /// A retry of parked calls.
    pub(super) fn from_parked(token: OrderToken, waiting: ParkedCalls) -> Self {
        let ParkedCalls { calls, failures, last_error, was_held, .. } = waiting;
        let calls = singles(calls);
        Self { token, calls, unmerged: true, was_parked: true, may_be_late: was_held, failures, last_error }
    }

    /// Calls that were sent by a stream and hold this order.
    pub(super) fn from_stream(token: OrderToken, calls: VecDeque<QueuedCall>, error: &str) -> Self {
        let (calls, last_error) = (singles(calls), Some(error.to_owned()));
        Self { token, calls, unmerged: true, was_parked: false, may_be_late: false, failures: 0, last_error }
    }

    /// Takes the next message that may go into a stream, and parks those that have to wait.
    pub(super) fn take_next(
        &mut self,
        parked: &mut ParkedQueue,
        held: &HeldKeys,
        now: Instant,
    ) -> Option<QueuedCall> {
        self.divide(parked, held, now);
        self.calls.pop_front()
    }

    /// Its messages, in order, and the token that frees the order of its keys.
    pub(super) fn into_calls(self) -> (OrderToken, VecDeque<QueuedCall>) {
        (self.token, self.calls)
    }

    /// Merges the messages that wait right behind it for the same room.
    pub(super) fn merge_following(&mut self, queues: &mut OrderQueues<OrderKey, OrderItem>) {
        let Some(first) = self.calls.front() else { return };
        let CallTarget::Room(room) = first.target.clone() else { return };
        let (mut messages, mut size) = (first.len(), first.merge_size());
        loop {
            let fits = |item: &OrderItem| {
                let OrderItem::QueuedCall(call) = item else { return false };
                messages + call.len() <= MAX_MERGED_MESSAGES
                    && size + call.merge_size() <= MAX_MERGED_BYTES
                    && matches!(&call.target, CallTarget::Room(other) if *other == room)
            };
            let Some(OrderItem::QueuedCall(call)) = queues.join_next(&self.token, fits) else { return };
            (messages, size) = (messages + call.len(), size + call.merge_size());
            self.calls.push_back(call);
        }
    }

    /// Parks what has to wait behind parked calls, and splits what cannot be one call.
    pub(super) fn divide(&mut self, parked: &mut ParkedQueue, held: &HeldKeys, now: Instant) {
        while let Some(call) = self.calls.front() {
            if call.is_divided && !parked.has_to_wait(call, held) {
                break;
            }
            let Some(call) = self.calls.pop_front() else { return };
            parked.divide(call, &mut self.calls, held, now);
        }
        // Parts of a split call are sent separately. Only a room's messages are merged.
        self.unmerged |= !self.keys().is_empty();
    }

    /// How many of its calls are part of the next attempt.
    fn attempted(&self) -> usize {
        if self.unmerged { self.calls.len().min(1) } else { self.calls.len() }
    }

    /// How many messages the next attempt carries.
    pub(super) fn batch_len(&self) -> usize {
        self.calls.iter().take(self.attempted()).map(QueuedCall::len).sum()
    }

    /// The connections that the next attempt names.
    pub(super) fn keys(&self) -> &[ConnectionId] {
        self.calls.front().map(QueuedCall::keys).unwrap_or_default()
    }

    /// The request of the next attempt.
    pub(super) fn request(&self, dialect: Dialect, with_ids: bool) -> (channel::GrpcRequest, Method) {
        let first = &self.calls[0];
        let request = match &first.target {
            CallTarget::Room(room) if self.batch_len() > 1 => {
                let calls = self.calls.iter().take(self.attempted());
                dialect.merged(room, calls.map(QueuedCall::frames).collect())
            }
            target => dialect.request(target, first.payload()),
        };
        let method = request.method;
        let calls = self.calls.iter().take(if with_ids { self.attempted() } else { 0 });
        let is_replayed = with_ids && first.payload().is_replayed();
        let ids = calls.filter_map(QueuedCall::ids);
        (channel::GrpcRequest::new(request, ids, self.shared_trace(), is_replayed), method)
    }

    /// The trace context of the next attempt's messages, if they share one.
    fn shared_trace(&self) -> Option<&TraceMetadata> {
        let first = self.calls.front()?.payload().trace()?;
        let mut messages = self.calls.iter().take(self.attempted()).flat_map(QueuedCall::messages);
        messages.all(|message| message.payload.trace() == Some(first)).then_some(first)
    }

    /// Reports the outcome of the attempt's messages.
    pub(super) fn settle(&mut self, delivered: &CallOutcome) {
        for call in self.calls.drain(..self.attempted()) {
            call.settle(delivered);
        }
        self.failures = 0;
    }

    /// The attempt's message was rejected permanently. Once `SPLIT_SIZE` of its connections rejected it
    /// and none accepted it, the message is at fault, and the other connections are not tried.
    pub(super) fn refuse(&mut self, why: &str) {
        let Some(call) = self.calls.pop_front() else { return };
        while call.refused_so_far() >= SPLIT_SIZE
            && self.calls.front().is_some_and(|next| next.is_sibling_of(&call))
            && let Some(next) = self.calls.pop_front()
        {
            next.settle(&CallOutcome::Refused(why.to_owned()));
        }
        call.settle(&CallOutcome::Refused(why.to_owned()));
        self.failures = 0;
    }

    /// From now on each message has a call of its own.
    pub(super) fn split_messages(&mut self) {
        self.calls = singles(std::mem::take(&mut self.calls));
        self.unmerged = true;
    }

    /// Whether it is for many connections and has not been split: the failure then may not be due to
    /// some of them.
    pub(super) fn is_whole(&self) -> bool {
        self.keys().len() > SPLIT_SIZE && !self.calls.front().is_some_and(QueuedCall::is_part)
    }

    /// From now on the connections of the front message have calls of their own, or in smaller
    /// groups first.
    pub(super) fn split_connections(&mut self, error: String) {
        let Some(call) = self.calls.pop_front() else { return };
        let size = [SPLIT_SIZE, DIVIDE_AGAIN].into_iter().find(|size| call.keys().len() > *size).unwrap_or(1);
        let groups = call.keys().chunks(size).map(<[_]>::to_vec).collect();
        let parts = call.split(groups);
        parts.iter().take(1).for_each(|part| part.note_not_taken_whole(&error));
        parts.into_iter().rev().for_each(|part| self.calls.push_front(part));
        self.unmerged = true;
        self.failures = 0;
        self.last_error = Some(error);
    }

    /// Whether its parts may start on their own: no room's order binds them together.
    pub(super) fn is_in_parts(&self) -> bool {
        !self.was_parked
            && self.calls.len() > 1
            && self.calls.iter().all(|call| call.room.is_none() && !call.keys().is_empty())
    }

    /// Settles the parts that are not worth another call: every connection so far refused their
    /// message, or too many calls were made for it.
    pub(super) fn withdraw(&mut self) {
        while self.failures == 0
            && let Some(call) = self.calls.pop_front()
        {
            if let Some(why) = call.refused_by_all(SPLIT_SIZE) {
                call.settle(&CallOutcome::Refused(why));
            } else if !call.may_be_called() {
                call.settle_unasked();
            } else {
                return self.calls.push_front(call);
            }
        }
    }

    /// Removes the front message, which is to be retried, and the messages of the same key behind it.
    pub(super) fn take_front(&mut self) -> Option<(OrderKey, VecDeque<QueuedCall>)> {
        let name = OrderKey::of(&self.calls.front()?.target)?;
        let (waiting, rest) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition(|call| name.covers(&call.target, call.room.as_ref()));
        self.calls = rest;
        self.failures = 0;
        Some((name, waiting))
    }

    /// How many attempts at the front message failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// When the front message was queued.
    pub(super) fn queued(&self) -> Option<Instant> {
        self.calls.front().map(|call| call.queued)
    }

    /// Counts a failed attempt; returns how many there were.
    pub(super) fn note_failure(&mut self, error: String) -> u32 {
        self.failures += 1;
        self.last_error = Some(error);
        self.failures
    }

    /// Drops the messages whose partition was cancelled meanwhile.
    pub(super) fn drop_cancelled(&mut self) {
        let before = self.calls.len();
        self.calls.retain(|call| !call.is_cancelled());
        if self.calls.len() < before {
            self.failures = 0;
        }
    }

    /// Fails the messages that are expired at this time. Returns whether one of them never had an
    /// attempt.
    pub(super) fn expire(&mut self, at: Instant, delivery_timeout: Duration) -> bool {
        let mut was_behind = false;
        // The oldest is the first.
        while !self.may_be_late && self.calls.front().is_some_and(|call| at >= call.queued + delivery_timeout)
        {
            let why = match &self.last_error {
                Some(error) => format!("no success within {delivery_timeout:?}: {error}"),
                None => {
                    was_behind = true;
                    format!("queued behind others for {delivery_timeout:?}: the comet does not keep up")
                }
            };
            if let Some(call) = self.calls.pop_front() {
                call.give_up(why);
            }
            self.failures = 0;
        }
        was_behind
    }

    /// Fails all messages.
    pub(super) fn fail_all(&mut self, why: &str, last_error: Option<String>) {
        let why = match last_error {
            Some(error) if error != why => format!("{why}; last error: {error}"),
            _ => why.to_owned(),
        };
        for call in self.calls.drain(..) {
            call.give_up(why.clone());
        }
    }

    /// Whether the front message waits for the release of its key.
    pub(super) fn is_held(&self, held: &HeldKeys) -> bool {
        self.calls.front().is_some_and(|call| ParkedQueue::is_held(call, held))
    }

    /// The front message has its attempt now.
    pub(super) fn begin_attempt(&mut self) {
        self.may_be_late = false;
    }

    /// Whether every message has its outcome.
    pub(super) fn is_done(&self) -> bool {
        self.calls.is_empty()
    }

    /// The token that frees the order of the call's keys.
    pub(super) fn into_token(self) -> OrderToken {
        self.token
    }
}

/// Whether the comet is asked for a stream before the first call on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// No: it has answered, or streams are not wanted.
    No,
    /// Yes; without a stream, calls are made.
    First,
    /// Yes; without a stream, no calls are made.
    Only,
}

/// One attempt at a call, ready to run.
pub(super) struct Attempt {
    pub(super) client: CometClient,
    pub(super) asks: Asks,
    pub(super) channel: u64,
    pub(super) call: InFlightCall,
    pub(super) permit: AttemptPermit,
    pub(super) request: channel::GrpcRequest,
    pub(super) method: Method,
    pub(super) timeout: Duration,
}

/// How an attempt ended.
pub(super) struct AttemptResult {
    pub(super) call: InFlightCall,
    pub(super) method: Method,
    pub(super) permit: AttemptPermit,
    pub(super) channel: u64,
    pub(super) took: Duration,
    pub(super) timed_out: bool,
    pub(super) result: Result<(), CallFailure>,
    /// What the comet offered, if it was asked.
    pub(super) offered: Option<Offered>,
}

impl Attempt {
    pub(super) async fn run(self) -> AttemptResult {
        let Self { client, asks, channel, call, permit, request, method, timeout } = self;
        let (started, mut offered) = (Instant::now(), None);
        let calling = async {
            if asks != Asks::No {
                match offered.insert(client.offered().await?) {
                    Offered::Stream(_) => return Err(CallFailure::Streams),
                    Offered::NotServed if asks == Asks::Only => return Err(CallFailure::StreamNotServed),
                    Offered::Declined(declined) if asks == Asks::Only => {
                        return Err(CallFailure::NoAnswer(declined.why.clone()));
                    }
                    Offered::NotServed | Offered::Declined(_) => {}
                }
            }
            client.call(request).await
        };
        let (result, timed_out) = match tokio::time::timeout(timeout, calling).await {
            Ok(result) => (result, false),
            Err(_) => (Err(CallFailure::NoAnswer(format!("no answer within {timeout:?}"))), true),
        };
        AttemptResult { call, method, permit, channel, took: started.elapsed(), timed_out, result, offered }
    }
}

/// The same messages, each in a call of its own.
fn singles(calls: VecDeque<QueuedCall>) -> VecDeque<QueuedCall> {
    calls.into_iter().flat_map(QueuedCall::into_singles).collect()
}
