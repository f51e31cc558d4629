//! The task of one comet: it owns the lanes, the breaker and the channel.
//!
//! A call holds its lanes until its outcome, so that what is behind it cannot overtake it. While
//! the comet cannot be reached, that is so through all attempts. When the comet answers but does
//! not take a message now, only the order of that room or connection is kept: see `parked` and
//! `backlog`. `turns` says when a call gives its lanes to others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::active::Active;
use super::backlog::Backlog;
use super::call::{Answer, Attempt, Call, Item};
use super::parked::Parked;
use super::probe::{Found, Probe};
use crate::comets::breaker::{self, Breaker, Change, Permit, State};
use crate::comets::channel::{Client, Dialer, Failure};
use crate::comets::job::{Job, Standing};
use crate::comets::lanes::Lanes;
use crate::comets::retry::{self, Meaning};
use crate::comets::{Config, Delivered, Dialect, Timing};
use crate::telemetry::LogThrottle;

/// After this many timed-out calls a channel is made anew: a connection ends by itself after
/// 1,024 streams that this side reset (h2), at a moment of its own choice.
const WORN_OUT_AFTER: u32 = 256;
/// After so many attempts that a comet answered with "later", a call for many connections is
/// divided.
const WHOLE_ATTEMPTS: u32 = 3;
/// How many parcels are taken over at a time.
const INTAKE: usize = 64;

/// Lines about comets that come and go, of all comets: thousands may at once, and a hostile one may
/// as often as it likes.
static AWAY: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));
static BACK: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));

pub(super) struct Actor {
    pub(super) active: Active,
    dialer: Dialer,
    /// `None` until the first call, and when it is to be made anew.
    client: Option<Client>,
    /// Counts the channels, so that a call of an older one does not wear out its successor.
    channel: u64,
    /// When something was answered last.
    last_answer: Instant,
    /// Calls that timed out on this channel.
    timed_out: u32,
    pub(super) probe: Probe,
    pub(super) timing: Timing,
    dialect: Dialect,
    /// Whether calls carry the ids of their messages.
    with_ids: bool,
    /// Whether waiting messages for one room travel in one call.
    pub(super) merges: bool,
    breaker: Breaker,
    pub(super) lanes: Lanes<Item>,
    pub(super) lane_count: usize,
    /// What waits for another attempt without holding a lane.
    pub(super) parked: Parked,
    /// What a call is divided into, of which each part takes its turn.
    pub(super) backlog: Backlog,
    /// Calls that go on at once.
    pub(super) due: Vec<Call>,
    /// Calls that hold their lanes and wait to be tried again, each until its moment.
    pub(super) resting: Vec<(Instant, Call)>,
}

impl Actor {
    pub(super) fn new(standing: Arc<Standing>, dialer: Dialer, config: &Config, timing: Timing) -> Self {
        Self {
            client: None,
            dialer,
            channel: 0,
            last_answer: Instant::now(),
            timed_out: 0,
            probe: Probe::new(config.breaker_open, timing.timeout),
            active: Active::new(standing),
            timing,
            merges: config.dialect == Dialect::Goim,
            dialect: config.dialect,
            with_ids: config.message_ids,
            breaker: Breaker::new(breaker::Settings {
                failures: config.breaker_failures,
                patience: config.breaker_patience,
                open: config.breaker_open,
                open_max: config.breaker_open_max,
            }),
            lanes: Lanes::new(config.lanes),
            lane_count: config.lanes,
            parked: Parked::default(),
            backlog: Backlog::new(config.lanes),
            due: Vec::new(),
            resting: Vec::new(),
        }
    }

    /// Works until nobody can send any more and everything has its outcome.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        let (mut calls, mut probes) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut arrived = Vec::with_capacity(INTAKE);
        let mut open = true;
        loop {
            while let Some(attempt) = self.next_attempt() {
                calls.push(attempt.run());
            }
            if !open && self.is_idle() {
                return;
            }
            let wake = self.wakes_at();
            tokio::select! {
                biased;
                Some(answer) = calls.next(), if !calls.is_empty() => self.answered(answer),
                Some(found) = probes.next(), if !probes.is_empty() => self.found(found),
                received = inbox.recv_many(&mut arrived, INTAKE), if open => {
                    open = received > 0;
                    if !open && self.active.standing.is_evicted() {
                        // Dropping what waits tells its receipts.
                        return;
                    }
                    for job in arrived.drain(..) {
                        self.lanes.push(job.lanes, Item::Job(job));
                    }
                }
                () = sleep_until(wake), if wake.is_some() => {
                    self.wake();
                    probes.extend(self.probe.due(&self.dialer, Instant::now()));
                }
                // Only if something is left in the lanes that is neither called nor waiting,
                // which the lanes rule out. Dropping it tells its receipts.
                else => return,
            }
        }
    }

    /// The next attempt that may start now. Calls that may not be tried end here.
    fn next_attempt(&mut self) -> Option<Attempt> {
        loop {
            let call = match self.due.pop() {
                Some(call) => call,
                None => match self.next_call()? {
                    Some(call) => call,
                    None => continue,
                },
            };
            let now = Instant::now();
            let Some(mut call) = self.without_expired(call, now) else { continue };
            call.divide(&mut self.parked, &mut self.backlog, now);
            if !call.may_start() {
                self.go_on(call);
                continue;
            }
            call.withdraw();
            if call.is_done() {
                self.go_on(call);
                continue;
            }
            let Some(permit) = self.breaker.admit(now) else {
                self.end(call, "the comet's breaker is open");
                continue;
            };
            self.active.set(self.breaker.state());
            return Some(self.attempt(call, permit));
        }
    }

    fn attempt(&mut self, call: Call, permit: Permit) -> Attempt {
        let client = self.client.get_or_insert_with(|| self.dialer.dial()).clone();
        let (request, method) = call.request(self.dialect, self.with_ids);
        self.active.standing.in_flight().fetch_add(call.together(), Ordering::Relaxed);
        Attempt { client, channel: self.channel, call, permit, request, method, timeout: self.timing.timeout }
    }

    fn answered(&mut self, answer: Answer) {
        let standing = &self.active.standing;
        standing.in_flight().fetch_sub(answer.call.together(), Ordering::Relaxed);
        standing.metrics.seconds.observe(answer.took.as_secs_f64());
        let answer_of_comet = match &answer.result {
            Err(Failure::NoAnswer(_) | Failure::NotAllowed(_)) => return self.failed(answer),
            Err(Failure::OurFault(_)) => return self.not_made(answer),
            Ok(()) => None,
            Err(Failure::Answer { code, text }) => Some((*code, text.clone())),
        };
        let Answer { mut call, method, permit, result, .. } = answer;
        standing.note_answer();
        self.last_answer = Instant::now();
        let change = self.breaker.succeeded(permit);
        self.changed(change);
        if let (Some((code, text)), Err(failure)) = (answer_of_comet, result) {
            let meaning = retry::meaning(code, &text, self.dialect, method);
            return self.not_taken(call, meaning, failure.text());
        }
        self.parked.forget(call.keys());
        call.settle(&Delivered::Acknowledged);
        self.go_on(call);
    }

    /// Acts on an answer other than OK.
    fn not_taken(&mut self, mut call: Call, meaning: Meaning, text: String) {
        let standing = &self.active.standing;
        standing.note_error(&text);
        debug!(comet = %standing.address, error = text, ?meaning, "a comet did not take a call");
        let now = Instant::now();
        match meaning {
            // One of several messages was not taken: find out which.
            _ if call.together() > 1 => call.try_singly(),
            Meaning::Later
                if call.keys().len() > 1 && call.is_whole() && call.failures() + 1 < WHOLE_ATTEMPTS =>
            {
                return self.rest(call, text);
            }
            // One of several connections did not take it, or all of them.
            _ if call.keys().len() > 1 && meaning.divides() => call.try_fewer_connections(meaning, text),
            Meaning::Later => return self.park(call, text),
            Meaning::NotTaken => {
                standing.metrics.not_taken.inc_by(call.keys().len() as u64);
                call.keys().iter().for_each(|key| self.parked.remember(key, now));
                call.settle(&Delivered::Unreachable(text));
            }
            Meaning::Refused { .. } => call.refuse(&text),
        }
        self.go_on(call);
    }

    /// Nobody answered: that is the comet, and counts against its breaker.
    fn failed(&mut self, answer: Answer) {
        let Answer { call, permit, channel, took, timed_out, result, .. } = answer;
        let is_allowed = !matches!(result, Err(Failure::NotAllowed(_)));
        let text = result.err().map(|failure| failure.text()).unwrap_or_default();
        let standing = &self.active.standing;
        standing.note_error(&text);
        debug!(comet = %standing.address, error = text, "a call failed");
        let now = Instant::now();
        if timed_out && channel == self.channel {
            self.timed_out += 1;
            // A connection that is silent for as long as a call may take is perhaps one whose
            // other end is gone.
            let is_silent = self.last_answer + took <= now;
            if is_silent || self.timed_out >= WORN_OUT_AFTER {
                self.renew_channel();
            }
        }
        let change = self.breaker.failed(permit, now, fastrand::f64());
        self.changed(change);
        if self.breaker.state() != State::Closed {
            self.probe.opened(!timed_out, now);
            return self.end(call, &text);
        }
        if !is_allowed {
            // Another attempt leads to the same address.
            return self.end(call, &text);
        }
        self.rest(call, text);
    }

    /// The call could not be made, which is not the comet's fault. Dropping the permit lets
    /// another call find out about the comet.
    fn not_made(&mut self, answer: Answer) {
        let Answer { call, result, .. } = answer;
        let text = result.err().map(|failure| failure.text()).unwrap_or_default();
        let standing = &self.active.standing;
        standing.note_error(&text);
        standing.shortage.note(&text, Instant::now());
        self.rest(call, text);
    }

    /// Takes in whether the comet can be reached again.
    fn found(&mut self, found: Found) {
        let Some(client) = self.probe.found(found, Instant::now()) else { return };
        self.renew_channel();
        self.client = Some(client);
        self.active.standing.note_answer();
        let change = self.breaker.is_back();
        self.changed(change);
    }

    /// Acts on what a report did to the breaker.
    fn changed(&mut self, change: Change) {
        if change == Change::Nothing {
            return;
        }
        let address = &self.active.standing.address;
        match change {
            Change::Nothing => {}
            Change::Opened(time) => {
                let error = self.active.standing.last_error().unwrap_or_default();
                let Some(held_back) = AWAY.admit() else {
                    debug!(comet = %address, error, retry_in = ?time, "its breaker is open");
                    return self.state_changed();
                };
                warn!(
                    comet = %address, error, retry_in = ?time, held_back,
                    "a comet does not answer: its breaker is open, its recipients go to the offline policy; check that the comet runs and can be reached"
                );
            }
            Change::StillOpen(time) => debug!(comet = %address, retry_in = ?time, "the probe failed"),
            Change::Closed => {
                if let Some(held_back) = BACK.admit() {
                    info!(comet = %address, held_back, "the comet answers again: its breaker is closed");
                }
            }
        }
        self.state_changed();
    }

    /// The breaker's state is another one.
    fn state_changed(&mut self) {
        self.active.set(self.breaker.state());
        if self.breaker.state() == State::Closed {
            self.probe.closed();
        }
        if self.breaker.state() == State::Open {
            // The probe shall find out about the comet, not about an old connection.
            self.renew_channel();
            for (_, call) in std::mem::take(&mut self.resting) {
                self.end(call, "the comet's breaker is open");
            }
            let why = self.open_breaker();
            for job in self.take_waiting() {
                job.settle(Delivered::Unreachable(why.clone()));
            }
        }
    }

    fn renew_channel(&mut self) {
        self.client = None;
        self.channel += 1;
        self.timed_out = 0;
    }

    fn open_breaker(&self) -> String {
        let last = self.active.standing.last_error().unwrap_or_default();
        format!("the comet's breaker is open; last error: {last}")
    }
}

async fn sleep_until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment.into()).await;
    }
}
