//! The task that writes all dead letters of a process, in the order of the calls.
//!
//! Letters of one partition of origin go to one partition of the dead-letter topic, so that they are
//! read back in order, with or without keys. Failures that may pass (no broker, no topic, no
//! permission) are retried until they succeed, before anything later. A letter that the topic
//! permanently refuses, even with everything possible left out, is lost: it is logged as an error and
//! counted, and its record is settled. Retrying for ever would hold up its partition.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::error;

use crate::backoff::Backoff;
use crate::dead_letter::Metrics;
use crate::dead_letter::fit::fit;
use crate::dead_letter::headers::{Reason, headers};
use crate::dead_letter::metrics::Part;
use crate::kafka::{Fit, NotWritten, OrderedSender, Outgoing, Refusal, Written};
use crate::message::{HEADERS_LEFT_OUT, KEY_LEFT_OUT, Record, VALUE_LEFT_OUT};
use crate::telemetry::LogThrottle;

/// Capacity of the queue; further callers wait.
pub(super) const QUEUE: usize = 1_024;
/// Maximum number of letters taken from the queue at once.
const TOGETHER: usize = 500;
/// How soon a failed attempt is followed by the next one, at first and at most.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// The state of a letter.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Queued, or being written.
    Waiting,
    /// The last attempt failed; the letter is retried.
    Failed(NotWritten),
    /// Written or lost.
    Done(Kept),
}

/// The outcome of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Confirmed by the broker.
    Written,
    /// Permanently refused by the topic, with the broker's error.
    Lost(String),
}

/// A queued letter.
pub(super) struct Letter {
    pub(super) record: Arc<Record>,
    pub(super) reason: Reason,
    pub(super) state: watch::Sender<State>,
}

/// State of the writer task.
pub(super) struct Writer {
    sender: OrderedSender,
    topic: String,
    /// The number of partitions of the topic, once known.
    partitions: Option<i32>,
    metrics: Metrics,
    cut_line: LogThrottle,
    lost_line: LogThrottle,
}

impl Writer {
    pub(super) fn new(sender: OrderedSender, topic: String, metrics: Metrics) -> Self {
        let (cut_line, lost_line) = (LogThrottle::per_record(), LogThrottle::per_record());
        Self { sender, topic, partitions: None, metrics, cut_line, lost_line }
    }

    /// Writes until every sender is dropped.
    pub(super) async fn run(mut self, mut letters: mpsc::Receiver<Letter>) {
        let mut waiting = Vec::new();
        let mut backoff = BACKOFF;
        loop {
            if waiting.is_empty() && letters.recv_many(&mut waiting, TOGETHER).await == 0 {
                return;
            }
            // The caller has gone: the record will be redelivered.
            waiting.retain(|letter| letter.state.receiver_count() > 0);
            let before = waiting.len();
            waiting = self.attempt(waiting).await;
            if waiting.is_empty() || waiting.len() < before {
                backoff.reset();
                continue;
            }
            tokio::time::sleep(backoff.next_wait(fastrand::f64())).await;
        }
    }

    /// One attempt. Returns the letters to retry, in order.
    async fn attempt(&mut self, letters: Vec<Letter>) -> Vec<Letter> {
        if letters.is_empty() {
            return letters;
        }
        let partitions = match self.partitions {
            Some(partitions) => partitions,
            None => match self.sender.partitions(&self.topic).await {
                Ok(found) => *self.partitions.insert(found),
                Err(error) => return failed(letters, &error),
            },
        };
        let outgoing = letters.iter().map(|letter| outgoing(letter, partitions)).collect();
        let Self { sender, topic, metrics, cut_line, .. } = self;
        let answers = sender.write(topic, outgoing, &Cutter { topic, metrics, cut_line }).await;
        let mut left = Vec::new();
        for (letter, answer) in letters.into_iter().zip(answers) {
            match answer {
                Ok(Written::Whole | Written::Fitted) => {
                    letter.state.send_replace(State::Done(Kept::Written));
                }
                Err(error) if error.refusal.is_some() => self.lost(&letter, &error),
                Err(error) => {
                    // The topic may have been recreated.
                    self.partitions = None;
                    letter.state.send_replace(State::Failed(error));
                    left.push(letter);
                }
            }
        }
        left
    }

    fn lost(&self, letter: &Letter, error: &NotWritten) {
        self.metrics.lost();
        letter.state.send_replace(State::Done(Kept::Lost(error.reason.clone())));
        let Some(held_back) = self.lost_line.admit() else { return };
        let (origin, reason) = (&letter.record.origin, &letter.reason);
        error!(
            held_back,
            id = %letter.record.message_id(),
            topic = %origin.topic,
            partition = origin.partition,
            offset = origin.offset,
            stage = reason.stage.as_str(),
            reason = reason.text,
            refusal = error.reason,
            "the dead-letter topic permanently refused a letter: the record is settled and lost"
        );
    }
}

/// Makes letters fit, and logs what was left out.
struct Cutter<'w> {
    topic: &'w str,
    metrics: &'w Metrics,
    cut_line: &'w LogThrottle,
}

impl Fit for Cutter<'_> {
    fn fit<'a>(&self, letter: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>> {
        let letter = fit(letter, error)?;
        // The last header names what was left out last.
        let Some(header) = letter.headers.last() else { return Some(letter) };
        let parts =
            [(VALUE_LEFT_OUT, Part::Value), (KEY_LEFT_OUT, Part::Key), (HEADERS_LEFT_OUT, Part::Headers)];
        let cut = parts
            .into_iter()
            .find(|(name, _)| error.refusal == Some(Refusal::TooLarge) && header.name == *name);
        if let Some((name, part)) = cut {
            self.metrics.cut(part);
            if let Some(held_back) = self.cut_line.admit() {
                let left_out = String::from_utf8_lossy(header.value.as_deref().unwrap_or_default());
                error!(
                    held_back,
                    topic = self.topic,
                    header = name,
                    %left_out,
                    "a dead letter is too large for its topic and is written without a part; raise the topic's `max.message.bytes`"
                );
            }
        }
        Some(letter)
    }
}

/// The record to be written for a letter.
fn outgoing(letter: &Letter, partitions: i32) -> Outgoing<'_> {
    let record = &*letter.record;
    let partition = Some(record.origin.partition.rem_euclid(partitions.max(1)));
    Outgoing { headers: headers(record, &letter.reason), partition, ..Outgoing::copy_of(record) }
}

fn failed(letters: Vec<Letter>, error: &NotWritten) -> Vec<Letter> {
    for letter in &letters {
        letter.state.send_replace(State::Failed(error.clone()));
    }
    letters
}
