//! The gateway's producer, which waits for the broker's acknowledgement.
//!
//! Records are sent in batches. The broker refuses a batch as a whole, so a refusal does not tell
//! which record is the cause, and each is sent again alone. A record that is still refused is
//! written without its value or its timestamp.

use std::sync::Arc;

use rdkafka::error::KafkaError;
use tokio::sync::{OnceCell, Semaphore};

use crate::kafka::record_writer::{OutgoingRecord, RecordWriter, WriteError, WriteRefusal};
use crate::kafka::{Config, refused};
use crate::message::{Header, VALUE_LEFT_OUT};
use crate::telemetry::LogThrottle;

/// Writes records and waits until all in-sync replicas have them. Cheap to clone; clones share the
/// clients.
#[derive(Clone)]
pub struct Producer(Arc<ProducerState>);

struct ProducerState {
    config: Config,
    batching: RecordWriter,
    /// Created when a batch is refused for the first time.
    unbatched: OnceCell<RecordWriter>,
    /// Sending alone is slow; the timeout of five seconds begins with the permit.
    permits: Semaphore,
}

impl ProducerState {
    async fn unbatched(&self) -> Result<&RecordWriter, KafkaError> {
        self.unbatched.get_or_try_init(async || RecordWriter::unbatched(&self.config)).await
    }
}

/// Records sent alone concurrently. librdkafka sends five at a time to each broker.
const MAX_UNBATCHED: usize = 100;

impl Producer {
    /// Creates the producer. It connects and reconnects automatically.
    ///
    /// # Errors
    /// If librdkafka rejects a property.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let batching = RecordWriter::batching(config).map_err(refused)?;
        let (config, permits) = (config.clone(), Semaphore::new(MAX_UNBATCHED));
        Ok(Self(Arc::new(ProducerState { config, batching, unbatched: OnceCell::new(), permits })))
    }

    /// Writes a key and a value; returns once the broker has acknowledged it.
    ///
    /// # Errors
    /// After five seconds without an acknowledgement, or at once if a retry is useless. A record
    /// that is refused and sent again has another five seconds.
    pub async fn put(&self, topic: &str, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        self.write(
            topic,
            OutgoingRecord { key: Some(key.into()), value: Some(value.into()), ..OutgoingRecord::default() },
        )
        .await
    }

    /// Writes one record; returns once the broker has acknowledged it. A record that was refused in
    /// a batch is written after those that were not.
    ///
    /// # Errors
    /// Those of [`Producer::put`].
    pub(crate) async fn write(&self, topic: &str, record: OutgoingRecord<'_>) -> Result<(), WriteError> {
        let mut result = self.0.batching.send(topic, record.clone()).await;
        if result.as_ref().is_err_and(|error| WriteRefusal::of(error).is_some()) {
            result = self.write_unbatched(topic, record).await;
        }
        result.map_err(|error| WriteError::new(topic, &error))
    }

    /// As [`Producer::write`], but never without a part of the record.
    ///
    /// # Errors
    /// Those of [`Producer::put`].
    pub(crate) async fn write_whole(
        &self,
        topic: &str,
        record: OutgoingRecord<'_>,
    ) -> Result<(), WriteError> {
        let mut result = self.0.batching.send(topic, record.clone()).await;
        if result.as_ref().is_err_and(|error| WriteRefusal::of(error).is_some()) {
            let unbatched = self.0.unbatched().await.map_err(|error| WriteError::new(topic, &error))?;
            let _turn = self.0.permits.acquire().await.expect("the turns are never closed");
            result = unbatched.send(topic, record).await;
        }
        result.map_err(|error| WriteError::new(topic, &error))
    }

    /// Each refusal removes a part of the record, so there are at most three attempts.
    async fn write_unbatched(&self, topic: &str, mut record: OutgoingRecord<'_>) -> Result<(), KafkaError> {
        let unbatched = self.0.unbatched().await?;
        let _turn = self.0.permits.acquire().await.expect("the turns are never closed");
        loop {
            let Err(error) = unbatched.send(topic, record.clone()).await else { return Ok(()) };
            let Some(acceptable) = acceptable(topic, record, &error) else { return Err(error) };
            record = acceptable;
        }
    }
}

/// What remains of a record that its topic has refused.
fn acceptable<'a>(topic: &str, record: OutgoingRecord<'a>, error: &KafkaError) -> Option<OutgoingRecord<'a>> {
    match WriteRefusal::of(error)? {
        WriteRefusal::TooLarge => without_value(topic, record, error),
        // The gateway's records carry the time in a header as well.
        WriteRefusal::Timestamp if record.timestamp_ms.is_some() => {
            Some(OutgoingRecord { timestamp_ms: None, ..record })
        }
        WriteRefusal::Timestamp | WriteRefusal::Other => None,
    }
}

/// The record without its value, for a topic that refuses its size. A record that fitted into its
/// topic may not fit with our headers, or into another topic; retrying forever would stall its
/// partition.
fn without_value<'a>(
    topic: &str,
    mut record: OutgoingRecord<'a>,
    error: &KafkaError,
) -> Option<OutgoingRecord<'a>> {
    let size = record.value.as_ref().map(|value| value.len()).filter(|size| *size > 0)?;
    static LINE: LogThrottle = LogThrottle::per_record();
    if let Some(held_back) = LINE.admit() {
        tracing::error!(
            topic,
            size,
            held_back,
            "a record is too large for the topic and is written without its value; raise the topic's `max.message.bytes`"
        );
    }
    let left_out = format!("{size} bytes: {error}");
    record.headers.push(Header::new(VALUE_LEFT_OUT, left_out));
    Some(OutgoingRecord { value: None, ..record })
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[test]
    fn the_refused_part_is_removed() {
        let of = |code| KafkaError::MessageProduction(code);
        let (large, old) =
            (of(RDKafkaErrorCode::MessageSizeTooLarge), of(RDKafkaErrorCode::InvalidTimestamp));
        let record = OutgoingRecord {
            key: Some(b"k".into()),
            value: Some(b"v".into()),
            timestamp_ms: Some(7),
            ..OutgoingRecord::default()
        };
        let key = Some(&b"k"[..]);
        let stub = acceptable("t", record, &large).expect("something is left");
        assert_eq!((stub.key.as_deref(), &stub.value, stub.timestamp_ms), (key, &None, Some(7)));
        let names: Vec<_> = stub.headers.iter().map(|header| header.name.clone()).collect();
        assert_eq!(names, [VALUE_LEFT_OUT]);
        assert!(acceptable("t", stub.clone(), &large).is_none(), "there is nothing more to leave out");

        let stub = acceptable("t", stub, &old).expect("something is left");
        assert_eq!((stub.key.as_deref(), stub.timestamp_ms, stub.headers.len()), (key, None, 1));
        assert!(acceptable("t", stub.clone(), &old).is_none());
        assert!(acceptable("t", stub, &of(RDKafkaErrorCode::MessageTimedOut)).is_none());
    }
}
