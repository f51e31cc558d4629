//! The streamed side of a comet's task: when the comet is asked for a stream, when one begins, and what
//! happens when it ends.
//!
//! ```text
//!   new channel --- the first calls ask ---> Welcome ---> once no call is in flight: stream
//!        ^                   |                                      |
//!        |                   | UNIMPLEMENTED, silence, an error     | the connection breaks, deadlines
//!        |                   v                                      | pass, the comet goes away
//!        |                 calls (asked again after ten minutes)    |
//!        |                   ^                                      |
//!        |                   +------ the comet breaks the protocol--+
//!        +----------------------------------------------------------+
//! ```
//!
//! Messages reach the stream through the order queues, or directly while those are empty. When a stream
//! ends, everything that is unsettled goes back to the order queues, in order, and from there to the
//! next stream or into calls. So whatever happens to messages that cannot be delivered (deadlines, the
//! breaker, their outcome) happens in one way, there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::actor::Actor;
use super::call::{InFlightCall, OrderItem};
use super::live_stream::{Leftovers, LiveStream, Over};
use super::stream_state::StreamEvent;
use super::stream_verdict::Verdict;
use crate::comets::breaker::BreakerState;
use crate::comets::channel::CometClient;
use crate::comets::grpc::CallFailure;
use crate::comets::metrics::StreamFailure;
use crate::comets::queued_call::QueuedCall;
use crate::comets::retry;
use crate::comets::source::ChannelMode;
use crate::comets::stream::open::{Declined, Offered, StreamEnd, StreamNews};
use crate::comets::stream::window::Progress;
use crate::comets::{CallOutcome, DeliveryMode};
use crate::telemetry::LogThrottle;

/// After this many streams in a row that were declined or failed, a warning is logged.
const WARN_AFTER: u32 = 3;
/// How long the end of the last stream may take at the end of the gateway.
const LINGER: Duration = Duration::from_millis(200);

/// Throttles lines about streams, over all comets.
static STREAM_LOG: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));

impl Actor {
    /// Takes a new call.
    pub(super) fn arrived(&mut self, call: QueuedCall, now: Instant) {
        let is_direct = self.queues.is_empty()
            && self.parked.is_empty()
            && self.active.state.held.is_empty()
            && self.breaker.state() == BreakerState::Closed;
        match &mut self.streaming.live {
            // Nothing is ahead of it.
            Some(live) if is_direct => live.push(call),
            _ => self.queue(call, now),
        }
    }

    /// Begins a stream that was offered, once no call is in flight; sends what waits. `is_last`: nothing
    /// more arrives.
    pub(super) fn stream(&mut self, is_last: bool) {
        let now = Instant::now();
        if self.streaming.next.is_some() && self.calls_in_flight == 0 {
            self.begin_stream(now);
        }
        if let Some(over) = self.streaming.live.as_mut().and_then(|live| live.check(now)) {
            self.end_stream(over);
        }
        if self.streaming.live.is_none() {
            return;
        }
        let has_others = !self.queues.is_empty() || !self.parked.is_empty();
        if has_others && self.breaker.state() == BreakerState::Closed {
            self.absorb(now);
        }
        if let Some(live) = &mut self.streaming.live {
            let sent = live.send(&self.streaming.limit, now);
            if sent > 0 {
                self.active.state.in_flight().fetch_add(sent, Ordering::Relaxed);
            }
            if is_last && self.queues.is_empty() {
                live.finish();
            }
        }
    }

    fn begin_stream(&mut self, now: Instant) {
        let Some(stream) = self.streaming.next.take() else { return };
        let mut live = LiveStream::new(stream, self.timing, self.with_ids, now);
        live.send_alone(std::mem::take(&mut self.streaming.send_alone));
        if self.breaker.state() != BreakerState::Closed {
            // One call probes the comet; the others fail while it does.
            let permit = self.breaker.admit(now);
            let Some((permit, call)) = permit.and_then(|permit| Some((permit, self.ready.pop()?))) else {
                // The next one asks again.
                return self.renew_channel();
            };
            let (token, calls) = call.into_calls();
            live.probe(token, permit, calls);
        }
        self.active.state.set_channel_mode(ChannelMode::Stream);
        debug!(comet = %self.active.state.address, "the comet takes messages by stream");
        self.streaming.live = Some(live);
        self.streaming.is_unasked = false;
    }

    /// Moves what waits for calls to the stream, except what is behind a held key. Each key keeps its
    /// order.
    fn absorb(&mut self, now: Instant) {
        let Some(mut live) = self.streaming.live.take() else { return };
        for name in self.parked.all_ready() {
            self.queues.push(name.keys(), None, OrderItem::Turn(name), now);
        }
        self.ready.extend(std::mem::take(&mut self.backing_off).into_iter().map(|(_, call)| call));
        loop {
            let call = match self.ready.pop() {
                Some(call) => call,
                None => match self.next_call(now) {
                    Some(Some(call)) => call,
                    Some(None) => continue,
                    None => break,
                },
            };
            let Some(mut call) = self.without_expired(call, now) else { continue };
            while let Some(mut next) = call.take_next(&mut self.parked, &self.active.state.held, now) {
                // One that waited for a held key has all of its time, as with calls.
                if next.queued + self.timing.delivery_timeout <= now {
                    next.queued = now;
                }
                live.push(next);
            }
            self.queues.finish(call.into_token(), now);
        }
        self.streaming.live = Some(live);
    }

    /// Notes what the comet answered when it was asked for a stream.
    pub(super) fn note_offer(&mut self, channel: u64, offered: Offered) {
        if channel != self.channel || !self.streaming.is_unasked {
            return;
        }
        self.note_answer_to_ask(offered);
    }

    fn note_answer_to_ask(&mut self, offered: Offered) {
        let only = self.streaming.wanted == DeliveryMode::Stream;
        let mode = match offered {
            Offered::Stream(stream) => {
                // Taken by the task that sees it first.
                if let Some(stream) = stream.lock().take() {
                    self.streaming.next = Some(stream);
                    self.streaming.is_unasked = false;
                }
                return;
            }
            Offered::NotServed => {
                self.streaming.failures = 0;
                if only { ChannelMode::StreamNotServed } else { ChannelMode::Unary }
            }
            Offered::Declined(Declined { reason, why }) => {
                self.count_stream_failure(reason, &why);
                if only { ChannelMode::Unknown } else { ChannelMode::Unary }
            }
        };
        if mode != self.active.state.channel_mode() {
            self.active.state.set_channel_mode(mode);
            self.log_mode(mode);
        }
        match mode {
            // Asked again on a new channel, with the next attempt.
            ChannelMode::Unknown | ChannelMode::Stream => self.renew_channel(),
            ChannelMode::Unary => self.streaming.is_unasked = false,
            ChannelMode::StreamNotServed => {}
        }
        if self.streaming.ask_again_at.is_none() {
            self.streaming.ask_later(Instant::now());
        }
    }

    fn log_mode(&self, mode: ChannelMode) {
        let address = &self.active.state.address;
        match mode {
            ChannelMode::StreamNotServed => {
                if let Some(held_back) = STREAM_LOG.admit() {
                    warn!(comet = %address, held_back, "{}", CallFailure::StreamNotServed.text());
                }
            }
            _ => debug!(comet = %address, ?mode, "how messages reach the comet has changed"),
        }
    }

    fn count_stream_failure(&mut self, reason: StreamFailure, why: &str) {
        self.streaming.failures += 1;
        let state = &self.active.state;
        state.metrics.stream_failed(reason);
        debug!(comet = %state.address, ?reason, error = why, "streamed delivery failed");
        if self.streaming.failures == WARN_AFTER
            && let Some(held_back) = STREAM_LOG.admit()
        {
            let (comet, failures) = (&state.address, WARN_AFTER);
            warn!(
                %comet, ?reason, error = why, failures, held_back,
                "streamed delivery to the comet keeps failing; check its implementation of halley.comet.v1.Delivery, or set [comets] delivery = \"unary\""
            );
        }
    }

    /// Handles an event of the stream.
    pub(super) fn stream_event(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::News(StreamNews::Progress) => self.handle_frames(),
            StreamEvent::News(StreamNews::Ending) => {
                self.streaming.live.iter_mut().for_each(LiveStream::go_away);
            }
            StreamEvent::News(StreamNews::Ended(end)) => self.end_stream(Over::Comet(end)),
            // A channel without an answer is noticed by its calls.
            StreamEvent::Asked(offered) => {
                offered.into_iter().for_each(|offered| self.note_answer_to_ask(offered));
            }
        }
    }

    fn handle_frames(&mut self) {
        let now = Instant::now();
        let mut frames = std::mem::take(&mut self.streaming.frames);
        let Some(live) = &mut self.streaming.live else { return };
        let mut sum = Progress::default();
        let mut violation = None;
        for frame in frames.drain(..) {
            match live.handle(frame, now) {
                Ok(progress) => {
                    sum.settled += progress.settled;
                    sum.took = sum.took.max(progress.took);
                }
                Err(why) => {
                    violation = Some(why);
                    break;
                }
            }
        }
        self.streaming.frames = frames;
        self.note_progress(sum, now);
        if let Some(why) = violation {
            self.end_stream(Over::Comet(StreamEnd::Violation(why.to_string())));
        }
    }

    fn note_progress(&mut self, progress: Progress, now: Instant) {
        self.active.state.note_answer();
        self.last_answer = now;
        if progress.settled == 0 {
            return;
        }
        (self.streaming.failures, self.streaming.fruitless) = (0, 0);
        let state = &self.active.state;
        state.in_flight().fetch_sub(progress.settled, Ordering::Relaxed);
        if let Some(took) = progress.took {
            state.metrics.seconds.observe(took.as_secs_f64());
            self.streaming.limit.answered_many(progress.settled, took, now);
        }
        let probe = self.streaming.live.as_mut().and_then(LiveStream::take_probe);
        let permit = match probe {
            Some((token, permit)) => {
                self.queues.finish(token, now);
                Some(permit)
            }
            None => self.breaker.admit(now),
        };
        if let Some(permit) = permit {
            let change = self.breaker.succeeded(permit);
            self.changed(change);
        }
    }

    /// Ends the last stream at the end of the task, and lets the comet see that.
    pub(super) async fn close_stream(&mut self) {
        let Self { streaming, drivers, .. } = self;
        let Some(live) = &mut streaming.live else { return };
        live.end();
        let ended = async {
            while !matches!(streaming.event().await, StreamEvent::News(StreamNews::Ended(_))) {
                streaming.frames.clear();
            }
        };
        drop(drivers.run(tokio::time::timeout(LINGER, ended)).await);
    }

    /// Handles the timers between streams. Those of a stream are checked whenever the task wakes.
    pub(super) fn stream_timers(&mut self) {
        let now = Instant::now();
        if self.streaming.held_until.is_some_and(|until| until <= now) {
            self.streaming.held_until = None;
        }
        if self.streaming.ask_again_at.is_some_and(|at| at <= now) {
            self.streaming.ask_again_at = None;
            match self.streaming.wanted {
                DeliveryMode::Auto => {
                    self.streaming.asking = self.client.as_ref().map(CometClient::ask_again)
                }
                DeliveryMode::Stream => self.renew_channel(),
                DeliveryMode::Unary => {}
            }
        }
    }

    /// Ends the stream, if there is one: what is unsettled goes back to the order queues.
    pub(super) fn end_stream(&mut self, over: Over) {
        let Some(live) = self.streaming.live.take() else { return };
        let now = Instant::now();
        let is_ending = live.is_ending();
        // What waits in the order queues is later than what the stream has.
        self.streaming.live = Some(live);
        if self.breaker.state() == BreakerState::Closed {
            self.absorb(now);
        }
        let Some(live) = self.streaming.live.take() else { return };
        let leftovers = live.into_leftovers();
        self.active.state.in_flight().fetch_sub(leftovers.sent, Ordering::Relaxed);
        self.active.state.set_channel_mode(ChannelMode::Unknown);
        let verdict = Verdict::of(over, is_ending, &leftovers, self.timing);
        self.act_on(verdict, leftovers, now);
    }

    fn act_on(&mut self, verdict: Verdict, leftovers: Leftovers, now: Instant) {
        let Leftovers { mut calls, mut sent, probe, has_progress, was_alone } = leftovers;
        let Verdict { failure, why, is_away, is_timeout, keeps_channel, is_refusal } = verdict;
        let comet = &self.active.state.address;
        debug!(%comet, unacknowledged = sent, reason = why, "a stream ended");
        if let Some(reason) = failure {
            self.active.state.note_error(&why);
            self.count_stream_failure(reason, &why);
        }
        if !has_progress && !calls.is_empty() {
            self.streaming.fruitless += 1;
            let wait = retry::BACKOFF.wait_after(self.streaming.fruitless, fastrand::f64());
            self.streaming.held_until = Some(now + wait);
        }
        if is_timeout {
            self.streaming.limit.timed_out(self.timing.request_timeout, now);
        }
        let only = self.streaming.wanted == DeliveryMode::Stream;
        let is_refusal = only && is_refusal;
        if is_refusal && was_alone {
            calls.pop_front().into_iter().for_each(|call| call.settle(&CallOutcome::Refused(why.clone())));
            sent = 0;
        } else if is_refusal {
            // Calls are not wanted, and their answers would tell which message is at fault.
            self.streaming.send_alone = sent;
        }
        if keeps_channel && !only {
            // Calls take over.
            self.active.state.set_channel_mode(ChannelMode::Unary);
            self.streaming.ask_later(now);
        } else {
            self.renew_channel();
        }
        let permit = match probe {
            Some((token, permit)) => {
                // It had nothing but the probe.
                self.ready.push(InFlightCall::from_stream(token, calls, &why));
                Some(permit)
            }
            None => {
                self.requeue(calls, sent, &why, now);
                self.breaker.admit(now)
            }
        };
        let counts = is_away || is_timeout || (only && failure.is_some() && !is_refusal);
        if let Some(permit) = permit.filter(|_| counts) {
            let change = self.breaker.failed(permit, now, fastrand::f64());
            self.changed(change);
            if self.breaker.state() != BreakerState::Closed {
                self.probe.opened(!is_timeout, now);
            }
        }
    }

    fn requeue(&mut self, calls: VecDeque<QueuedCall>, sent: usize, why: &str, now: Instant) {
        let error: Arc<str> = why.into();
        for (at, mut call) in calls.into_iter().enumerate() {
            if at < sent {
                call.last_error = Some(Arc::clone(&error));
            }
            self.queue(call, now);
        }
    }
}
