//! Records that cannot be delivered, kept with their reason.
//!
//! A dead letter is the record as it came (key, value, headers, timestamp) with headers of
//! ours behind the original ones. Its record's offset may be committed only once the broker has
//! confirmed it. Letters are written in the order in which they are given.
//!
//! [`Reader`] reads them back and [`redrive`] brings them to their topics of origin once what
//! was wrong is mended; nothing in a running gateway does either.

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
    /// Ends with the last clone.
    _writer: JoinSet<()>,
}

/// A letter on its way to the topic.
#[derive(Debug)]
pub struct Receipt(watch::Receiver<State>);

impl DeadLetters {
    /// Starts the task that writes to `[kafka] dead_letter_topic`. It ends with the last clone.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
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

    /// Puts one behind those that were put before; waits while the queue is full. It is written
    /// as long as the receipt is there.
    pub async fn put(&self, record: Arc<Record>, reason: Reason) -> Receipt {
        let (state, receipt) = watch::channel(State::Waiting);
        // The task lives as long as this.
        let _ = self.0.letters.send(Letter { record, reason, state }).await;
        Receipt(receipt)
    }
}

impl Receipt {
    /// Waits until the letter has come to its end, or an attempt has failed. Ask again then: it
    /// keeps its place, and is tried until it works.
    ///
    /// # Errors
    /// When the last attempt failed: the record has no outcome yet.
    pub async fn outcome(&self) -> Result<Kept, NotWritten> {
        let mut state = self.0.clone();
        let known =
            state.wait_for(|state| !matches!(state, State::Waiting)).await.map(|state| State::clone(&state));
        match known {
            Ok(State::Done(kept)) => Ok(kept),
            Ok(State::Failed(error)) => Err(error),
            // The writer has gone: the process is ending.
            Ok(State::Waiting) | Err(_) => std::future::pending().await,
        }
    }
}
