//! Dead letters: records that cannot be delivered, stored with the reason.
//!
//! A dead letter is the original record (key, value, headers, timestamp) with our headers appended.
//! The record's offset may be committed only after the broker has confirmed the letter. Letters are
//! written in the order of the calls.
//!
//! [`Reader`] reads them back, and [`redrive`] writes them to their topics of origin. A running
//! gateway does neither.

mod back;
mod fit;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod headers;
mod letter;
mod metrics;
mod order;
mod progress;
mod read;
mod redrive;
mod remembered;
mod writer;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::kafka::{self, NotWritten, OrderedSender};
use crate::message::Record;
use crate::panics;
use writer::{Letter, State, Writer};

pub use crate::message::{ORIGIN_TOPIC, STAGE};
pub use headers::{
    ATTEMPTS, FAILED_COMETS, FAILED_USERS, KEY_ADDED, ORIGIN_OFFSET, ORIGIN_PARTITION, ORIGIN_TIMESTAMP,
    PLUGIN, REASON, Reason, Stage, is_letter,
};
pub use letter::{DeadLetter, Filter};
pub use metrics::Metrics;
pub use order::{Fate, Order, Summary};
pub use read::Reader;
pub use redrive::redrive;
pub use remembered::Remembered;
pub use writer::Kept;

/// Writes dead letters. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters(Arc<Queue>);

struct Queue {
    letters: mpsc::Sender<Letter>,
    /// Stopped when the last clone is dropped.
    _writer: JoinSet<()>,
}

/// A letter that is being written.
#[derive(Debug)]
pub struct Receipt(watch::Receiver<State>);

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
        let sender = OrderedSender::new(config)?;
        let writer = Writer::new(sender, config.dead_letter_topic.clone(), metrics);
        let mut task = JoinSet::new();
        task.spawn(panics::fatal("the dead letters' writer", writer.run(queue)));
        Ok(Self(Arc::new(Queue { letters, _writer: task })))
    }

    /// Appends a letter; waits while the queue is full. The letter is written as long as its receipt
    /// exists.
    pub async fn put(&self, record: Arc<Record>, reason: Reason) -> Receipt {
        let (state, receipt) = watch::channel(State::Waiting);
        // The task lives as long as this handle.
        let _ = self.0.letters.send(Letter { record, reason, state }).await;
        Receipt(receipt)
    }
}

impl Receipt {
    /// Waits until the letter is written or lost, or an attempt has failed. In the latter case call
    /// it again: the letter keeps its place and is retried.
    ///
    /// # Errors
    /// If the last attempt failed: the record has no outcome yet.
    pub async fn outcome(&self) -> Result<Kept, NotWritten> {
        let mut state = self.0.clone();
        let known =
            state.wait_for(|state| !matches!(state, State::Waiting)).await.map(|state| State::clone(&state));
        match known {
            Ok(State::Done(kept)) => Ok(kept),
            Ok(State::Failed(error)) => Err(error),
            // The writer has ended: the process is stopping.
            Ok(State::Waiting) | Err(_) => std::future::pending().await,
        }
    }
}
