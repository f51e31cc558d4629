//! One comet: the task that owns its lanes, its breaker and its channel.
//!
//! A call holds its lanes from its first attempt to its outcome, so that what is behind it
//! cannot overtake it while it waits to be tried again.

mod call;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::breaker::{self, Breaker, Change, Permit, State};
use super::channel::{Client, Dialer};
use super::job::{Job, Standing};
use super::lanes::Lanes;
use super::retry::{self, Kind};
use super::{Config, Delivered, Parcel, Receipt, Timing};
use call::{Answer, Attempt, Call, Failure};

/// After this many timed-out calls a channel is made anew: a connection ends by itself after
/// 1,024 streams that this side reset (h2), at a moment of its own choice.
const WORN_OUT_AFTER: u32 = 256;
/// How many parcels are taken over at a time.
const INTAKE: usize = 64;

/// The fleet's end of a comet: where parcels are handed in.
#[derive(Debug)]
pub(super) struct Comet {
    pub(super) standing: Arc<Standing>,
    inbox: mpsc::Sender<Job>,
    lanes: usize,
    queue: usize,
}

impl Comet {
    /// A comet, and its task, which has to be spawned.
    pub(super) fn new(
        standing: Standing,
        dialer: Dialer,
        config: &Config,
        timing: Timing,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let standing = Arc::new(standing);
        let (sender, inbox) = mpsc::channel(config.queue);
        let actor = Actor {
            client: None,
            dialer,
            channel: 0,
            timed_out: 0,
            active: Active::new(Arc::clone(&standing)),
            timing,
            merges: config.dialect == super::Dialect::Goim,
            dialect: config.dialect,
            breaker: Breaker::new(breaker::Settings {
                failures: config.breaker_failures,
                patience: config.breaker_patience,
                open: config.breaker_open,
                open_max: config.breaker_open_max,
            }),
            lanes: Lanes::new(config.lanes),
            due: Vec::new(),
            resting: Vec::new(),
        };
        (Self { standing, inbox: sender, lanes: config.lanes, queue: config.queue }, actor.run(inbox))
    }

    /// Queues a parcel. Never waits.
    pub(super) fn send(&self, parcel: Parcel) -> Receipt {
        let Some((job, receipt)) = Job::queue(parcel, &self.standing, self.lanes, self.queue) else {
            self.standing.metrics.failed.inc();
            let why =
                format!("queue full: {} messages wait for {} already", self.queue, self.standing.address);
            return Receipt::known(Delivered::Unreachable(why));
        };
        // The queue has as many places as there can be jobs. When the task is gone, the job is
        // dropped, which tells the receipt.
        drop(self.inbox.try_send(job));
        Receipt::awaited(receipt)
    }

    /// Whether its task ended, which only a bug can bring about.
    pub(super) fn is_dead(&self) -> bool {
        self.inbox.is_closed()
    }
}

/// A comet's standing, counted as an active comet while its breaker is closed.
struct Active {
    standing: Arc<Standing>,
    counted: bool,
}

impl Active {
    fn new(standing: Arc<Standing>) -> Self {
        standing.metrics.active.inc();
        Self { standing, counted: true }
    }

    fn set(&mut self, state: State) {
        if self.standing.state() == state {
            return;
        }
        self.standing.set_state(state);
        let closed = state == State::Closed;
        self.standing.metrics.breaker_open.set(i64::from(!closed));
        if closed && !self.counted {
            self.standing.metrics.active.inc();
        } else if !closed && self.counted {
            self.standing.metrics.active.dec();
        }
        self.counted = closed;
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.counted {
            self.standing.metrics.active.dec();
        }
    }
}

struct Actor {
    active: Active,
    dialer: Dialer,
    /// `None` until the first call, and when it is to be made anew.
    client: Option<Client>,
    /// Counts the channels, so that a call of an older one does not wear out its successor.
    channel: u64,
    /// Calls that timed out on this channel.
    timed_out: u32,
    timing: Timing,
    dialect: super::Dialect,
    /// Whether waiting messages for one room travel in one call.
    merges: bool,
    breaker: Breaker,
    lanes: Lanes<Job>,
    /// Calls that go on at once.
    due: Vec<Call>,
    /// Calls that wait to be tried again, each until its moment. At most one for each lane.
    resting: Vec<(Instant, Call)>,
}

impl Actor {
    /// Works until nobody can send any more and everything has its outcome.
    async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        let mut calls = FuturesUnordered::new();
        let mut arrived = Vec::with_capacity(INTAKE);
        let mut open = true;
        loop {
            while let Some(attempt) = self.next_attempt() {
                calls.push(attempt.run());
            }
            if !open && self.lanes.is_empty() {
                return;
            }
            let wake = self.resting.iter().map(|(at, _)| *at).min();
            tokio::select! {
                biased;
                Some(answer) = calls.next(), if !calls.is_empty() => self.answered(answer),
                received = inbox.recv_many(&mut arrived, INTAKE), if open => {
                    open = received > 0;
                    for job in arrived.drain(..) {
                        self.lanes.push(job.lanes, job);
                    }
                }
                () = sleep_until(wake), if wake.is_some() => self.wake(),
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
                None => Call::next(&mut self.lanes, self.merges)?,
            };
            let now = Instant::now();
            let Some(call) = self.without_expired(call, now) else { continue };
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
        let (request, path) = call.request(self.dialect);
        self.active.standing.in_flight().fetch_add(call.together(), Ordering::Relaxed);
        Attempt { client, channel: self.channel, call, permit, request, path, timeout: self.timing.timeout }
    }

    fn answered(&mut self, answer: Answer) {
        let Answer { mut call, permit, channel, took, result } = answer;
        let standing = &self.active.standing;
        standing.in_flight().fetch_sub(call.together(), Ordering::Relaxed);
        standing.metrics.seconds.observe(took.as_secs_f64());
        let failure = match result {
            Ok(()) => None,
            Err(failure) if failure.kind == Kind::Permanent => Some(failure),
            Err(failure) => return self.failed(call, permit, channel, failure),
        };
        standing.note_answer();
        let change = self.breaker.succeeded(permit);
        self.changed(change);
        match failure {
            None => call.settle(&Delivered::Acknowledged),
            // One of several messages was refused: find out which.
            Some(_) if call.together() > 1 => call.try_singly(),
            Some(failure) => {
                self.active.standing.note_error(&failure.text);
                debug!(comet = %self.active.standing.address, error = failure.text, "a call was refused");
                call.settle(&Delivered::Refused(failure.text));
            }
        }
        self.go_on(call);
    }

    fn failed(&mut self, mut call: Call, permit: Permit, channel: u64, failure: Failure) {
        let standing = &self.active.standing;
        standing.metrics.retries.inc();
        standing.note_error(&failure.text);
        debug!(comet = %standing.address, error = failure.text, "a call failed");
        if failure.timed_out && channel == self.channel {
            self.timed_out += 1;
            if self.timed_out >= WORN_OUT_AFTER {
                self.renew_channel();
            }
        }
        let now = Instant::now();
        let change = self.breaker.failed(permit, now, fastrand::f64());
        self.changed(change);
        if self.breaker.state() != State::Closed {
            return self.end(call, &failure.text);
        }
        let again = now + retry::wait(call.note_failure(failure.text), fastrand::f64());
        if let Some(call) = self.without_expired(call, again) {
            self.resting.push((again, call));
        }
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
                warn!(
                    comet = %address, error, retry_in = ?time,
                    "a comet does not answer: its breaker is open, its recipients go to the offline policy; check that the comet runs and can be reached"
                );
            }
            Change::StillOpen(time) => debug!(comet = %address, retry_in = ?time, "the probe failed"),
            Change::Closed => info!(comet = %address, "the comet answers again: its breaker is closed"),
        }
        self.active.set(self.breaker.state());
        if self.breaker.state() == State::Open {
            // The probe shall find out about the comet, not about an old connection.
            self.renew_channel();
            for (_, call) in std::mem::take(&mut self.resting) {
                self.end(call, "the comet's breaker is open");
            }
        }
    }

    fn renew_channel(&mut self) {
        self.client = None;
        self.channel += 1;
        self.timed_out = 0;
    }

    /// Takes up the calls whose wait is over.
    fn wake(&mut self) {
        let now = Instant::now();
        let over = self.resting.extract_if(.., |(at, _)| *at <= now);
        self.due.extend(over.map(|(_, call)| call));
    }

    /// Ends what would be too old at a moment; returns the call if some of it is left.
    fn without_expired(&mut self, mut call: Call, at: Instant) -> Option<Call> {
        call.expire(at, self.timing.give_up_after);
        if call.is_done() {
            self.lanes.finish(call.into_token());
            return None;
        }
        Some(call)
    }

    /// Goes on with what is left of a call.
    fn go_on(&mut self, call: Call) {
        if call.is_done() {
            self.lanes.finish(call.into_token());
        } else {
            self.due.push(call);
        }
    }

    fn end(&mut self, mut call: Call, why: &str) {
        call.give_up(why, self.active.standing.last_error());
        self.lanes.finish(call.into_token());
    }
}

async fn sleep_until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment.into()).await;
    }
}
