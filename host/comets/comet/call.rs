//! A call with its messages (several only if the dialect merges them), and one attempt at it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::comets::breaker::Permit;
use crate::comets::channel::{self, Client, Failure};
use crate::comets::comet::parked::{Parked, Waiting};
use crate::comets::job::{Job, OrderKey};
use crate::comets::order::{OrderQueues, Token};
use crate::comets::wire::Method;
use crate::comets::{Delivered, Dialect};
use crate::message::{ConnectionId, MESSAGE_ID, Target};

/// How much of what waits for one room may travel in one call.
pub(super) const MERGE_MESSAGES: usize = 100;
pub(super) const MERGE_BYTES: usize = 64 * 1024;
/// How much metadata their ids may take: gRPC's C++ servers refuse more than 8 KiB by default.
const MERGE_METADATA: usize = 7 * 1024;
/// When a call for many connections was not taken, they are tried in groups of so many, and then of
/// fewer, before each gets a call of its own.
const DIVIDE: usize = 64;
const DIVIDE_AGAIN: usize = 8;

/// An item of a lane.
#[derive(Debug)]
pub(super) enum Item {
    /// A new call.
    Job(Job),
    /// What is parked under a name and is to be tried again.
    Turn(OrderKey),
}

/// A call that occupies its lanes.
pub(super) struct Call {
    token: Token,
    /// In order; the front ones are part of the next attempt.
    jobs: VecDeque<Job>,
    /// Whether each message gets a call of its own, although there are several.
    singly: bool,
    /// Whether its messages were parked, in this order.
    was_parked: bool,
    failures: u32,
    last_error: Option<String>,
}

impl Call {
    /// A new call that may start.
    pub(super) fn new(token: Token, job: Job) -> Self {
        let last_error = job.not_taken_whole();
        let jobs = VecDeque::from([job]);
        Self { token, jobs, singly: false, was_parked: false, failures: 0, last_error }
    }

    /// A retry of parked calls.
    pub(super) fn again(token: Token, waiting: Waiting) -> Self {
        let Waiting { jobs, failures, last_error, .. } = waiting;
        Self { token, jobs, singly: true, was_parked: true, failures, last_error }
    }

    /// Takes along what waits right behind for the same room.
    pub(super) fn take_along(&mut self, queues: &mut OrderQueues<OrderKey, Item>) {
        let Some(first) = self.jobs.front() else { return };
        let Target::Room(room) = first.target.clone() else { return };
        let (mut bytes, mut metadata) = (first.payload.frame_len(), metadata_len(first));
        while self.jobs.len() < MERGE_MESSAGES {
            let fits = |item: &Item| {
                let Item::Job(job) = item else { return false };
                let same_room = matches!(&job.target, Target::Room(other) if *other == room);
                let small_enough = bytes + job.payload.frame_len() <= MERGE_BYTES
                    && metadata + metadata_len(job) <= MERGE_METADATA;
                same_room && small_enough
            };
            let Some(Item::Job(job)) = queues.join_next(&self.token, fits) else { return };
            bytes += job.payload.frame_len();
            metadata += metadata_len(&job);
            self.jobs.push_back(job);
        }
    }

    /// Parks what has to wait behind parked calls, and splits what cannot be one call.
    pub(super) fn divide(&mut self, parked: &mut Parked, now: Instant) {
        while self.jobs.front().is_some_and(|job| !job.is_divided) {
            let Some(job) = self.jobs.pop_front() else { return };
            parked.divide(job, &mut self.jobs, now);
        }
        // Parts of a split call are sent separately. Only a room's messages are merged.
        self.singly |= !self.keys().is_empty();
    }

    /// How many messages the next attempt carries.
    pub(super) fn together(&self) -> usize {
        if self.singly { self.jobs.len().min(1) } else { self.jobs.len() }
    }

    /// The connections that the next attempt is for by name.
    pub(super) fn keys(&self) -> &[ConnectionId] {
        self.jobs.front().map(Job::keys).unwrap_or_default()
    }

    /// The request of the next attempt.
    pub(super) fn request(&self, dialect: Dialect, with_ids: bool) -> (channel::Call, Method) {
        let jobs = || self.jobs.iter().take(self.together());
        let first = &self.jobs[0];
        let request = match &first.target {
            Target::Room(room) if self.together() > 1 => dialect.merged(room, jobs().map(|job| &job.payload)),
            target => dialect.request(target, &first.payload),
        };
        let method = request.method;
        let ids = jobs().take(if with_ids { MERGE_MESSAGES } else { 0 });
        (channel::Call::new(request, ids.map(|job| (&job.payload, &job.message))), method)
    }

    /// Reports the outcome of the attempt's messages.
    pub(super) fn settle(&mut self, delivered: &Delivered) {
        for job in self.jobs.drain(..self.together()) {
            job.settle(delivered.clone());
        }
        self.failures = 0;
    }

    /// The attempt's message was rejected permanently. Once `DIVIDE` of its connections rejected it
    /// and none accepted it, the message is at fault, and the other connections are not tried.
    pub(super) fn refuse(&mut self, why: &str) {
        let Some(job) = self.jobs.pop_front() else { return };
        while job.refused_so_far() >= DIVIDE
            && self.jobs.front().is_some_and(|next| next.is_sibling_of(&job))
            && let Some(next) = self.jobs.pop_front()
        {
            next.settle(Delivered::Refused(why.to_owned()));
        }
        job.settle(Delivered::Refused(why.to_owned()));
        self.failures = 0;
    }

    /// From now on each message has a call of its own.
    pub(super) fn try_singly(&mut self) {
        self.singly = true;
    }

    /// Whether it is for many connections and none of its parts was tried: then it is perhaps not
    /// about some of them.
    pub(super) fn is_whole(&self) -> bool {
        self.keys().len() > DIVIDE && !self.jobs.front().is_some_and(Job::is_part)
    }

    /// From now on the connections of the front message have calls of their own, or smaller
    /// groups of them first.
    pub(super) fn try_fewer_connections(&mut self, error: String) {
        let Some(job) = self.jobs.pop_front() else { return };
        let size = [DIVIDE, DIVIDE_AGAIN].into_iter().find(|size| job.keys().len() > *size).unwrap_or(1);
        let groups = job.keys().chunks(size).map(<[_]>::to_vec).collect();
        let parts = job.split(groups);
        parts.iter().take(1).for_each(|part| part.note_not_taken_whole(&error));
        parts.into_iter().rev().for_each(|part| self.jobs.push_front(part));
        self.singly = true;
        self.failures = 0;
        self.last_error = Some(error);
    }

    /// Whether its parts may start on their own: no room's order binds them together.
    pub(super) fn is_in_parts(&self) -> bool {
        !self.was_parked
            && self.jobs.len() > 1
            && self.jobs.iter().all(|job| job.room.is_none() && !job.keys().is_empty())
    }

    /// Takes it apart.
    pub(super) fn into_parts(self) -> (Token, VecDeque<Job>) {
        (self.token, self.jobs)
    }

    /// Settles the parts that are not worth a call any more: their message is refused by everybody,
    /// or there were too many calls for it.
    pub(super) fn withdraw(&mut self) {
        while self.failures == 0
            && let Some(job) = self.jobs.pop_front()
        {
            if let Some(why) = job.refused_by_all(DIVIDE) {
                job.settle(Delivered::Refused(why));
            } else if !job.may_be_called() {
                job.settle_unasked();
            } else {
                return self.jobs.push_front(job);
            }
        }
    }

    /// Takes out what has to wait with the front message, which another attempt may mend: that
    /// message, and those of the same name behind it.
    pub(super) fn take_front(&mut self) -> Option<(OrderKey, VecDeque<Job>)> {
        let name = OrderKey::of(self.jobs.front()?)?;
        let (waiting, rest) = std::mem::take(&mut self.jobs).into_iter().partition(|job| name.covers(job));
        self.jobs = rest;
        self.failures = 0;
        Some((name, waiting))
    }

    /// How many attempts at the front message failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// When the front message was queued.
    pub(super) fn queued(&self) -> Option<Instant> {
        self.jobs.front().map(|job| job.queued)
    }

    /// Counts a failed attempt; returns how many there were.
    pub(super) fn note_failure(&mut self, error: String) -> u32 {
        self.failures += 1;
        self.last_error = Some(error);
        self.failures
    }

    /// Drops the messages whose partition was cancelled meanwhile.
    pub(super) fn forget_abandoned(&mut self) {
        let before = self.jobs.len();
        self.jobs.retain(|job| !job.is_abandoned());
        if self.jobs.len() < before {
            self.failures = 0;
        }
    }

    /// Fails the messages that are expired at this time. Returns whether one of them never had an
    /// attempt.
    pub(super) fn expire(&mut self, at: Instant, give_up_after: Duration) -> bool {
        let mut was_behind = false;
        // The oldest is the first.
        while self.jobs.front().is_some_and(|job| at >= job.queued + give_up_after) {
            let why = match &self.last_error {
                Some(error) => format!("no success within {give_up_after:?}: {error}"),
                None => {
                    was_behind = true;
                    format!("queued behind others for {give_up_after:?}: the comet does not keep up")
                }
            };
            if let Some(job) = self.jobs.pop_front() {
                job.settle(Delivered::Unreachable(why));
            }
            self.failures = 0;
        }
        was_behind
    }

    /// Fails all messages.
    pub(super) fn give_up(&mut self, why: &str, last_error: Option<String>) {
        let why = match last_error {
            Some(error) if error != why => format!("{why}; last error: {error}"),
            _ => why.to_owned(),
        };
        for job in self.jobs.drain(..) {
            job.settle(Delivered::Unreachable(why.clone()));
        }
    }

    /// Whether every message has its outcome.
    pub(super) fn is_done(&self) -> bool {
        self.jobs.is_empty()
    }

    /// What frees the call's lanes.
    pub(super) fn into_token(self) -> Token {
        self.token
    }
}

/// One attempt at a call, ready to run.
pub(super) struct Attempt {
    pub(super) client: Client,
    pub(super) channel: u64,
    pub(super) call: Call,
    pub(super) permit: Permit,
    pub(super) request: channel::Call,
    pub(super) method: Method,
    pub(super) timeout: Duration,
}

/// How an attempt ended.
pub(super) struct Answer {
    pub(super) call: Call,
    pub(super) method: Method,
    pub(super) permit: Permit,
    pub(super) channel: u64,
    pub(super) took: Duration,
    pub(super) timed_out: bool,
    pub(super) result: Result<(), Failure>,
}

impl Attempt {
    pub(super) async fn run(self) -> Answer {
        let Self { client, channel, call, permit, request, method, timeout } = self;
        let started = Instant::now();
        let (result, timed_out) = match tokio::time::timeout(timeout, client.call(request)).await {
            Ok(result) => (result, false),
            Err(_) => (Err(Failure::NoAnswer(format!("no answer within {timeout:?}"))), true),
        };
        Answer { call, method, permit, channel, took: started.elapsed(), timed_out, result }
    }
}

/// The size of a call's id header as HTTP/2 counts it: name, value and 32 bytes.
fn metadata_len(job: &Job) -> usize {
    MESSAGE_ID.len() + job.message.as_str().len() + 32
}
