//! What every Kafka client of the gateway shares: where the cluster is, how to reach it, and
//! one producer whose records are confirmed by the broker.
//!
//! It knows nothing of messages and offsets; the consumer, the dead letters and the notify
//! sender build on it.

mod builtin;
mod voice;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

pub use builtin::BuiltinBroker;
pub(crate) use voice::{Voice, log_line};

use voice::ProducerContext;

/// `[kafka]`: where records come from.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bootstrap brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// Topics with `PushMsg` records. Gateways that share them share `group`.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// Makes this process a static member of the group under this name, unique in the group:
    /// a restart within the session timeout then moves no partitions. Empty means dynamic.
    pub instance: String,
    /// Where records go that cannot be delivered.
    pub dead_letter_topic: String,
    /// How often settled offsets are committed.
    #[serde(with = "humantime_serde")]
    pub commit_every: Duration,
    /// Without a heartbeat for this long the group takes the partitions away. Draining
    /// revoked partitions gets less than half of it.
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
    /// Handed to librdkafka as they are: TLS, SASL and the like. They win over what the
    /// gateway sets, except for the settings that its guarantees rest on.
    pub properties: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            topics: vec!["push".into()],
            group: "halley".into(),
            instance: String::new(),
            dead_letter_topic: "push.dead-letter".into(),
            commit_every: Duration::from_secs(1),
            session_timeout: Duration::from_secs(30),
            properties: BTreeMap::new(),
        }
    }
}

/// Properties that the guarantees rest on; `properties` may not change them.
const RESERVED: [&str; 11] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "group.instance.id",
    "request.required.acks",
    "enable.partition.eof",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "acks",
    "session.timeout.ms",
];

impl Config {
    /// What is wrong with the values, one sentence for each mistake.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.brokers.trim().is_empty() {
            problems.push("`kafka.brokers` is empty; name at least one `host:port`".into());
        }
        if self.topics.is_empty() || self.topics.iter().any(String::is_empty) {
            problems.push("`kafka.topics` must name at least one topic, and no empty one".into());
        }
        if self.group.is_empty() {
            problems.push("`kafka.group` is empty; gateways that share topics share a group".into());
        }
        if self.topics.contains(&self.dead_letter_topic) {
            let topic = &self.dead_letter_topic;
            problems.push(format!(
                "`kafka.dead_letter_topic` is `{topic}`, which is also consumed: dead letters would go round in circles"
            ));
        }
        let timeout = self.session_timeout;
        if timeout < Duration::from_secs(1) || timeout > Duration::from_secs(300) {
            problems.push(
                "`kafka.session_timeout` must be 1s to 300s; brokers allow 6s to 30min unless told otherwise"
                    .into(),
            );
        }
        for key in RESERVED.iter().filter(|key| self.properties.contains_key(**key)) {
            problems.push(format!(
                "`kafka.properties` sets `{key}`, which Halley's guarantees rest on; use the key of [kafka] for it or leave it out"
            ));
        }
        problems
    }

    /// The configuration that all clients start from.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("client.id", "halley")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in &self.properties {
            client.set(key, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        client
    }
}

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
#[derive(Debug, Default)]
pub(crate) struct Outgoing<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) headers: OwnedHeaders,
    /// None leaves the choice to the producer, by key.
    pub(crate) partition: Option<i32>,
}

/// Writes records and waits for all in-sync replicas to have them. Cheap to clone.
#[derive(Clone)]
pub struct Producer {
    inner: FutureProducer<ProducerContext>,
}

/// How long one attempt may take, from the producer's queue to the broker's acknowledgement.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

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
        let inner = config
            .client()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", WRITE_TIMEOUT.as_millis().to_string())
            .set("linger.ms", "2")
            // What was read can be written: the broker's limit decides, not librdkafka's
            // default of a million bytes.
            .set("message.max.bytes", "1000000000")
            .create_with_context(ProducerContext::new())?;
        Ok(Self { inner })
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
        let (key, size) = (record.key, record.value.map_or(0, <[u8]>::len));
        let timestamp_ms = record.timestamp_ms;
        let headers = (size > LARGE).then(|| record.headers.clone());
        let error = match self.inner.send(record.to(topic), Timeout::After(WRITE_TIMEOUT)).await {
            Ok(_) => return Ok(()),
            Err((error, _)) => error,
        };
        let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        let Some(headers) = headers.filter(|_| too_large) else { return Err(not_written(topic, error)) };
        // A record that fitted into its topic may not fit with our headers, or into this topic.
        // Trying for ever would hold up its partition: it is written without its value.
        let left_out = format!("{size} bytes: {error}");
        let headers = headers.insert(Header { key: VALUE_LEFT_OUT, value: Some(&left_out) });
        tracing::error!(
            topic,
            size,
            "a record is too large for the topic and is written without its value; raise the topic's `max.message.bytes`"
        );
        let stub = Outgoing { key, timestamp_ms, headers, ..Outgoing::default() };
        let sent = self.inner.send(stub.to(topic), Timeout::After(WRITE_TIMEOUT)).await;
        sent.map(drop).map_err(|(error, _)| not_written(topic, error))
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
        let queued = self.inner.send_result(record.to(topic)).map_err(|(error, _)| error);
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
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_key() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
        let wrong = Config {
            topics: vec!["push".into()],
            dead_letter_topic: "push".into(),
            properties: [("acks".to_owned(), "1".to_owned())].into(),
            ..Config::default()
        };
        let problems = wrong.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("kafka.dead_letter_topic") && problems[1].contains("`acks`"));
    }
}
