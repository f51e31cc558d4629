//! The task of one comet: it owns the lanes, the breaker and the channel.
//!
//! A call holds its lanes until it has its outcome, so later calls cannot overtake it. While the
//! comet is unreachable, this holds through all attempts. If the comet answers but does not accept
//! a message now, only the order of that room or connection is kept: see `parked`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{FuturesUnordered, Stream as _};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::active::Active;
use super::call::{Answer, Attempt, Call, Item, MERGE_BYTES, MERGE_MESSAGES};
use super::parked::Parked;
use super::probe::{Found, Probe};
use crate::comets::breaker::{self, Breaker, Change, Permit, State};
use crate::comets::channel::{Client, Dialer, Drivers, Failure};
use crate::comets::job::{Job, OrderKey, Standing};
use crate::comets::order::{OrderQueues, Window};
use crate::comets::retry::{self, Meaning};
use crate::comets::{Config, Delivered, Dialect, Timing};
use crate::message::Target;
use crate::telemetry::LogThrottle;

/// The channel is replaced after this many timed-out calls: h2 closes a connection after 1,024
/// streams that this side reset, at an arbitrary moment.
const WORN_OUT_AFTER: u32 = 256;
/// A call for many connections is split after this many attempts that the comet answered with
/// "later".
const WHOLE_ATTEMPTS: u32 = 3;
/// How many calls are received at a time.
const INTAKE: usize = 64;

/// Throttles lines about breakers, over all comets: thousands may change at once, and a hostile
/// comet may change as often as it likes.
static AWAY: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));
static BACK: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));

pub(super) struct Actor {
    active: Active,
    dialer: Dialer,
    drivers: Drivers,
    /// `None` until the first call, and when it is to be made anew.
    client: Option<Client>,
    /// Counts the channels, so that timeouts of an older one do not count for its successor.
    channel: u64,
    /// The last answer.
    last_answer: Instant,
    /// Calls that timed out on this channel.
    timed_out: u32,
    probe: Probe,
    timing: Timing,
    dialect: Dialect,
    /// Whether calls carry the ids of their messages.
    with_ids: bool,
    /// Whether queued messages for one room are merged into one call.
    merges: bool,
    breaker: Breaker,
    queues: OrderQueues<OrderKey, Item>,
    /// What waits for another attempt without holding its place.
    parked: Parked,
    /// Calls that continue at once.
    due: Vec<Call>,
    /// Calls that hold their places and wait to be tried again, each until its moment.
    resting: Vec<(Instant, Call)>,
}

impl Actor {
    pub(super) fn new(
        standing: Arc<Standing>,
        (dialer, drivers): (Dialer, Drivers),
        config: &Config,
        timing: Timing,
    ) -> Self {
        let merges = config.dialect == Dialect::Goim;
        let window = Window {
            time: if merges { config.merge_window } else { Duration::ZERO },
            items: MERGE_MESSAGES,
            bytes: MERGE_BYTES,
        };
        Self {
            client: None,
            dialer,
            drivers,
            channel: 0,
            last_answer: Instant::now(),
            timed_out: 0,
            probe: Probe::new(config.breaker_open, timing.timeout),
            active: Active::new(standing),
            timing,
            merges,
            dialect: config.dialect,
            with_ids: config.message_ids,
            breaker: Breaker::new(breaker::Settings {
                failures: config.breaker_failures,
                patience: config.breaker_patience,
                open: config.breaker_open,
                open_max: config.breaker_open_max,
            }),
            queues: OrderQueues::new(window),
            parked: Parked::default(),
            due: Vec::new(),
            resting: Vec::new(),
        }
    }

    /// Runs until all senders are gone and every call has its outcome.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        let (mut calls, mut probes) = (FuturesUnordered::new(), FuturesUnordered::new());
        let (mut arrived, mut answers) = (Vec::with_capacity(INTAKE), Vec::new());
        let mut open = true;
        loop {
            while let Some(attempt) = self.next_attempt() {
                calls.push(attempt.run());
            }
            if !open && self.queues.is_empty() && self.parked.is_empty() {
                return;
            }
            let (wake, calling) = (self.wakes_at(), !calls.is_empty());
            let next = async {
                tokio::select! {
                    biased;
                    () = ready(&mut calls, &mut answers), if calling => Next::Answers,
                    Some(found) = probes.next() => Next::Found(found),
                    received = inbox.recv_many(&mut arrived, INTAKE), if open => Next::Arrived(received),
                    () = sleep_until(wake), if wake.is_some() => Next::Wake,
                    // Only if something is left in the queues that is neither called nor waiting,
                    // which the queues rule out. Dropping it tells its receipts.
                    else => Next::Nothing,
                }
            };
            match self.drivers.run(next).await {
                Next::Answers => answers.drain(..).for_each(|answer| self.answered(answer)),
                Next::Found(found) => self.found(found),
                Next::Arrived(received) => {
                    open = received > 0;
                    if !open && self.active.standing.is_evicted() {
                        // Dropping the queued calls resolves their handles.
                        return;
                    }
                    let now = Instant::now();
                    arrived.drain(..).for_each(|job| self.queue(job, now));
                }
                Next::Wake => {
                    self.wake();
                    probes.extend(self.probe.due(&self.dialer, Instant::now()));
                }
                Next::Nothing => return,
            }
        }
    }

    fn queue(&mut self, job: Job, now: Instant) {
        let merges = self.merges && matches!(job.target, Target::Room(_));
        let size = merges.then(|| job.payload.frame_len());
        self.queues.push(job.order.clone(), size, Item::Job(job), now);
    }

    /// When something is to be done again.
    fn wakes_at(&self) -> Option<Instant> {
        let calls = self.resting.iter().map(|(at, _)| *at);
        calls.chain(self.parked.next()).chain(self.probe.next()).chain(self.queues.wakes_at()).min()
    }

    /// The next attempt that may start now. Calls that may not be attempted fail here.
    fn next_attempt(&mut self) -> Option<Attempt> {
        let now = Instant::now();
        loop {
            let call = match self.due.pop() {
                Some(call) => call,
                None => match self.next_call(now)? {
                    Some(call) => call,
                    None => continue,
                },
            };
            let Some(mut call) = self.without_expired(call, now) else { continue };
            call.divide(&mut self.parked, now);
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
                self.end(call, "the comet's breaker is open");
                continue;
            };
            self.active.set(self.breaker.state());
            return Some(self.attempt(call, permit));
        }
    }

    /// The next call that may start; nothing inside when what had its turn is gone.
    fn next_call(&mut self, now: Instant) -> Option<Option<Call>> {
        let (token, item) = self.queues.next_ready(now)?;
        match item {
            Item::Job(job) => {
                let mut call = Call::new(token, job);
                if self.merges {
                    call.take_along(&mut self.queues);
                }
                Some(Some(call))
            }
            Item::Turn(name) => match self.parked.take(&name) {
                Some(waiting) => Some(Some(Call::again(token, waiting))),
                None => {
                    self.queues.finish(token, now);
                    Some(None)
                }
            },
        }
    }

    fn attempt(&mut self, call: Call, permit: Permit) -> Attempt {
        if self.client.as_ref().is_some_and(Client::is_closed) {
            self.renew_channel();
        }
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
        debug!(comet = %standing.address, error = text, ?meaning, "a comet did not accept a call");
        let now = Instant::now();
        match meaning {
            // One of several messages was not accepted: find out which.
            _ if call.together() > 1 => call.try_singly(),
            Meaning::Later if call.is_whole() && call.failures() + 1 < WHOLE_ATTEMPTS => {
                return self.rest(call, text);
            }
            // One of several connections did not take it, or all of them.
            _ if call.keys().len() > 1 && meaning.divides() => {
                call.try_fewer_connections(text);
                // Whether it is the message that is refused shows soonest with single connections.
                let first = matches!(meaning, Meaning::Refused { .. });
                return self.go_on_in_parts(call, first);
            }
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

    /// Parks a message until its retry, and with it those of the same name; the call's lanes
    /// continue with others.
    fn park(&mut self, mut call: Call, error: String) {
        if !self.parked.has_room() {
            return self.rest(call, error);
        }
        self.active.standing.metrics.retries.inc();
        let (failures, queued) = (call.note_failure(error.clone()), call.queued());
        let wait = retry::BACKOFF.wait_after(failures, fastrand::f64());
        let Some((name, waiting)) = call.take_front() else { return self.rest(call, error) };
        let now = Instant::now();
        let last = queued.map_or(now, |queued| queued + self.timing.give_up_after);
        self.parked.park(name, waiting, failures, error, last.min(now + wait));
        self.go_on(call);
    }

    /// Lets a call wait for its retry while it holds its lanes.
    fn rest(&mut self, mut call: Call, error: String) {
        self.active.standing.metrics.retries.inc();
        let again = Instant::now() + retry::BACKOFF.wait_after(call.note_failure(error), fastrand::f64());
        if let Some(call) = self.without_expired(call, again) {
            self.resting.push((again, call));
        }
    }

    /// No answer: this counts against the comet's breaker.
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
            // A connection without any answer for the duration of a call may have lost its peer.
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
            // A retry would go to the same address.
            return self.end(call, &text);
        }
        self.rest(call, text);
    }

    /// The call could not be made for a local reason, which is not the comet's failure. Dropping
    /// the permit lets another call probe the comet.
    fn not_made(&mut self, answer: Answer) {
        let Answer { call, result, .. } = answer;
        let text = result.err().map(|failure| failure.text()).unwrap_or_default();
        let standing = &self.active.standing;
        standing.note_error(&text);
        standing.shortage.note(&text, Instant::now());
        self.rest(call, text);
    }

    /// Handles the result of a health probe.
    fn found(&mut self, found: Found) {
        let Some(client) = self.probe.found(found, Instant::now()) else { return };
        self.renew_channel();
        self.client = Some(client);
        self.active.standing.note_answer();
        let change = self.breaker.is_back();
        self.changed(change);
    }

    /// Handles a change of the breaker.
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
                    debug!(comet = %address, error, retry_in = ?time, "the breaker is open");
                    return self.state_changed();
                };
                warn!(
                    comet = %address, error, retry_in = ?time, held_back,
                    "comet unreachable: its breaker is open and its recipients go to the offline policy; check that the comet runs and is reachable"
                );
            }
            Change::StillOpen(time) => debug!(comet = %address, retry_in = ?time, "the probe failed"),
            Change::Closed => {
                if let Some(held_back) = BACK.admit() {
                    info!(comet = %address, held_back, "comet recovered: its breaker is closed");
                }
            }
        }
        self.state_changed();
    }

    /// The breaker's state has changed.
    fn state_changed(&mut self) {
        self.active.set(self.breaker.state());
        if self.breaker.state() == State::Closed {
            self.probe.closed();
        }
        if self.breaker.state() == State::Open {
            // The probe has to test the comet, not an old connection.
            self.renew_channel();
            for (_, call) in std::mem::take(&mut self.resting) {
                self.end(call, "the comet's breaker is open");
            }
            let why = self.open_breaker();
            for job in self.parked.drain() {
                job.settle(Delivered::Unreachable(why.clone()));
            }
        }
    }

    fn renew_channel(&mut self) {
        self.client = None;
        self.channel += 1;
        self.timed_out = 0;
    }

    /// Resumes the calls whose back-off is over.
    fn wake(&mut self) {
        let now = Instant::now();
        self.queues.wake(now);
        let over = self.resting.extract_if(.., |(at, _)| *at <= now);
        self.due.extend(over.map(|(_, call)| call));
        for name in self.parked.due(now) {
            self.queues.push(name.keys(), None, Item::Turn(name), now);
        }
    }

    /// Drops messages that are cancelled, and fails those that are expired at this time; returns the
    /// call if any are left.
    fn without_expired(&mut self, mut call: Call, at: Instant) -> Option<Call> {
        call.forget_abandoned();
        if call.expire(at, self.timing.give_up_after) {
            self.active.standing.note_behind(self.timing.give_up_after);
        }
        if call.is_done() {
            self.queues.finish(call.into_token(), at);
            return None;
        }
        Some(call)
    }

    /// Goes on with a call that was divided: each part on its own, where nothing binds them together.
    fn go_on_in_parts(&mut self, call: Call, first: bool) {
        if !call.is_in_parts() {
            return self.go_on(call);
        }
        let (token, jobs) = call.into_parts();
        let parts = jobs.into_iter().map(|job| (job.order.clone(), Item::Job(job)));
        self.queues.divide(token, parts, first, Instant::now());
    }

    /// Goes on with what is left of a call.
    fn go_on(&mut self, call: Call) {
        if call.is_done() {
            self.queues.finish(call.into_token(), Instant::now());
        } else {
            self.due.push(call);
        }
    }

    fn open_breaker(&self) -> String {
        let last = self.active.standing.last_error().unwrap_or_default();
        format!("the comet's breaker is open; last error: {last}")
    }

    fn end(&mut self, mut call: Call, why: &str) {
        call.give_up(why, self.active.standing.last_error());
        self.queues.finish(call.into_token(), Instant::now());
    }
}

/// What the task goes on with.
enum Next {
    Answers,
    Found(Found),
    Arrived(usize),
    Wake,
    Nothing,
}

/// All answers that are there, of one at least; never ready without calls.
async fn ready<F: Future<Output = Answer>>(calls: &mut FuturesUnordered<F>, answers: &mut Vec<Answer>) {
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
