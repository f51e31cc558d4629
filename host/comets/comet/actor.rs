//! The task of one comet: it owns the order queues, the breaker and the channel.
//!
//! A call stays in the order queues of its keys until it has its outcome, so later calls cannot
//! overtake it. While the comet is unreachable, this holds through all attempts. If the comet
//! answers but does not accept a message now, only the order of that room or connection is kept:
//! see `parked`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{FuturesUnordered, Stream as _};
use tokio::sync::mpsc;

use super::active::ActiveGauge;
use super::call::{Attempt, AttemptResult, InFlightCall, OrderItem};
use super::concurrency::ConcurrencyLimit;
use super::parked::ParkedQueue;
use super::probe::{HealthProbe, ProbeReply};
use super::queue_limit::QueueLimit;
use super::stream_state::{StreamEvent, Streaming};
use crate::comets::breaker::{self, AttemptPermit, Breaker, BreakerState};
use crate::comets::channel::{CometClient, Dialer, Drivers};
use crate::comets::message_run::{MAX_MERGED_BYTES, MAX_MERGED_MESSAGES};
use crate::comets::order::{OrderQueues, Weight, Window};
use crate::comets::order_key::OrderKey;
use crate::comets::queued_call::QueuedCall;
use crate::comets::source::ChannelMode;
use crate::comets::state::CometState;
use crate::comets::{CallTimeouts, Config, DeliveryMode, Dialect};
use crate::message::CallTarget;

/// How many batches of calls are received at a time.
const RECEIVE_BATCH: usize = 16;

pub(super) struct Actor {
    pub(super) active: ActiveGauge,
    dialer: Dialer,
    pub(super) drivers: Drivers,
    /// `None` before the first call, and when the next call needs a new connection.
    pub(super) client: Option<CometClient>,
    /// Counts the channels, so that timeouts of an older one do not count for its successor.
    pub(super) channel: u64,
    pub(super) streaming: Streaming,
    /// The last answer.
    pub(super) last_answer: Instant,
    /// Calls that timed out on this channel.
    pub(super) timed_out: u32,
    pub(super) concurrency: ConcurrencyLimit,
    pub(super) calls_in_flight: usize,
    queue_limit: QueueLimit,
    pub(super) probe: HealthProbe,
    pub(super) timing: CallTimeouts,
    pub(super) dialect: Dialect,
    /// Whether calls carry the ids of their messages.
    pub(super) with_ids: bool,
    /// Whether queued messages for one room are merged into one call.
    merges: bool,
    pub(super) breaker: Breaker,
    pub(super) queues: OrderQueues<OrderKey, OrderItem>,
    /// Calls that wait for another attempt outside the order queues.
    pub(super) parked: ParkedQueue,
    /// Calls that continue at once.
    pub(super) ready: Vec<InFlightCall>,
    /// Calls that wait for another attempt and stay in the order queues, with the time of the retry.
    pub(super) backing_off: Vec<(Instant, InFlightCall)>,
}

impl Actor {
    pub(super) fn new(
        state: Arc<CometState>,
        (dialer, drivers): (Dialer, Drivers),
        config: &Config,
        timing: CallTimeouts,
    ) -> Self {
        let merges = config.dialect == Dialect::Goim;
        if config.delivery == DeliveryMode::Unary {
            state.set_channel_mode(ChannelMode::Unary);
        }
        let window = Window {
            time: if merges { config.merge_window } else { Duration::ZERO },
            grid: config.merge_window / 10,
            items: MAX_MERGED_MESSAGES,
            bytes: MAX_MERGED_BYTES,
        };
        Self {
            client: None,
            dialer,
            drivers,
            channel: 0,
            last_answer: Instant::now(),
            timed_out: 0,
            streaming: Streaming::new(config.delivery, timing),
            concurrency: ConcurrencyLimit::new(timing.request_timeout),
            calls_in_flight: 0,
            queue_limit: QueueLimit::new(
                timing.delivery_timeout,
                state.metrics.success.get(),
                Instant::now(),
            ),
            active: ActiveGauge::new(state),
            probe: HealthProbe::new(config.breaker_open, timing.request_timeout),
            timing,
            merges,
            dialect: config.dialect,
            with_ids: config.message_ids,
            breaker: Breaker::new(breaker::BreakerSettings {
                failures: config.breaker_failures,
                window: config.breaker_window,
                open: config.breaker_open,
                open_max: config.breaker_open_max,
            }),
            queues: OrderQueues::new(window),
            parked: ParkedQueue::default(),
            ready: Vec::new(),
            backing_off: Vec::new(),
        }
    }

    /// Runs until all senders are gone and every call has its outcome.
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Vec<QueuedCall>>) {
        let (mut calls, mut probes) = (FuturesUnordered::new(), FuturesUnordered::new());
        let (mut arrived, mut answers) = (Vec::with_capacity(RECEIVE_BATCH), Vec::new());
        let mut open = true;
        let state = Arc::clone(&self.active.state);
        loop {
            self.stream(!open);
            self.limit_queue();
            while let Some(attempt) = self.next_attempt() {
                calls.push(attempt.run());
            }
            if !open && self.queues.is_empty() && self.parked.is_empty() && self.streaming.is_empty() {
                return self.close_stream().await;
            }
            let (wake, calling, has_parked) = (self.wakes_at(), !calls.is_empty(), !self.parked.is_empty());
            let streams = self.streaming.has_events();
            let next = async {
                tokio::select! {
                    biased;
                    () = ready(&mut calls, &mut answers), if calling => Next::Answers,
                    event = self.streaming.event(), if streams => Next::Stream(event),
                    Some(found) = probes.next() => Next::ProbeReply(found),
                    received = inbox.recv_many(&mut arrived, RECEIVE_BATCH), if open => Next::Arrived(received),
                    () = state.held.released.notified(), if has_parked => Next::Released,
                    () = sleep_until(wake), if wake.is_some() => Next::Wake,
                    // Cannot happen: a queued call is either ready or behind one that is in flight.
                    // If it did, dropping the calls would report their outcomes.
                    else => Next::Nothing,
                }
            };
            match self.drivers.run(next).await {
                Next::Answers => answers.drain(..).for_each(|answer| self.answered(answer)),
                Next::Stream(event) => self.stream_event(event),
                Next::ProbeReply(found) => self.found(found),
                Next::Arrived(received) => {
                    open = received > 0;
                    if !open && self.active.state.is_evicted() {
                        // Dropping the queued calls reports their outcomes.
                        return;
                    }
                    let now = Instant::now();
                    arrived.drain(..).flatten().for_each(|call| self.arrived(call, now));
                }
                Next::Wake => {
                    self.wake();
                    self.stream_timers();
                    probes.extend(self.probe.ready(&self.dialer, Instant::now()));
                }
                Next::Released => self.release_parked(),
                Next::Nothing => return,
            }
        }
    }

    /// Adapts the length of the queue to the comet's speed.
    fn limit_queue(&mut self) {
        let state = &self.active.state;
        if let Some(messages) = self.queue_limit.update(state.metrics.success.get(), Instant::now()) {
            state.set_quick(messages);
        }
    }

    pub(super) fn queue(&mut self, call: QueuedCall, now: Instant) {
        let merges = self.merges && matches!(call.target, CallTarget::Room(_));
        let weight = merges.then(|| Weight { items: call.len(), bytes: call.merge_size() });
        self.queues.push(call.order(), weight, OrderItem::QueuedCall(call), now);
    }

    /// When the next timer is due.
    fn wakes_at(&self) -> Option<Instant> {
        let calls = self.backing_off.iter().map(|(at, _)| *at);
        calls
            .chain(self.parked.next())
            .chain(self.probe.next())
            .chain(self.queues.wakes_at())
            .chain(self.streaming.wakes_at())
            .min()
    }

    /// The next attempt that may start now. Calls that may not be attempted fail here.
    fn next_attempt(&mut self) -> Option<Attempt> {
        if !self.concurrency.allows(self.calls_in_flight) {
            return None;
        }
        let now = Instant::now();
        let is_streaming = self.streaming.live.is_some() && self.breaker.state() == BreakerState::Closed;
        if is_streaming || self.streaming.holds(self.breaker.state(), now) {
            return None;
        }
        loop {
            let call = match self.ready.pop() {
                Some(call) => call,
                None => match self.next_call(now)? {
                    Some(call) => call,
                    None => continue,
                },
            };
            let Some(mut call) = self.without_expired(call, now) else { continue };
            let held = &self.active.state.held;
            if self.breaker.state() != BreakerState::Closed && call.is_held(held) {
                self.fail_call(call, "the comet's breaker is open");
                continue;
            }
            call.divide(&mut self.parked, held, now);
            if call.is_in_parts() {
                self.go_on_in_parts(call, false);
                continue;
            }
            call.withdraw();
            if call.is_done() {
                self.queues.finish(call.into_token(), now);
                continue;
            }
            let Some(permit) = self.breaker.admit(now) else {
                self.fail_call(call, "the comet's breaker is open");
                continue;
            };
            self.active.set(self.breaker.state());
            return Some(self.attempt(call, permit));
        }
    }

    /// The next call that may start. `Some(None)` if its parked calls are gone.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<Option<InFlightCall>> {
        let (token, item) = self.queues.next_ready(now)?;
        match item {
            OrderItem::QueuedCall(queued) => {
                let mut call = InFlightCall::new(token, queued, self.merges);
                if self.merges {
                    call.merge_following(&mut self.queues);
                }
                Some(Some(call))
            }
            OrderItem::Turn(name) => match self.parked.take(&name) {
                Some(waiting) => Some(Some(InFlightCall::from_parked(token, waiting))),
                None => {
                    self.queues.finish(token, now);
                    Some(None)
                }
            },
        }
    }

    fn attempt(&mut self, mut call: InFlightCall, permit: AttemptPermit) -> Attempt {
        call.begin_attempt();
        if self.client.as_ref().is_some_and(CometClient::is_closed) {
            self.renew_channel();
        }
        let client = self.client.get_or_insert_with(|| self.dialer.dial()).clone();
        let (request, method) = call.request(self.dialect, self.with_ids);
        self.active.state.in_flight().fetch_add(call.batch_len(), Ordering::Relaxed);
        self.calls_in_flight += 1;
        Attempt {
            client,
            asks: self.streaming.asks(),
            channel: self.channel,
            call,
            permit,
            request,
            method,
            timeout: self.timing.request_timeout,
        }
    }

    pub(super) fn renew_channel(&mut self) {
        self.streaming.channel_renewed();
        self.client = None;
        self.channel += 1;
        self.timed_out = 0;
    }

    /// Resumes the calls whose back-off is over.
    fn wake(&mut self) {
        let now = Instant::now();
        self.queues.wake(now);
        let over = self.backing_off.extract_if(.., |(at, _)| *at <= now);
        self.ready.extend(over.map(|(_, call)| call));
        for name in self.parked.ready(now) {
            self.queues.push(name.keys(), None, OrderItem::Turn(name), now);
        }
    }

    /// Lets the calls go on that waited behind a message which has its outcome now.
    fn release_parked(&mut self) {
        let now = Instant::now();
        for name in self.parked.released(&self.active.state.held) {
            self.queues.push(name.keys(), None, OrderItem::Turn(name), now);
        }
    }

    /// Drops messages that are cancelled, and fails those that are expired at this time; returns the
    /// call if any are left.
    pub(super) fn without_expired(&mut self, mut call: InFlightCall, at: Instant) -> Option<InFlightCall> {
        call.drop_cancelled();
        if call.expire(at, self.timing.delivery_timeout) {
            self.active.state.note_slow(self.timing.delivery_timeout);
        }
        if call.is_done() {
            self.queues.finish(call.into_token(), at);
            return None;
        }
        Some(call)
    }

    /// Puts the parts of a split call into the order queues, each on its own.
    pub(super) fn go_on_in_parts(&mut self, call: InFlightCall, first: bool) {
        if !call.is_in_parts() {
            return self.resume(call);
        }
        let (token, calls) = call.into_calls();
        let parts = calls.into_iter().map(|call| (call.order(), OrderItem::QueuedCall(call)));
        self.queues.divide(token, parts, first, Instant::now());
    }

    /// Continues with the rest of a call, or finishes it.
    pub(super) fn resume(&mut self, call: InFlightCall) {
        if call.is_done() {
            self.queues.finish(call.into_token(), Instant::now());
        } else {
            self.ready.push(call);
        }
    }

    pub(super) fn fail_call(&mut self, mut call: InFlightCall, why: &str) {
        call.fail_all(why, self.active.state.last_error());
        self.queues.finish(call.into_token(), Instant::now());
    }
}

/// What the task handles next.
enum Next {
    Answers,
    ProbeReply(ProbeReply),
    Stream(StreamEvent),
    Arrived(usize),
    Wake,
    Released,
    Nothing,
}

/// Waits for an answer, and collects all that have arrived. Never ready without calls.
async fn ready<F: Future<Output = AttemptResult>>(
    calls: &mut FuturesUnordered<F>,
    answers: &mut Vec<AttemptResult>,
) {
    std::future::poll_fn(|context| {
        while let Poll::Ready(Some(answer)) = Pin::new(&mut *calls).poll_next(context) {
            answers.push(answer);
        }
        if answers.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

async fn sleep_until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment.into()).await;
    }
}
