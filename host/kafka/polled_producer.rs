//! A producer, and the thread that polls it for delivery reports.
//!
//! rdkafka's own `FutureProducer` uses 1 % of a processor while idle: its thread polls for 100 ms at
//! a time, librdkafka waits in whole milliseconds, and rdkafka rounds the rest down, so the last
//! millisecond is a busy loop. A timeout slightly above whole milliseconds avoids that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tokio::sync::oneshot;

use crate::kafka::client_events::{ProducerContext, ResultSender};
use crate::panics;

/// How long one poll waits: slightly more than whole milliseconds.
const POLL: Duration = Duration::from_micros(100_050);
/// The pause before a record is queued again after the queue was full.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// The result of writing a record.
pub(super) type WriteResult = Result<(), KafkaError>;
/// A record for this producer.
pub(super) type QueuedRecord<'a> = BaseRecord<'a, [u8], [u8], ResultSender>;

/// A producer with its polling thread, which stops with it.
pub(super) struct PolledProducer {
    producer: Arc<BaseProducer<ProducerContext>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PolledProducer {
    /// Creates the client and starts its thread.
    ///
    /// # Errors
    /// When librdkafka refuses a property, or the thread cannot be started.
    pub(super) fn new(config: &ClientConfig) -> Result<Self, KafkaError> {
        let producer: BaseProducer<_> = config.create_with_context(ProducerContext::new())?;
        let (producer, stopping) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let poll = {
            let (producer, stopping) = (Arc::clone(&producer), Arc::clone(&stopping));
            move || {
                while !stopping.load(Ordering::Acquire) {
                    producer.poll(POLL);
                }
            }
        };
        let thread = std::thread::Builder::new().name("kafka-produce".into());
        let thread = thread.spawn(|| panics::call_or_abort("a producer's thread", poll));
        let thread = thread.map_err(|error| KafkaError::ClientCreation(format!("its thread: {error}")))?;
        Ok(Self { producer, stopping, thread: Some(thread) })
    }

    /// librdkafka's client.
    pub(super) fn client(&self) -> &Client<ProducerContext> {
        self.producer.client()
    }

    /// Queues a record. The receiver gets the result; its sender is dropped with the producer.
    ///
    /// # Errors
    /// When the queue is full, or the record can never be written.
    pub(super) fn queue<'a>(
        &self,
        record: impl FnOnce(ResultSender) -> QueuedRecord<'a>,
    ) -> Result<oneshot::Receiver<WriteResult>, KafkaError> {
        let (result_sender, outcome) = oneshot::channel();
        self.producer.send(record(Box::new(result_sender))).map_err(|(error, _)| error)?;
        Ok(outcome)
    }

    /// The same, but waits up to `at_most` while the queue is full.
    ///
    /// # Errors
    /// Those of [`PolledProducer::queue`].
    pub(super) async fn queue_within<'a>(
        &self,
        at_most: Duration,
        record: impl Fn(ResultSender) -> QueuedRecord<'a>,
    ) -> Result<oneshot::Receiver<WriteResult>, KafkaError> {
        let until = Instant::now() + at_most;
        loop {
            match self.queue(&record) {
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) if Instant::now() < until => {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                queued => return queued,
            }
        }
    }
}

impl Drop for PolledProducer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread aborts the process.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_is_slightly_longer_than_librdkafka_waits() {
        let beyond = POLL - Duration::from_millis(POLL.as_millis() as u64);
        assert!(!beyond.is_zero() && beyond < Duration::from_micros(200), "{beyond:?}");
    }
}
