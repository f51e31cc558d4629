//! The gateway's side: writes stored messages to the archive topic.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::metrics::TopicMetrics;
use super::record::{ArchiveRecipient, encode, encode_history};
use crate::inbox::Position;
use crate::kafka::{OutgoingRecord, Producer, WriteError};
use crate::message::{Message, TraceContext};
use crate::telemetry::LogThrottle;
use crate::time::now_record_ms;

/// Writes stored messages to the archive topic. Cheap to clone.
#[derive(Clone)]
pub struct ArchiveTopic {
    producer: Producer,
    topic: Arc<str>,
    metrics: TopicMetrics,
    /// Kibibytes that may be in flight.
    in_flight: Arc<Semaphore>,
}

/// Maximum volume in flight to the broker over all messages, so that a backlog is not mistaken for an
/// unresponsive broker.
const KIBIBYTES: usize = 16 * 1024;

impl ArchiveTopic {
    /// The topic of this name.
    pub fn new(producer: Producer, topic: &str, metrics: TopicMetrics) -> Self {
        Self { producer, topic: topic.into(), metrics, in_flight: Arc::new(Semaphore::new(KIBIBYTES)) }
    }

    /// Appends a message with users for whom it was stored, and its trace context: one record. Their
    /// inboxes have it, or refer to this place in the history of its room. Returns after all in-sync
    /// replicas have the record, or why the topic will never accept it.
    ///
    /// # Errors
    /// If the brokers did not confirm it.
    pub async fn append(
        &self,
        message: &Message,
        trace: Option<TraceContext<'_>>,
        recipients: &[ArchiveRecipient<'_>],
        reference: Option<Position>,
    ) -> Result<Option<String>, WriteError> {
        let value = encode(message, recipients, reference, now_record_ms());
        let written = self.write(message, trace, value).await;
        if written.is_ok() {
            self.metrics.messages.inc_by(recipients.len() as u64);
        }
        WriteError::or_refusal(written)
    }

    /// Appends a message that has this place in the history of its room.
    ///
    /// # Errors
    /// As [`ArchiveTopic::append`].
    pub async fn append_history(
        &self,
        message: &Message,
        trace: Option<TraceContext<'_>>,
        place: Position,
    ) -> Result<Option<String>, WriteError> {
        let value = encode_history(message, place, now_record_ms());
        let written = self.write(message, trace, value).await;
        if written.is_ok() {
            self.metrics.room_messages.inc();
        }
        WriteError::or_refusal(written)
    }

    /// Counts and logs that a message of a room's history can never be archived.
    pub fn note_refused(&self, message: &Message, why: &str) {
        static LINE: LogThrottle = LogThrottle::per_record();
        self.metrics.room_messages_refused.inc();
        if let Some(held_back) = LINE.admit() {
            tracing::error!(
                id = %message.id, held_back,
                "a message of a room's history is not archived; it is delivered, and in Redis: {why}"
            );
        }
    }

    async fn write(
        &self,
        message: &Message,
        trace: Option<TraceContext<'_>>,
        value: Vec<u8>,
    ) -> Result<(), WriteError> {
        let size = (value.len() / 1024 + 1).min(KIBIBYTES) as u32;
        // The semaphore is never closed.
        let _permit = self.in_flight.acquire_many(size).await.ok();
        let record = OutgoingRecord {
            key: message.record.key.as_deref().map(Into::into),
            value: Some(value.into()),
            timestamp_ms: message.record.timestamp_ms,
            headers: trace.into_iter().flat_map(TraceContext::headers).collect(),
            ..OutgoingRecord::default()
        };
        self.producer.write_whole(&self.topic, record).await
    }
}
