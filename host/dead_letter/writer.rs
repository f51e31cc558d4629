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
use crate::dead_letter::headers::{DeadLetterReason, LetterPart, headers};
use crate::kafka::{FitRecord, OrderedWriter, OutgoingRecord, WriteError, WriteOutcome, WriteRefusal};
use crate::message::Record;
use crate::telemetry::LogThrottle;

/// Capacity of the queue; further callers wait.
pub(super) const QUEUE: usize = 1_024;
/// Maximum number of letters taken from the queue at once.
const MAX_BATCH: usize = 500;
/// Back-off after a failed attempt: first and longest.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// The state of a letter.
#[derive(Clone, Debug)]
pub(super) enum LetterState {
    /// Queued, or being written.
    Waiting,
    /// The last attempt failed; the letter is retried.
    Failed(WriteError),
    /// Written or lost.
    Done(LetterOutcome),
}

/// The outcome of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LetterOutcome {
    /// Confirmed by the broker.
    Written,
    /// Permanently refused by the topic, with the broker's error.
    Lost(String),
}

/// A queued letter.
pub(super) struct PendingLetter {
    pub(super) record: Arc<Record>,
    pub(super) reason: DeadLetterReason,
    pub(super) state: watch::Sender<LetterState>,
}

/// State of the writer task.
pub(super) struct LetterWriter {
    sender: OrderedWriter,
    topic: String,
    /// The number of partitions of the topic, once known.
    partitions: Option<i32>,
    metrics: Metrics,
    cut_throttle: LogThrottle,
    lost_throttle: LogThrottle,
}

impl LetterWriter {
    pub(super) fn new(sender: OrderedWriter, topic: String, metrics: Metrics) -> Self {
        let (cut_throttle, lost_throttle) = (LogThrottle::per_record(), LogThrottle::per_record());
        Self { sender, topic, partitions: None, metrics, cut_throttle, lost_throttle }
    }

    /// Writes until every sender is dropped.
    pub(super) async fn run(mut self, mut letters: mpsc::Receiver<PendingLetter>) {
        let mut waiting = Vec::new();
        let mut backoff = BACKOFF;
        loop {
            if waiting.is_empty() && letters.recv_many(&mut waiting, MAX_BATCH).await == 0 {
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
    async fn attempt(&mut self, letters: Vec<PendingLetter>) -> Vec<PendingLetter> {
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
        let Self { sender, topic, metrics, cut_throttle, .. } = self;
        let answers = sender.write(topic, outgoing, &LetterTrimmer { topic, metrics, cut_throttle }).await;
        let mut left = Vec::new();
        for (letter, answer) in letters.into_iter().zip(answers) {
            match answer {
                Ok(WriteOutcome::Whole | WriteOutcome::Fitted) => {
                    letter.state.send_replace(LetterState::Done(LetterOutcome::Written));
                }
                Err(error) if error.refusal.is_some() => self.lost(&letter, &error),
                Err(error) => {
                    // The topic may have been recreated.
                    self.partitions = None;
                    letter.state.send_replace(LetterState::Failed(error));
                    left.push(letter);
                }
            }
        }
        left
    }

    fn lost(&self, letter: &PendingLetter, error: &WriteError) {
        self.metrics.lost();
        letter.state.send_replace(LetterState::Done(LetterOutcome::Lost(error.reason.clone())));
        let Some(held_back) = self.lost_throttle.admit() else { return };
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
struct LetterTrimmer<'w> {
    topic: &'w str,
    metrics: &'w Metrics,
    cut_throttle: &'w LogThrottle,
}

impl FitRecord for LetterTrimmer<'_> {
    fn fit<'a>(&self, letter: OutgoingRecord<'a>, error: &WriteError) -> Option<OutgoingRecord<'a>> {
        let letter = fit(letter, error)?;
        // The last header names what was left out last.
        let Some(header) = letter.headers.last() else { return Some(letter) };
        let is_cut = error.refusal == Some(WriteRefusal::TooLarge);
        let cut = LetterPart::ALL.into_iter().find(|part| is_cut && header.name == part.header());
        if let Some(part) = cut {
            self.metrics.cut(part);
            if let Some(held_back) = self.cut_throttle.admit() {
                let left_out = String::from_utf8_lossy(header.value.as_deref().unwrap_or_default());
                error!(
                    held_back,
                    topic = self.topic,
                    header = part.header(),
                    %left_out,
                    "a dead letter is too large for its topic and is written without a part; raise the topic's `max.message.bytes`"
                );
            }
        }
        Some(letter)
    }
}

/// The record to be written for a letter.
fn outgoing(letter: &PendingLetter, partitions: i32) -> OutgoingRecord<'_> {
    let record = &*letter.record;
    let partition = Some(record.origin.partition.rem_euclid(partitions.max(1)));
    OutgoingRecord { headers: headers(record, &letter.reason), partition, ..OutgoingRecord::copy_of(record) }
}

fn failed(letters: Vec<PendingLetter>, error: &WriteError) -> Vec<PendingLetter> {
    for letter in &letters {
        letter.state.send_replace(LetterState::Failed(error.clone()));
    }
    letters
}
