//! What all Kafka clients of the gateway share: the connection settings, a producer that waits for
//! the broker's acknowledgement, and a reader of a topic's content.
//!
//! It knows records, but not messages or settled offsets. The consumer, the dead letters and the
//! notifier build on it.

mod admin_request;
mod client_events;
mod errors;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod group_members;
mod mock_broker;
mod native;
mod ordered_writer;
mod patterns;
mod polled_producer;
mod probe;
mod producer;
mod record;
mod record_writer;
mod rights;
mod skip;
mod start;
mod topic_ids;
mod topic_reader;
mod topic_set;
mod verify;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use smart_default::SmartDefault;

use crate::mistake::{Mistake, mistake};
use crate::schema;

pub(crate) use client_events::{ClientEvents, log_line};
pub(crate) use errors::{describe, mistake_of, refused};
pub(crate) use group_members::{AssignedPartitions, assigned_partitions};
pub use mock_broker::MockBroker;
pub(crate) use ordered_writer::{FitRecord, OrderedWriter, WriteOutcome};
pub(crate) use patterns::is_pattern;
pub use probe::{ProbeResult, probe};
pub use producer::Producer;
pub(crate) use record::copy as copy_record;
pub(crate) use record_writer::OutgoingRecord;
pub use record_writer::{WriteError, WriteRefusal};
pub(crate) use skip::is_unreadable;
pub use skip::{SkipRequest, SkippedRange, skip};
pub use start::{InvalidStart, StartFrom};
#[cfg(test)]
pub(crate) use topic_ids::cut_metadata;
pub(crate) use topic_ids::{DescribeTopics, TopicId, TopicState, Topics, cached_low_watermark, metadata_of};
pub use topic_reader::TopicReader;
pub(crate) use topic_reader::{OffsetRange, REQUEST_TIMEOUT, blocking, partitions};
pub use topic_set::TopicSet;
pub use verify::verify;

/// `[kafka]`: where records come from.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bootstrap brokers, `host:port`, separated by commas.
    #[default("localhost:9092")]
    pub brokers: String,
    /// Topics with `PushMsg` records. Gateways that share them share `group`.
    #[default(vec!["push".into()])]
    pub topics: Vec<String>,
    /// The consumer group.
    #[default("halley")]
    pub group: String,
    /// Where the group starts in a topic in which it has committed nothing: `oldest`, `newest`, or a
    /// UTC time. It is decided once and committed; partitions that are added later start at the
    /// beginning.
    #[schemars(with = "String")]
    #[default(StartFrom::Oldest)]
    pub start: StartFrom,
    /// Makes this process a static member of the group under this name, unique in the group:
    /// a restart within the session timeout then moves no partitions. Empty means dynamic.
    pub instance_id: String,
    /// The topic for records that cannot be delivered.
    #[default("push.dead-letter")]
    pub dead_letter_topic: String,
    /// How often settled offsets are committed.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(1))]
    pub commit_interval: Duration,
    /// The group revokes the partitions after this long without a heartbeat. Draining revoked
    /// partitions gets less than half of it.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(30))]
    pub session_timeout: Duration,
    /// Passed to librdkafka unchanged: TLS, SASL and so on. They override the gateway's settings,
    /// except those that its guarantees depend on.
    pub properties: BTreeMap<String, String>,
}

/// Properties that the guarantees depend on; `properties` may not change them.
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

/// Would apply at every assignment of a partition without a committed offset. `start` replaces it.
const AUTO_OFFSET_RESET: &str = "auto.offset.reset";

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if self.brokers.trim().is_empty() {
            problems.push(mistake!("kafka.brokers", "is empty; name at least one `host:port`"));
        } else {
            let protocol = self.properties.get("security.protocol").map(String::as_str);
            problems
                .extend(self.brokers.split(',').filter_map(|broker| broker_problem(broker.trim(), protocol)));
        }
        if self.topics.is_empty() || self.topics.iter().any(String::is_empty) {
            problems.push(mistake!("kafka.topics", "must name at least one topic, and no empty name"));
        }
        // A pattern begins with `^`.
        let topics = self.topics.iter().enumerate();
        let literal = topics.filter(|(_, topic)| !topic.is_empty() && !topic.starts_with('^'));
        problems.extend(literal.filter_map(|(at, topic)| Some(topic_problem("kafka.topics", topic)?.at(at))));
        problems.extend(topic_problem("kafka.dead_letter_topic", &self.dead_letter_topic));
        if self.group.is_empty() {
            problems.push(mistake!("kafka.group", "is empty; gateways that share topics share a group"));
        }
        if self.topics.contains(&self.dead_letter_topic) {
            let topic = &self.dead_letter_topic;
            problems.push(
                mistake!(
                    "kafka.dead_letter_topic",
                    "is `{topic}`, which is also consumed: dead letters would loop"
                )
                .and("kafka.topics"),
            );
        }
        let timeout = self.session_timeout;
        if timeout < Duration::from_secs(1) || timeout > Duration::from_secs(300) {
            problems.push(mistake!(
                "kafka.session_timeout",
                "must be 1s to 300s; brokers allow 6s to 30min by default"
            ));
        }
        if self.properties.contains_key(AUTO_OFFSET_RESET) {
            problems.push(mistake!(
                "kafka.properties",
                "sets `{AUTO_OFFSET_RESET}`; use `kafka.start` = \"oldest\", \"newest\" or a time: it is decided once, whereas the property skips records after restarts and in added partitions"
            ).at(AUTO_OFFSET_RESET));
        }
        for key in RESERVED.iter().filter(|key| self.properties.contains_key(**key)) {
            problems.push(mistake!(
                "kafka.properties",
                "sets `{key}`, which Halley's guarantees depend on; use the key of [kafka] for it, or remove it"
            ).at(key));
        }
        problems
    }

    /// Values that work but are probably a mistake.
    pub fn warnings(&self) -> Vec<Mistake> {
        let mut warnings = Vec::new();
        if self.session_timeout < DEFAULT_MIN_SESSION_TIMEOUT && !self.uses_consumer_protocol() {
            warnings.push(mistake!(
                "kafka.session_timeout",
                "is {:?}; brokers refuse less than 6s unless their `group.min.session.timeout.ms` is lower",
                self.session_timeout
            ));
        }
        if self.session_timeout != Self::default().session_timeout && self.uses_consumer_protocol() {
            warnings.push(
                mistake!(
                    "kafka.session_timeout",
                    "only bounds draining: with `group.protocol` = \"consumer\" the brokers set the session timeout (`group.consumer.session.timeout.ms`)"
                ),
            );
        }
        if !self.instance_id.is_empty() && self.uses_consumer_protocol() {
            warnings.push(
                mistake!(
                    "kafka.instance_id",
                    "is set: with `group.protocol` = \"consumer\", a process that was killed is refused under that name until the brokers' session of it has ended (45s by default), and exits; leave it empty, or let a supervisor restart it for that long"
                ),
            );
        }
        warnings
    }

    /// Whether the group uses the protocol of KIP-848, in which the brokers assign partitions and
    /// set the session timeout.
    pub(crate) fn uses_consumer_protocol(&self) -> bool {
        self.properties
            .get("group.protocol")
            .is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
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

/// The brokers' default minimum (`group.min.session.timeout.ms`).
const DEFAULT_MIN_SESSION_TIMEOUT: Duration = Duration::from_secs(6);

/// What is wrong with the name of a topic, by Kafka's rules.
pub fn topic_problem(key: &str, name: &str) -> Option<Mistake> {
    let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let remedy = "a topic's name has 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and is neither `.` nor `..`";
    match name {
        "" => Some(mistake!("{key}", "is empty; {remedy}")),
        _ if name.len() > 249 || matches!(name, "." | "..") || !name.bytes().all(is_legal) => {
            Some(mistake!("{key}", ": `{name}` is not a valid topic name; {remedy}"))
        }
        _ => None,
    }
}

/// What is wrong with one entry of `brokers`. librdkafka accepts a scheme if it is the security
/// protocol in `properties`. It ignores an entry that it cannot parse, and only logs that.
fn broker_problem(broker: &str, protocol: Option<&str>) -> Option<Mistake> {
    let wrong = |why: &str| Some(mistake!("kafka.brokers", ": `{broker}` {why}; write host:port"));
    let (scheme, host) =
        broker.split_once("://").map_or((None, broker), |(scheme, host)| (Some(scheme), host));
    if scheme.is_some_and(|scheme| !scheme.eq_ignore_ascii_case(protocol.unwrap_or("plaintext"))) {
        return wrong("has a scheme that is not the `security.protocol` of [kafka.properties]");
    }
    let (name, port) = match host.rsplit_once(':') {
        // An IPv6 address is in brackets.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@')) {
        return wrong("has no valid host");
    }
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return wrong("has no port from 1 to 65535 after its last colon");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_host_and_port() {
        for broker in
            ["a", "a:9092", "10.0.0.1:1", "[::1]:9092", "[::1]", "PLAINTEXT://a:9092", "kafka-0.kafka:9092"]
        {
            assert_eq!(broker_problem(broker, None), None, "{broker}");
        }
        for broker in [
            "",
            ":9092",
            "http://a:9092",
            "kafka://a",
            "SSL://a:9093",
            "a:",
            "a:0",
            "a:65536",
            "a:9092/x",
            "a b:1",
            "u@a:1",
        ] {
            assert!(broker_problem(broker, None).is_some(), "{broker}");
        }
        assert_eq!(broker_problem("SASL_SSL://a:9093", Some("sasl_ssl")), None);
        assert!(broker_problem("plaintext://a:9093", Some("sasl_ssl")).is_some());
    }

    #[test]
    fn topic_names_follow_kafka_s_rules() {
        for topic in ["a", "push.dead-letter_1", &"x".repeat(249)] {
            assert_eq!(topic_problem("k", topic), None, "{topic}");
        }
        for topic in ["", ".", "..", "push dead", "push/dead", "t\u{f6}pic", &"x".repeat(250)] {
            assert!(
                topic_problem("k", topic).is_some_and(|mistake| mistake.text.starts_with("`k`")),
                "{topic}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_with_their_key() {
        assert_eq!(Config::default().validate(), []);
        let wrong = Config {
            topics: vec!["push".into()],
            dead_letter_topic: "push".into(),
            properties: [("acks", "1"), (AUTO_OFFSET_RESET, "latest")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..Config::default()
        };
        let problems = wrong.validate();
        assert_eq!(problems.len(), 3, "{problems:?}");
        let named = ["kafka.dead_letter_topic", "`kafka.start`", "`acks`"];
        for (problem, name) in problems.iter().zip(named) {
            assert!(problem.text.contains(name), "{problem}");
        }
    }
}
