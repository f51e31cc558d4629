//! A call with its messages (several only where a dialect merges them), and one attempt at it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::{Code, Status};

use crate::comets::breaker::Permit;
use crate::comets::channel::{Client, Path, with_ids};
use crate::comets::job::Job;
use crate::comets::lanes::{Lanes, Token};
use crate::comets::retry::{self, Kind};
use crate::comets::{Delivered, Dialect};
use crate::message::{MESSAGE_ID, Target};

/// How much of what waits for one room may travel in one call.
const MERGE_MESSAGES: usize = 100;
const MERGE_BYTES: usize = 64 * 1024;
/// How much metadata their ids may take: gRPC's C++ servers refuse more than 8 KiB by default.
const MERGE_METADATA: usize = 7 * 1024;

/// A call that occupies its lanes.
pub(super) struct Call {
    token: Token,
    /// In order; the front ones are part of the next attempt.
    jobs: VecDeque<Job>,
    /// Whether each message has a call of its own, although there are several.
    singly: bool,
    failures: u32,
    last_error: Option<String>,
}

impl Call {
    /// The next call that may start, with what may travel along.
    pub(super) fn next(lanes: &mut Lanes<Job>, merges: bool) -> Option<Self> {
        let (token, job) = lanes.next_ready()?;
        let mut call =
            Self { token, jobs: VecDeque::from([job]), singly: false, failures: 0, last_error: None };
        if merges {
            call.take_along(lanes);
        }
        Some(call)
    }

    fn take_along(&mut self, lanes: &mut Lanes<Job>) {
        let Some(first) = self.jobs.front() else { return };
        let Target::Room(room) = first.target.clone() else { return };
        let (mut bytes, mut metadata) = (first.payload.frame_len(), metadata_len(first));
        while self.jobs.len() < MERGE_MESSAGES {
            let fits = |job: &Job| {
                let same_room = matches!(&job.target, Target::Room(other) if *other == room);
                let small_enough = bytes + job.payload.frame_len() <= MERGE_BYTES
                    && metadata + metadata_len(job) <= MERGE_METADATA;
                same_room && small_enough
            };
            let Some(job) = lanes.join_next(&self.token, fits) else { return };
            bytes += job.payload.frame_len();
            metadata += metadata_len(&job);
            self.jobs.push_back(job);
        }
    }

    /// How many messages the next attempt carries.
    pub(super) fn together(&self) -> usize {
        if self.singly { self.jobs.len().min(1) } else { self.jobs.len() }
    }

    /// The request of the next attempt, and the path that it goes to.
    pub(super) fn request(&self, dialect: Dialect) -> (tonic::Request<Bytes>, Path) {
        let jobs = || self.jobs.iter().take(self.together());
        let first = &self.jobs[0];
        let request = match &first.target {
            Target::Room(room) if self.together() > 1 => dialect.merged(room, jobs().map(|job| &job.payload)),
            target => dialect.request(target, &first.payload),
        };
        with_ids(request, jobs().map(|job| (&job.payload, &job.message)))
    }

    /// The attempt's messages have their outcome.
    pub(super) fn settle(&mut self, delivered: &Delivered) {
        for job in self.jobs.drain(..self.together()) {
            job.settle(delivered.clone());
        }
        self.failures = 0;
    }

    /// From now on each message has a call of its own.
    pub(super) fn try_singly(&mut self) {
        self.singly = true;
    }

    /// Counts a failed attempt; returns how many there were.
    pub(super) fn note_failure(&mut self, error: String) -> u32 {
        self.failures += 1;
        self.last_error = Some(error);
        self.failures
    }

    /// Gives up the messages that are too old at this moment.
    pub(super) fn expire(&mut self, at: Instant, give_up_after: Duration) {
        // The oldest is the first.
        while self.jobs.front().is_some_and(|job| at >= job.queued + give_up_after) {
            let why = match &self.last_error {
                Some(error) => format!("given up after {give_up_after:?}: {error}"),
                None => format!("waited behind others for {give_up_after:?}"),
            };
            if let Some(job) = self.jobs.pop_front() {
                job.settle(Delivered::Unreachable(why));
            }
        }
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
    pub(super) request: tonic::Request<Bytes>,
    pub(super) path: Path,
    pub(super) timeout: Duration,
}

/// How an attempt ended.
pub(super) struct Answer {
    pub(super) call: Call,
    pub(super) permit: Permit,
    pub(super) channel: u64,
    pub(super) took: Duration,
    pub(super) result: Result<(), Failure>,
}

/// Why an attempt failed.
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) timed_out: bool,
    pub(super) text: String,
}

impl Attempt {
    pub(super) async fn run(self) -> Answer {
        let Self { mut client, channel, call, permit, request, path, timeout } = self;
        let started = Instant::now();
        let result = match tokio::time::timeout(timeout, client.call(request, path)).await {
            Ok(answered) => answered.map_err(|status| Failure::from(&status)),
            Err(_) => {
                let text = format!("no answer within {timeout:?}");
                Err(Failure { kind: Kind::Transient, timed_out: true, text })
            }
        };
        Answer { call, permit, channel, took: started.elapsed(), result }
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        Self { kind: retry::kind(status), timed_out: false, text: describe(status) }
    }
}

/// What a job's id adds to a call's headers as HTTP/2 counts them: 32 bytes beside the text.
fn metadata_len(job: &Job) -> usize {
    MESSAGE_ID.len() + job.message.as_str().len() + 32
}

/// The status with its root cause.
fn describe(status: &Status) -> String {
    let mut root: &dyn std::error::Error = status;
    while let Some(source) = root.source() {
        root = source;
    }
    let (message, cause) = (printable(status.message()), printable(&root.to_string()));
    let is_same = std::ptr::addr_eq(root, status) || cause == message;
    match (status.code(), is_same) {
        (Code::Unknown, false) => cause,
        (code, true) => format!("{code:?}: {message}"),
        (code, false) => format!("{code:?}: {message}: {cause}"),
    }
}

/// Comets write these texts, and they end up in logs and headers.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
