//! What every Kafka client of the gateway shares: where the cluster is, how to reach it, one
//! producer whose records are confirmed by the broker, and one reader of what a topic holds.
//!
//! It knows records, and nothing of messages and settled offsets; the consumer, the dead letters and the notify
//! sender build on it.

mod builtin;
mod native;
mod ordered;
mod producer;
mod read;
mod record;
mod sender;
mod start;
mod topic_ids;
mod voice;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

pub use builtin::BuiltinBroker;
pub(crate) use ordered::{Fit, OrderedSender, Written};
pub use producer::Producer;
pub use read::Reader;
pub(crate) use read::{ANSWER, Span, blocking, partitions};
pub(crate) use record::copy as copy_record;
pub(crate) use sender::Outgoing;
pub use sender::{NotWritten, Refusal};
pub use start::{NotAStart, Start};
pub(crate) use topic_ids::{TopicId, TopicQuestion, TopicState, Topics, cached_low, metadata_of};
pub(crate) use voice::{Voice, log_line};

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
    /// Where the group begins in a topic in which it has committed nothing: `oldest`, `newest`,
    /// or a UTC time. It is decided once and committed; partitions that are added later begin at
    /// their start.
    pub start: Start,
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
            start: Start::Oldest,
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

/// Would apply at every assignment of a partition without a committed offset; `start` is instead
/// of it.
const RESET: &str = "auto.offset.reset";

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
        if self.properties.contains_key(RESET) {
            problems.push(format!(
                "`kafka.properties` sets `{RESET}`; use `kafka.start` = \"oldest\", \"newest\" or a time: it is decided once, where the property skips records after restarts and of partitions that are added"
            ));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_key() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
        let wrong = Config {
            topics: vec!["push".into()],
            dead_letter_topic: "push".into(),
            properties: [("acks", "1"), (RESET, "latest")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Config::default()
        };
        let problems = wrong.problems();
        assert_eq!(problems.len(), 3, "{problems:?}");
        let named = ["kafka.dead_letter_topic", "`kafka.start`", "`acks`"];
        for (problem, name) in problems.iter().zip(named) {
            assert!(problem.contains(name), "{problem}");
        }
    }
}
