//! One client that writes records, and the records it writes.
//!
//! The client is idempotent: a record that librdkafka retries is written once. A broker can fence
//! such a client (its producer id expired, or it may not have one). Then the next [`RecordWriter::send`]
//! creates a new client, so a permission that is granted later needs no restart.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;
use tracing::warn;

use crate::blocking::run_blocking;
use crate::kafka::client_events::ResultSender;
use crate::kafka::polled_producer::{PolledProducer, QueuedRecord, WriteResult};
use crate::kafka::{Config, describe, record};
use crate::message::{Header, Record};

/// A record could not be written, and the broker may not have it.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "cannot write to topic `{topic}`: {reason}; check that the topic exists and that this client may write to it"
)]
pub struct WriteError {
    /// The topic.
    pub topic: String,
    /// Kafka's reason.
    pub reason: String,
    /// Why the topic refuses this record. `None`: it accepts no other record either, or is unreachable.
    pub refusal: Option<WriteRefusal>,
}

impl WriteError {
    /// Why a record is refused, if it is: another attempt would not help.
    pub(crate) fn or_refusal(written: Result<(), Self>) -> Result<Option<String>, Self> {
        match written {
            Ok(()) => Ok(None),
            Err(refused) if refused.refusal.is_some() => Ok(Some(refused.to_string())),
            Err(error) => Err(error),
        }
    }
}

/// Why a topic refuses a record while it may accept others. If the record was sent in a batch, the
/// cause may be another record of the batch, or all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteRefusal {
    /// It is larger than `max.message.bytes`, or than a segment.
    TooLarge,
    /// It is older or newer than the topic allows.
    Timestamp,
    /// Anything else, such as a missing key in a compacted topic.
    Other,
}

/// A record to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutgoingRecord<'a> {
    pub(crate) key: Option<Cow<'a, [u8]>>,
    pub(crate) value: Option<Cow<'a, [u8]>>,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) headers: Vec<Header>,
    /// `None` lets the producer choose by key.
    pub(crate) partition: Option<i32>,
}

/// Writes records and waits until all in-sync replicas have them.
pub(crate) struct RecordWriter {
    config: ClientConfig,
    current: ArcSwap<PolledProducer>,
    renewed: Mutex<Option<Instant>>,
}

/// Timeout of one attempt, from the queue to the broker's acknowledgement.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The minimum time between two new clients.
const RENEW_EVERY: Duration = Duration::from_secs(2);

impl RecordWriter {
    /// Writes records in batches, which the broker accepts or refuses as a whole.
    ///
    /// # Errors
    /// If librdkafka rejects a property.
    pub(super) fn batching(config: &Config) -> Result<Self, KafkaError> {
        let mut client = config.client();
        client.set("linger.ms", "2");
        Self::new(client)
    }

    /// Writes each record in a batch of its own: a refusal is about that record.
    ///
    /// # Errors
    /// If librdkafka rejects a property.
    pub(crate) fn unbatched(config: &Config) -> Result<Self, KafkaError> {
        let mut client = config.client();
        client.set("linger.ms", "0").set("batch.num.messages", "1");
        Self::new(client)
    }

    fn new(mut client: ClientConfig) -> Result<Self, KafkaError> {
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", WRITE_TIMEOUT.as_millis().to_string())
            // Every record that was read can be written: the broker's limit applies, not
            // librdkafka's default of a million bytes.
            .set("message.max.bytes", "1000000000");
        let current = ArcSwap::from_pointee(PolledProducer::new(&client)?);
        Ok(Self { config: client, current, renewed: Mutex::default() })
    }

    /// Writes one record; returns once the broker has acknowledged it.
    ///
    /// # Errors
    /// After five seconds without an acknowledgement, or at once if a retry is useless.
    pub(super) async fn send(&self, topic: &str, record: OutgoingRecord<'_>) -> Result<(), KafkaError> {
        let producer = self.current.load_full();
        let written =
            match producer.queue_within(WRITE_TIMEOUT, |result_sender| record.to(topic, result_sender)).await
            {
                Ok(outcome) => outcome_of(outcome).await,
                Err(error) => Err(error),
            };
        if written.is_err() {
            self.renew(&producer);
        }
        written
    }

    /// Writes records of one topic in this order, as one batch if possible; returns once each has a
    /// result.
    ///
    /// Records that fail while others succeed lose their position in the order. A caller that needs
    /// the order sends records that may be refused one by one.
    pub(crate) async fn send_all(
        &self,
        topic: &str,
        records: &[&OutgoingRecord<'_>],
    ) -> Vec<Result<(), WriteError>> {
        let producer = self.current.load_full();
        let queue =
            |record: &OutgoingRecord<'_>| producer.queue(|result_sender| record.to(topic, result_sender));
        let queued: Vec<_> = records.iter().copied().map(queue).collect();
        let mut results = Vec::with_capacity(queued.len());
        for queued in queued {
            let result = match queued {
                Ok(outcome) => outcome_of(outcome).await,
                Err(error) => Err(error),
            };
            results.push(result.map_err(|error| WriteError::new(topic, &error)));
        }
        if results.iter().any(Result::is_err) {
            self.renew(&producer);
        }
        results
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// When the broker does not answer within five seconds.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<i32, WriteError> {
        let (producer, name) = (self.current.load_full(), topic.to_owned());
        let ask = move || producer.client().fetch_metadata(Some(&name), WRITE_TIMEOUT);
        let metadata = match run_blocking("asking for partitions", ask).await {
            Ok(answer) => answer.map_err(|error| WriteError::new(topic, &error))?,
            Err(_) => return Err(WriteError::new(topic, &KafkaError::Canceled)),
        };
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        match found.map(|found| (found.error(), found.partitions().len())) {
            Some((None, count @ 1..)) => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
            Some((Some(error), _)) => Err(WriteError::new(topic, &KafkaError::MetadataFetch(error.into()))),
            Some((None, 0)) | None => {
                let error = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition);
                Err(WriteError::new(topic, &error))
            }
        }
    }

    /// Replaces a client that Kafka has fenced.
    fn renew(&self, old: &Arc<PolledProducer>) {
        let Some((_, reason)) = old.client().fatal_error() else { return };
        let mut renewed = self.renewed.lock();
        let is_early = renewed.is_some_and(|at| at.elapsed() < RENEW_EVERY);
        if is_early || !Arc::ptr_eq(old, &self.current.load()) {
            return;
        }
        *renewed = Some(Instant::now());
        drop(renewed);
        warn!(reason, "kafka fenced the producer; replacing it");
        match PolledProducer::new(&self.config) {
            Ok(new) => self.current.store(Arc::new(new)),
            Err(error) => {
                let error = describe(&error);
                warn!(error, "cannot create a new producer; retrying with a later record");
            }
        }
    }
}

/// The result of a record; an error if the producer was dropped.
async fn outcome_of(outcome: oneshot::Receiver<WriteResult>) -> WriteResult {
    outcome.await.unwrap_or(Err(KafkaError::Canceled))
}

impl WriteError {
    pub(super) fn new(topic: &str, error: &KafkaError) -> Self {
        Self { topic: topic.to_owned(), reason: describe(error), refusal: WriteRefusal::of(error) }
    }
}

impl WriteRefusal {
    /// `None` if the error concerns more than a record or its batch.
    pub(super) fn of(error: &KafkaError) -> Option<Self> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code()? {
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Some(Self::TooLarge),
            Code::InvalidTimestamp => Some(Self::Timestamp),
            // librdkafka reports the first if several records of a batch are at fault, for any
            // reason, and the second for the other records of that batch.
            Code::InvalidRecord | Code::InvalidDifferentRecord => Some(Self::Other),
            _ => None,
        }
    }
}

impl<'a> OutgoingRecord<'a> {
    /// A copy of a record, without its origin.
    pub(crate) fn copy_of(record: &'a Record) -> Self {
        Self {
            key: record.key.as_deref().map(Cow::Borrowed),
            value: record.value.as_deref().map(Cow::Borrowed),
            timestamp_ms: record.timestamp_ms,
            headers: record.headers.clone(),
            partition: None,
        }
    }

    /// Adds a text header.
    pub(crate) fn add_header(&mut self, name: &'static str, value: impl Into<String>) {
        self.headers.push(Header::new(name, value.into()));
    }

    /// Its approximate size in a batch, in bytes.
    pub(crate) fn size(&self) -> usize {
        let length = |bytes: &Option<Cow<'_, [u8]>>| bytes.as_ref().map_or(0, |bytes| bytes.len());
        let header =
            |header: &Header| 8 + header.name.len() + header.value.as_ref().map_or(0, |value| value.len());
        80 + length(&self.key) + length(&self.value) + self.headers.iter().map(header).sum::<usize>()
    }

    fn to<'b>(&'b self, topic: &'b str, result_sender: ResultSender) -> QueuedRecord<'b> {
        QueuedRecord {
            topic,
            partition: self.partition,
            payload: self.value.as_deref(),
            key: self.key.as_deref(),
            timestamp: self.timestamp_ms,
            headers: Some(record::to_native(&self.headers)),
            delivery_opaque: result_sender,
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[tokio::test]
    async fn a_fenced_producer_is_replaced() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let forbidden = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[forbidden]);
        let config = Config { brokers: cluster.bootstrap_servers(), ..Config::default() };
        let sender = RecordWriter::batching(&config).expect("good properties");
        let record =
            OutgoingRecord { key: Some(b"k".into()), value: Some(b"v".into()), ..OutgoingRecord::default() };
        let refused = sender.send("t", record.clone()).await.expect_err("the id was refused");
        assert!(sender.current.load().client().fatal_error().is_none(), "replaced after {refused}");
        sender.send("t", record).await.expect("the new one may write");
    }
}
