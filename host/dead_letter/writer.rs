//! The one task that writes a process' dead letters, in the order in which they are given.
//!
//! Letters of one partition of origin go to one partition of the dead-letter topic, so that
//! reading it back meets them in their order, with or without keys. What cannot be written now
//! (no broker, no topic, no rights) is tried until it works, before anything that came later.
//! A letter that the topic refuses for good, even with everything left out that can be, is lost:
//! one error line and a counter say so, and its record is settled. Trying for ever would hold up
//! its partition.

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

/// Letters that wait for the writer; whoever comes later waits outside.
pub(super) const QUEUE: usize = 1_024;
/// Letters that are taken out of the queue together.
const TOGETHER: usize = 500;
/// How soon a failed attempt is followed by the next one, at first and at most.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// How far a letter has come.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// It waits, or is on its way.
    Waiting,
    /// The last attempt failed; another one follows.
    Failed(NotWritten),
    /// The broker has it, or never will.
    Done(Kept),
}

/// How a letter ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The broker has confirmed it.
    Written,
    /// The topic refuses it for good; what the broker said.
    Lost(String),
}

/// A letter on its way.
pub(super) struct Letter {
    pub(super) record: Arc<Record>,
    pub(super) reason: Reason,
    pub(super) state: watch::Sender<State>,
}

/// What the task works with.
pub(super) struct Writer {
    sender: OrderedSender,
    topic: String,
    /// How many partitions the topic has, once that is known.
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

    /// Writes until nobody can give it letters any more.
    pub(super) async fn run(mut self, mut letters: mpsc::Receiver<Letter>) {
        let mut waiting = Vec::new();
        let mut backoff = BACKOFF;
        loop {
            if waiting.is_empty() && letters.recv_many(&mut waiting, TOGETHER).await == 0 {
                return;
            }
            // Whoever asked has gone: the record will come again.
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

    /// One attempt; returns the letters that have to be tried again, in order.
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
                    // It may be that the topic was made anew.
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
            "the dead-letter topic refuses a letter for good: the record is settled and kept nowhere"
        );
    }
}

/// Makes letters fit, and says so.
struct Cutter<'w> {
    topic: &'w str,
    metrics: &'w Metrics,
    cut_line: &'w LogThrottle,
}

impl Fit for Cutter<'_> {
    fn fit<'a>(&self, letter: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>> {
        let letter = fit(letter, error)?;
        // What was left out last stands in the last header.
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
                    "a dead letter is too large for its topic and loses a part; raise the topic's `max.message.bytes`"
                );
            }
        }
        Some(letter)
    }
}

/// The letter as it should stand in its topic.
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
