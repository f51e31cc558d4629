//! A call with its messages (several only where a dialect merges them), and one attempt at it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::comets::breaker::Permit;
use crate::comets::channel::{self, Client, Failure};
use crate::comets::comet::backlog::{Backlog, Next};
use crate::comets::comet::parked::{Name, Parked, Waiting};
use crate::comets::job::Job;
use crate::comets::lanes::{Lanes, Token};
use crate::comets::retry::Meaning;
use crate::comets::wire::Method;
use crate::comets::{Delivered, Dialect};
use crate::message::{ConnectionId, MESSAGE_ID, RoomId, Target};

/// How much of what waits for one room may travel in one call.
const MERGE_MESSAGES: usize = 100;
const MERGE_BYTES: usize = 64 * 1024;
/// How much metadata their ids may take: gRPC's C++ servers refuse more than 8 KiB by default.
const MERGE_METADATA: usize = 7 * 1024;
/// When a call for many connections was not taken, they are tried in groups of so many, and then of
/// fewer, before each gets a call of its own.
const DIVIDE: usize = 64;
const DIVIDE_AGAIN: usize = 8;

/// What waits in a lane.
#[derive(Debug)]
pub(super) enum Item {
    /// A parcel.
    Job(Job),
    /// What is parked under a name and is to be tried again.
    Turn(Name),
    /// The next part in the backlog of a lane.
    Backlog(usize),
}

/// Where a call comes from, and where it waits when it makes way for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Its lanes.
    Lane,
    /// What was parked under this name.
    Parked(Name),
    /// The backlog of this lane.
    Backlog(usize),
}

/// A call that occupies its lanes.
pub(super) struct Call {
    token: Token,
    /// In order; the front ones are part of the next attempt.
    jobs: VecDeque<Job>,
    origin: Origin,
    /// Whether each message has a call of its own, although there are several.
    singly: bool,
    /// Whether it was divided after an answer, so that others go on in between.
    makes_way: bool,
    /// Whether its parts are called after those of the same message that were not tried yet.
    broad: bool,
    failures: u32,
    last_error: Option<String>,
}

impl Call {
    /// A call for a parcel that may start.
    pub(super) fn new(token: Token, job: Job) -> Self {
        Self::with(token, Origin::Lane, VecDeque::from([job]))
    }

    fn with(token: Token, origin: Origin, jobs: VecDeque<Job>) -> Self {
        let singly = origin != Origin::Lane;
        Self { token, jobs, origin, singly, makes_way: singly, broad: false, failures: 0, last_error: None }
    }

    /// Another attempt at what was parked under this name.
    pub(super) fn again(token: Token, name: Name, waiting: Waiting) -> Self {
        let Waiting { jobs, failures, last_error, .. } = waiting;
        Self { failures, last_error, ..Self::with(token, Origin::Parked(name), jobs) }
    }

    /// A part from the backlog of this lane.
    pub(super) fn part(token: Token, lane: usize, next: Next) -> Self {
        let Next { job, failures, last_error } = next;
        let call = Self::with(token, Origin::Backlog(lane), VecDeque::from([job]));
        Self { failures, last_error, ..call }
    }

    /// Takes along what waits right behind for the same room.
    pub(super) fn take_along(&mut self, lanes: &mut Lanes<Item>) {
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
            let Some(Item::Job(job)) = lanes.join_next(&self.token, fits) else { return };
            bytes += job.payload.frame_len();
            metadata += metadata_len(&job);
            self.jobs.push_back(job);
        }
    }

    /// Takes out what has to wait behind something else, and divides what cannot be one call.
    pub(super) fn divide(&mut self, parked: &mut Parked, backlog: &mut Backlog, now: Instant) {
        while self.jobs.front().is_some_and(|job| !job.is_divided) {
            let Some(mut job) = self.jobs.pop_front() else { return };
            // What is parked, and what is in the backlog itself, is older than that.
            if self.origin == Origin::Lane && job.room.is_none() {
                let Some(free) = backlog.line_up(job) else { continue };
                job = free;
            }
            parked.divide(job, &mut self.jobs, now);
        }
        // The parts of a parcel, if it is in parts now. Only a room's messages travel together.
        self.singly |= !self.keys().is_empty();
    }

    /// Settles the parts that are not worth a call any more: their message is refused by everybody,
    /// or there were too many calls for it.
    pub(super) fn withdraw(&mut self) {
        while self.failures == 0
            && let Some(job) = self.jobs.pop_front()
        {
            if job.refused_so_far() >= DIVIDE {
                let why = self.last_error.clone().unwrap_or_default();
                job.settle(Delivered::Refused(why));
            } else if !job.may_be_called() {
                job.settle_unasked();
            } else {
                return self.jobs.push_front(job);
            }
        }
    }

    /// Whether its front message may be called with the lanes that it has now: a connection that did
    /// not take a message lately may cost many calls, and waits for a turn of its own.
    pub(super) fn may_start(&self) -> bool {
        self.makes_way || !self.jobs.front().is_some_and(Job::is_single_part)
    }

    /// Whether what is left of it goes on at once, with the lanes that it has.
    pub(super) fn keeps_its_lanes(&self) -> bool {
        !self.makes_way && self.may_start()
    }

    /// Where it comes from.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The room whose order its front message belongs to.
    pub(super) fn room(&self) -> Option<&RoomId> {
        self.jobs.front()?.room.as_ref()
    }

    /// Whether its parts are called after those of the same message that were not tried yet.
    pub(super) fn is_broad(&self) -> bool {
        self.broad
    }

    /// How many attempts at the front message failed, and with what.
    pub(super) fn failed_with(&self) -> (u32, Option<String>) {
        (self.failures, self.last_error.clone())
    }

    /// Takes out all messages.
    pub(super) fn take_all(&mut self) -> VecDeque<Job> {
        std::mem::take(&mut self.jobs)
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

    /// The attempt's messages have their outcome.
    pub(super) fn settle(&mut self, delivered: &Delivered) {
        for job in self.jobs.drain(..self.together()) {
            job.settle(delivered.clone());
        }
        self.failures = 0;
    }

    /// The attempt's message was refused for good. When so many of its connections were refused
    /// and none took it, it is the message: the others are not asked.
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
        self.origin == Origin::Lane && self.keys().len() > DIVIDE
    }

    /// From now on the connections of the front message have calls of their own, or smaller groups
    /// of them first; other calls go on in between.
    pub(super) fn try_fewer_connections(&mut self, meaning: Meaning, error: String) {
        let Some(job) = self.jobs.pop_front() else { return };
        let size = [DIVIDE, DIVIDE_AGAIN].into_iter().find(|size| job.keys().len() > *size).unwrap_or(1);
        let groups = job.keys().chunks(size).map(<[_]>::to_vec).collect();
        job.split(groups).into_iter().rev().for_each(|part| self.jobs.push_front(part));
        (self.singly, self.makes_way) = (true, true);
        // Whether it is the message that is refused shows soonest with single connections.
        self.broad = !matches!(meaning, Meaning::Refused { .. });
        self.failures = 0;
        self.last_error = Some(error);
    }

    /// Takes out what has to wait with the front message, which another attempt may mend: that
    /// message, and those of the same name behind it.
    pub(super) fn take_front(&mut self) -> Option<(Name, VecDeque<Job>)> {
        let name = Name::of(self.jobs.front()?)?;
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

    /// Drops the messages whose partition was given up meanwhile.
    pub(super) fn forget_abandoned(&mut self) {
        let before = self.jobs.len();
        self.jobs.retain(|job| !job.is_abandoned());
        if self.jobs.len() < before {
            self.failures = 0;
        }
    }

    /// Gives up the messages that are too old at this moment. Returns whether one of them waited
    /// behind others all the time.
    pub(super) fn expire(&mut self, at: Instant, give_up_after: Duration) -> bool {
        let mut was_behind = false;
        // The oldest is the first.
        while self.jobs.front().is_some_and(|job| at >= job.queued + give_up_after) {
            let why = match &self.last_error {
                Some(error) => format!("given up after {give_up_after:?}: {error}"),
                None => {
                    was_behind = true;
                    format!("waited behind others for {give_up_after:?}: the comet does not keep up")
                }
            };
            if let Some(job) = self.jobs.pop_front() {
                job.settle(Delivered::Unreachable(why));
            }
            self.failures = 0;
        }
        was_behind
    }

    /// Gives up all messages.
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
        let Self { mut client, channel, call, permit, request, method, timeout } = self;
        let started = Instant::now();
        let (result, timed_out) = match tokio::time::timeout(timeout, client.call(request)).await {
            Ok(result) => (result, false),
            Err(_) => (Err(Failure::NoAnswer(format!("no answer within {timeout:?}"))), true),
        };
        Answer { call, method, permit, channel, took: started.elapsed(), timed_out, result }
    }
}

/// What a job's id adds to a call's headers as HTTP/2 counts them: 32 bytes beside the text.
fn metadata_len(job: &Job) -> usize {
    MESSAGE_ID.len() + job.message.as_str().len() + 32
}
