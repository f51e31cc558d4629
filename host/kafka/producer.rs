//! One producer for the whole gateway, whose records are confirmed by the broker.
//!
//! It is idempotent: what librdkafka tries again is written once. Such a producer can be shut
//! out by the broker for good (its id was forgotten, or it may not have one). Then the next
//! write makes a new one, so that a permission that is granted later needs no restart.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::util::Timeout;
use tracing::warn;

use crate::kafka::Config;
use crate::kafka::voice::ProducerContext;
use crate::telemetry::Seldom;

/// A record could not be written, and the broker may not have it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot write to topic `{topic}`: {reason}; is the topic there, and may this client write to it?")]
pub struct NotWritten {
    /// The topic.
    pub topic: String,
    /// What Kafka said.
    pub reason: String,
}

/// A record to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) headers: OwnedHeaders,
    /// None leaves the choice to the producer, by key.
    pub(crate) partition: Option<i32>,
}

/// Writes records and waits for all in-sync replicas to have them. Cheap to clone; the clones
/// share what they write with.
#[derive(Clone)]
pub struct Producer(Arc<Renewable>);

struct Renewable {
    config: ClientConfig,
    current: ArcSwap<FutureProducer<ProducerContext>>,
    renewals: Seldom,
}

/// How long one attempt may take, from the producer's queue to the broker's acknowledgement.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How soon after one new producer there may be another.
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// The header of a record that was too large for its topic: how large its value was.
pub const VALUE_LEFT_OUT: &str = "halley-value-left-out";
/// No broker refuses values up to this size for their size.
const LARGE: usize = 100_000;

impl Producer {
    /// Makes the producer. It connects by itself, now and after every interruption.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let mut client = config.client();
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", WRITE_TIMEOUT.as_millis().to_string())
            .set("linger.ms", "2")
            // What was read can be written: the broker's limit decides, not librdkafka's
            // default of a million bytes.
            .set("message.max.bytes", "1000000000");
        let current = ArcSwap::from_pointee(client.create_with_context(ProducerContext::new())?);
        Ok(Self(Arc::new(Renewable { config: client, current, renewals: Seldom::every(RENEW_EVERY) })))
    }

    /// Writes a key and a value; returns once the broker has confirmed it.
    ///
    /// # Errors
    /// After five seconds without a confirmation, or at once when a retry is of no use.
    pub async fn put(&self, topic: &str, key: &[u8], value: &[u8]) -> Result<(), NotWritten> {
        self.write(topic, Outgoing { key: Some(key), value: Some(value), ..Outgoing::default() }).await
    }

    /// Writes one record; returns once the broker has confirmed it.
    ///
    /// # Errors
    /// After five seconds without a confirmation, or at once when a retry is of no use.
    pub(crate) async fn write(&self, topic: &str, record: Outgoing<'_>) -> Result<(), NotWritten> {
        let error = match self.send(topic, record.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let acceptable = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => without_value(topic, record, &error),
            // The topic refuses records of that age; ours carry it in a header, too.
            Some(RDKafkaErrorCode::InvalidTimestamp) => Some(Outgoing { timestamp_ms: None, ..record }),
            _ => None,
        };
        let Some(acceptable) = acceptable else { return Err(not_written(topic, error)) };
        self.send(topic, acceptable).await.map_err(|error| not_written(topic, error))
    }

    async fn send(&self, topic: &str, record: Outgoing<'_>) -> Result<(), KafkaError> {
        let producer = self.0.current.load_full();
        match producer.send(record.to(topic), Timeout::After(WRITE_TIMEOUT)).await {
            Ok(_) => Ok(()),
            Err((error, _)) => {
                self.0.renew(&producer);
                Err(error)
            }
        }
    }

    /// Puts one record behind those that are queued, at once; the future ends once the broker
    /// has confirmed it. Records of one partition are written in the order of these calls.
    ///
    /// # Errors
    /// Those of [`Producer::write`], and a full queue: bound what is in flight.
    pub(crate) fn enqueue(
        &self,
        topic: &str,
        record: Outgoing<'_>,
    ) -> impl Future<Output = Result<(), NotWritten>> + Send + use<> {
        let producer = self.0.current.load();
        let queued = producer.send_result(record.to(topic)).map_err(|(error, _)| error);
        let topic = topic.to_owned();
        async move {
            match queued {
                Ok(delivery) => match delivery.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err((error, _))) => Err(not_written(&topic, error)),
                    Err(canceled) => Err(not_written(&topic, canceled)),
                },
                Err(error) => Err(not_written(&topic, error)),
            }
        }
    }
}

impl Renewable {
    /// Takes a new producer in the place of one that Kafka has shut out for good.
    fn renew(&self, old: &Arc<FutureProducer<ProducerContext>>) {
        let Some((_, reason)) = old.client().fatal_error() else { return };
        if !Arc::ptr_eq(old, &self.current.load()) || !self.renewals.now() {
            return;
        }
        warn!(reason, "kafka has shut the producer out for good; a new one takes its place");
        match self.config.create_with_context(ProducerContext::new()) {
            Ok(new) => self.current.store(Arc::new(new)),
            Err(error) => warn!(%error, "cannot make a new producer; it is tried with a later record"),
        }
    }
}

/// The record as a topic takes it for which its value is too large. A record that fitted into
/// its topic may not fit with our headers, or into another one; trying for ever would hold up
/// its partition.
fn without_value<'a>(topic: &str, record: Outgoing<'a>, error: &KafkaError) -> Option<Outgoing<'a>> {
    let size = record.value.map(<[u8]>::len).filter(|size| *size > LARGE)?;
    tracing::error!(
        topic,
        size,
        "a record is too large for the topic and is written without its value; raise the topic's `max.message.bytes`"
    );
    let left_out = format!("{size} bytes: {error}");
    let headers = record.headers.insert(Header { key: VALUE_LEFT_OUT, value: Some(&left_out) });
    Some(Outgoing { value: None, headers, ..record })
}

fn not_written(topic: &str, reason: impl std::fmt::Display) -> NotWritten {
    NotWritten { topic: topic.to_owned(), reason: reason.to_string() }
}

impl<'a> Outgoing<'a> {
    fn to(self, topic: &'a str) -> FutureRecord<'a, [u8], [u8]> {
        FutureRecord {
            topic,
            partition: self.partition,
            payload: self.value,
            key: self.key,
            timestamp: self.timestamp_ms,
            headers: Some(self.headers),
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;
    use rdkafka::message::Headers as _;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    fn producer(cluster: &MockCluster<'_, impl rdkafka::client::ClientContext>) -> Producer {
        let config = Config { brokers: cluster.bootstrap_servers(), ..Config::default() };
        Producer::new(&config).expect("good properties")
    }

    #[tokio::test]
    async fn a_producer_that_was_shut_out_is_replaced() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let forbidden = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[forbidden]);
        let producer = producer(&cluster);
        let refused = producer.put("t", b"k", b"v").await.expect_err("the id was refused");
        assert!(producer.0.current.load().client().fatal_error().is_none(), "replaced after {refused}");
        producer.put("t", b"k", b"v").await.expect("the new one may write");
    }

    #[test]
    fn only_a_large_value_is_left_out() {
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        let large = vec![0; LARGE + 1];
        let of = |value| Outgoing { key: Some(b"k"), value, timestamp_ms: Some(7), ..Outgoing::default() };
        let stub = without_value("t", of(Some(&large)), &error).expect("something is left");
        assert_eq!((stub.key, stub.value, stub.timestamp_ms), (Some(&b"k"[..]), None, Some(7)));
        assert_eq!(stub.headers.iter().map(|header| header.key).collect::<Vec<_>>(), [VALUE_LEFT_OUT]);
        assert!(without_value("t", of(Some(b"small")), &error).is_none());
    }
}
