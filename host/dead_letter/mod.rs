//! Dead letters: records that cannot be delivered, stored with the reason.
//!
//! A dead letter is the original record (key, value, headers, timestamp) with our headers appended.
//! The record's offset may be committed only after the broker has confirmed the letter. Letters are
//! written in the order of the calls.
//!
//! [`Reader`] reads them back, and [`redrive`] writes them to their topics of origin. A running
//! gateway does neither.

mod checkpoint;
mod fit;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod headers;
mod letter;
mod metrics;
mod options;
mod progress;
mod read;
mod redrive;
mod redrive_record;
mod writer;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::kafka::{self, OrderedWriter, WriteError};
use crate::message::Record;
use crate::panics;
use writer::{LetterState, LetterWriter, PendingLetter};

pub use crate::message::{ORIGIN_TOPIC, STAGE};
pub use checkpoint::CheckpointStore;
pub use headers::{
    ATTEMPTS, DeadLetterReason, FAILED_COMETS, FAILED_USERS, KEY_ADDED, LetterPart, ORIGIN_OFFSET,
    ORIGIN_PARTITION, ORIGIN_TIMESTAMP, PLUGIN, REASON, Stage, is_dead_letter,
};
pub use letter::{DeadLetter, Filter};
pub use metrics::Metrics;
pub use options::{RedriveOptions, RedriveOutcome, RedriveSummary};
pub use read::Reader;
pub use redrive::redrive;
pub use writer::LetterOutcome;

/// Writes dead letters. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters(Arc<LetterQueue>);

struct LetterQueue {
    letters: mpsc::Sender<PendingLetter>,
    /// Stopped when the last clone is dropped.
    _writer: JoinSet<()>,
}

/// A letter that is being written.
#[derive(Debug)]
pub struct LetterReceipt(watch::Receiver<LetterState>);

impl DeadLetters {
    /// Starts the task that writes to `[kafka] dead_letter_topic`. It ends with the last clone.
    ///
    /// # Errors
    /// If librdkafka rejects a property.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &kafka::Config, metrics: Metrics) -> anyhow::Result<Self> {
        let (letters, queue) = mpsc::channel(writer::QUEUE);
        let sender = OrderedWriter::new(config)?;
        let writer = LetterWriter::new(sender, config.dead_letter_topic.clone(), metrics);
        let mut task = JoinSet::new();
        task.spawn(panics::abort_on_panic("the dead letters' writer", writer.run(queue)));
        Ok(Self(Arc::new(LetterQueue { letters, _writer: task })))
    }

    /// Appends a letter; waits while the queue is full. The letter is written as long as its receipt
    /// exists.
    pub async fn put(&self, record: Arc<Record>, reason: DeadLetterReason) -> LetterReceipt {
        let (state, receipt) = watch::channel(LetterState::Waiting);
        // The task lives as long as this handle.
        let _ = self.0.letters.send(PendingLetter { record, reason, state }).await;
        LetterReceipt(receipt)
    }
}

impl LetterReceipt {
    /// Waits until the letter is written or lost, or an attempt has failed. In the latter case call
    /// it again: the letter keeps its position and is retried.
    ///
    /// # Errors
    /// If the last attempt failed: the record has no outcome yet.
    pub async fn outcome(&self) -> Result<LetterOutcome, WriteError> {
        let mut state = self.0.clone();
        let known = state
            .wait_for(|state| !matches!(state, LetterState::Waiting))
            .await
            .map(|state| LetterState::clone(&state));
        match known {
            Ok(LetterState::Done(kept)) => Ok(kept),
            Ok(LetterState::Failed(error)) => Err(error),
            // The writer has ended: the process is stopping.
            Ok(LetterState::Waiting) | Err(_) => std::future::pending().await,
        }
    }
}
