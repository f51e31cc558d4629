//! What the answers to calls mean: for the messages, for the comet, and for its channel.

use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::debug;

use super::actor::Actor;
use super::call::{AttemptResult, InFlightCall};
use crate::comets::CallOutcome;
use crate::comets::breaker::BreakerState;
use crate::comets::grpc::CallFailure;
use crate::comets::retry::{self, RetryDecision};

/// The channel is replaced after this many timed-out calls: h2 closes a connection after 1,024
/// streams that this side reset, at an arbitrary moment.
const MAX_TIMEOUTS_PER_CHANNEL: u32 = 256;
/// A call for many connections is split after this many attempts that the comet answered with
/// "later".
const MAX_UNSPLIT_ATTEMPTS: u32 = 3;

impl Actor {
    /// Acts on the answer to a call, or on its absence.
    pub(super) fn answered(&mut self, mut answer: AttemptResult) {
        self.calls_in_flight -= 1;
        if let Some(offered) = answer.offered.take() {
            self.note_offer(answer.channel, offered);
        }
        let state = &self.active.state;
        state.in_flight().fetch_sub(answer.call.batch_len(), Ordering::Relaxed);
        state.metrics.seconds.observe(answer.took.as_secs_f64());
        let answer_of_comet = match &answer.result {
            // It goes to the stream.
            Err(CallFailure::Streams) => return self.ready.push(answer.call),
            Err(CallFailure::StreamNotServed) => return self.not_served(answer),
            Err(CallFailure::NoAnswer(_) | CallFailure::Forbidden(_)) => return self.failed(answer),
            Err(CallFailure::LocalFailure(_)) => return self.note_local_failure(answer),
            Ok(()) => None,
            Err(CallFailure::Status { code, text }) => Some((*code, text.clone())),
        };
        let AttemptResult { mut call, method, permit, took, result, .. } = answer;
        state.note_answer();
        self.last_answer = Instant::now();
        self.concurrency.answered(took, self.last_answer);
        let change = self.breaker.succeeded(permit);
        self.changed(change);
        if let (Some((code, text)), Err(failure)) = (answer_of_comet, result) {
            let decision = retry::decision(code, &text, self.dialect, method);
            return self.not_taken(call, decision, failure.text());
        }
        self.parked.forget(call.keys());
        call.settle(&CallOutcome::Acknowledged);
        self.resume(call);
    }

    /// The comet serves no stream, and calls are not wanted.
    fn not_served(&mut self, answer: AttemptResult) {
        let text = CallFailure::StreamNotServed.text();
        self.active.state.note_answer();
        self.active.state.note_error(&text);
        let change = self.breaker.succeeded(answer.permit);
        self.changed(change);
        self.fail_call(answer.call, &text);
    }

    /// Acts on an answer other than OK.
    fn not_taken(&mut self, mut call: InFlightCall, decision: RetryDecision, text: String) {
        let state = &self.active.state;
        state.note_error(&text);
        debug!(comet = %state.address, error = text, ?decision, "a comet did not accept a call");
        let now = Instant::now();
        match decision {
            // One of several messages was not accepted: find out which.
            _ if call.batch_len() > 1 => call.split_messages(),
            RetryDecision::RetryLater if call.is_whole() && call.failures() + 1 < MAX_UNSPLIT_ATTEMPTS => {
                return self.back_off(call, text);
            }
            // One of several connections did not accept it, or all of them.
            _ if call.keys().len() > 1 && decision.divides() => {
                call.split_connections(text);
                // Single connections show soonest whether the message itself is refused.
                let first = matches!(decision, RetryDecision::Refused { .. });
                return self.go_on_in_parts(call, first);
            }
            RetryDecision::RetryLater => return self.park(call, text),
            RetryDecision::NotTaken => {
                state.metrics.not_taken.inc_by(call.keys().len() as u64);
                call.keys().iter().for_each(|key| self.parked.remember(key, now));
                call.settle(&CallOutcome::Unreachable(text));
            }
            RetryDecision::Refused { .. } => call.refuse(&text),
        }
        self.resume(call);
    }

    /// Parks a message until its retry, with the messages of the same key. Other calls proceed.
    fn park(&mut self, mut call: InFlightCall, error: String) {
        if !self.parked.has_room() {
            return self.back_off(call, error);
        }
        self.active.state.metrics.retries.inc();
        let (failures, queued) = (call.note_failure(error.clone()), call.queued());
        let wait = retry::BACKOFF.wait_after(failures, fastrand::f64());
        let Some((name, waiting)) = call.take_front() else { return self.back_off(call, error) };
        let now = Instant::now();
        let last = queued.map_or(now, |queued| queued + self.timing.delivery_timeout);
        self.parked.park(name, waiting, failures, error, last.min(now + wait));
        self.resume(call);
    }

    /// Lets a call wait for its retry while it stays in the order queues.
    fn back_off(&mut self, mut call: InFlightCall, error: String) {
        self.active.state.metrics.retries.inc();
        let again = Instant::now() + retry::BACKOFF.wait_after(call.note_failure(error), fastrand::f64());
        if let Some(call) = self.without_expired(call, again) {
            self.backing_off.push((again, call));
        }
    }

    /// No answer: this counts against the comet's breaker.
    fn failed(&mut self, answer: AttemptResult) {
        let AttemptResult { call, permit, channel, took, timed_out, result, .. } = answer;
        let is_allowed = !matches!(result, Err(CallFailure::Forbidden(_)));
        let text = result.err().map(|failure| failure.text()).unwrap_or_default();
        let state = &self.active.state;
        state.note_error(&text);
        debug!(comet = %state.address, error = text, "a call failed");
        let now = Instant::now();
        if timed_out {
            self.concurrency.timed_out(took, now);
        }
        if timed_out && channel == self.channel {
            self.timed_out += 1;
            // A connection without any answer for the duration of a call may have lost its peer.
            let is_silent = self.last_answer + took <= now;
            if is_silent || self.timed_out >= MAX_TIMEOUTS_PER_CHANNEL {
                self.renew_channel();
            }
        }
        let change = self.breaker.failed(permit, now, fastrand::f64());
        self.changed(change);
        if self.breaker.state() != BreakerState::Closed {
            self.probe.opened(!timed_out, now);
            return self.fail_call(call, &text);
        }
        if !is_allowed {
            // A retry would go to the same address.
            return self.fail_call(call, &text);
        }
        self.back_off(call, text);
    }

    /// The call could not be made for a local reason, which is not the comet's failure. Dropping
    /// the permit lets another call probe the comet.
    fn note_local_failure(&mut self, answer: AttemptResult) {
        let AttemptResult { call, result, .. } = answer;
        let text = result.err().map(|failure| failure.text()).unwrap_or_default();
        let state = &self.active.state;
        state.note_error(&text);
        state.shortage.note(&text, Instant::now());
        self.back_off(call, text);
    }
}
