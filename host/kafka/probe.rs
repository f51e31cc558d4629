//! Checks that a cluster has what the gateway needs: topics that exist and accept dead letters, and
//! a group that this client may use. It changes nothing.
//!
//! Whether a topic may be read and written is what the brokers say of this client's ACLs, without trying.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::patterns::{self, PatternMatches, is_pattern};
use crate::kafka::rights::TopicRights;
use crate::kafka::{Config, REQUEST_TIMEOUT, blocking, log_line, refused, topic_reader};

/// The result of one check.
pub struct ProbeResult {
    /// What was checked, in the operator's words.
    pub subject: String,
    /// What was found, or what is wrong and how to fix it.
    pub found: anyhow::Result<String>,
    /// Whether what was found works now, and will not for long.
    pub is_warning: bool,
}

impl ProbeResult {
    /// A result for a subject.
    pub fn new(subject: impl Into<String>, found: anyhow::Result<String>) -> Self {
        Self { subject: subject.into(), found, is_warning: false }
    }

    /// The same as a warning.
    pub fn as_warning(self, is_warning: bool) -> Self {
        Self { is_warning, ..self }
    }
}

/// How long to wait for librdkafka's log lines.
const LOG_WAIT: Duration = Duration::from_millis(300);

/// For how many topics of a pattern the maximum record size is requested.
const MATCHES_ASKED: usize = 20;

/// The client for all requests except those for settings.
type ProbeClient = BaseConsumer<ProbeContext>;

/// Keeps why the last connection failed, which librdkafka only logs; the request itself just times
/// out.
#[derive(Default)]
struct ProbeContext(Mutex<Option<String>>);

impl ClientContext for ProbeContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
        if facility == "FAIL" {
            // "[thrd:a:9092/bootstrap]: a:9092/bootstrap: Connect to ... failed: Connection refused"
            let plain = message.split_once("]: ").map_or(message, |(_, plain)| plain);
            self.note_failure(plain.to_owned());
        }
    }

    /// A missing right on the group is only reported here; the request itself gets no answer.
    fn error(&self, error: KafkaError, reason: &str) {
        log_line(RDKafkaLogLevel::Debug, "ERROR", reason);
        if let Some(remedy) = error.rdkafka_error_code().and_then(remedy) {
            self.note_failure(format!("{remedy}: {reason}"));
        }
    }
}

impl ProbeContext {
    fn note_failure(&self, what: String) {
        *self.0.lock() = Some(what);
    }
}

/// The remedy for a missing right.
fn remedy(code: RDKafkaErrorCode) -> Option<&'static str> {
    match code {
        RDKafkaErrorCode::GroupAuthorizationFailed => {
            Some("not authorized for the group; grant the gateway's user READ on the group")
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => Some(
            "not authorized for the topic; grant the gateway's user READ and DESCRIBE on consumed topics, WRITE and DESCRIBE on the others",
        ),
        _ => None,
    }
}

impl ConsumerContext for ProbeContext {}

/// Checks the brokers, the consumed topics, the dead-letter topic, the topics for other output (each
/// with its purpose) and the group, in this order. If no broker answers, it checks nothing else.
pub async fn probe(config: &Config, outputs: &[(&str, &str)]) -> Vec<ProbeResult> {
    let brokers = format!("kafka at {}", config.brokers);
    let cluster = match ClusterProbe::new(config).await {
        Ok((cluster, count)) => (
            cluster,
            ProbeResult::new(
                brokers,
                Ok(format!("{count} broker{} known", if count == 1 { "" } else { "s" })),
            ),
        ),
        Err(error) => return vec![ProbeResult::new(brokers, Err(error))],
    };
    let (cluster, answered) = cluster;
    let mut probed = vec![answered];
    let mut largest = 0;
    let (patterns, topics): (Vec<_>, Vec<_>) = config.topics.iter().partition(|topic| is_pattern(topic));
    for pattern in patterns {
        let matches = cluster.matches(pattern, config, outputs).await;
        for topic in matches.iter().flat_map(|matches| &matches.topics).take(MATCHES_ASKED) {
            let found = cluster.topic(topic, false).await.unwrap_or_default();
            largest = largest.max(found.largest_record.unwrap_or_default());
        }
        let found = matches.and_then(|matches| matches.found());
        probed.push(ProbeResult::new(format!("topics {pattern}"), found));
    }
    for topic in topics {
        let found = cluster.consumed(topic).await;
        largest = largest.max(found.as_ref().map_or(0, |found| found.largest_record.unwrap_or(0)));
        probed.push(ProbeResult::new(format!("topic {topic}"), found.map(|found| found.to_string())));
    }
    let dead = cluster.written(&config.dead_letter_topic).await;
    let dead = dead.and_then(|found| found.check_dead_letters(largest));
    probed.push(ProbeResult::new(format!("dead-letter topic {}", config.dead_letter_topic), dead));
    for (purpose, topic) in outputs {
        let found = cluster.written(topic).await.map(|found| found.to_string());
        probed.push(ProbeResult::new(format!("{purpose} topic {topic}"), found));
    }
    probed.push(ProbeResult::new(format!("group {}", config.group), cluster.group(config).await));
    probed
}

/// What is known of a topic. `None` if it could not be requested.
#[derive(Debug, Default, PartialEq, Eq)]
struct TopicFacts {
    /// `None`: it does not exist, and the brokers create it on first use.
    partitions: Option<usize>,
    largest_record: Option<u64>,
    compacted: bool,
}

impl TopicFacts {
    /// Dead letters are records with additional headers, and may have no key.
    fn check_dead_letters(&self, largest_consumed: u64) -> anyhow::Result<String> {
        anyhow::ensure!(
            !self.compacted,
            "it is compacted: it refuses dead letters without a key and deletes others; set its `cleanup.policy` to `delete`"
        );
        if let Some(largest) = self.largest_record.filter(|largest| *largest < largest_consumed) {
            anyhow::bail!(
                "its `max.message.bytes` is {largest}, below the {largest_consumed} of a consumed topic: the largest dead letters would lose their value; raise it"
            );
        }
        Ok(self.to_string())
    }
}

impl std::fmt::Display for TopicFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.partitions {
            None => write!(f, "does not exist yet; the brokers create topics on first use"),
            Some(1) => write!(f, "1 partition"),
            Some(partitions) => write!(f, "{partitions} partitions"),
        }
    }
}

struct ClusterProbe {
    consumer: Arc<ProbeClient>,
    admin: Arc<AdminClient<DefaultClientContext>>,
    /// Whether brokers create topics automatically.
    creates_topics: bool,
    /// The shortest and longest session timeout that the group's coordinator allows.
    sessions: Option<(Duration, Duration)>,
}

impl ClusterProbe {
    /// Connects; returns the number of brokers as well.
    async fn new(config: &Config) -> anyhow::Result<(Self, usize)> {
        let client = topic_reader::client(config, &config.group);
        let consumer: ProbeClient = client.create_with_context(ProbeContext::default()).map_err(refused)?;
        let consumer = Arc::new(consumer);
        let brokers = ask(&consumer, |consumer| {
            let metadata = consumer.fetch_metadata(Some("__consumer_offsets"), REQUEST_TIMEOUT)?;
            Ok(metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect::<Vec<_>>())
        });
        let brokers =
            brokers.await.context("no broker reachable; check `[kafka] brokers`, and `security.protocol` and `sasl.*` in [kafka.properties]")?;
        let mut quiet = config.client();
        quiet.set_log_level(RDKafkaLogLevel::Emerg);
        let admin = Arc::new(quiet.create().map_err(refused)?);
        let mut cluster = Self { consumer, admin, creates_topics: false, sessions: None };
        if let Some(settings) =
            cluster.settings(&ResourceSpecifier::Broker(*brokers.first().unwrap_or(&0))).await
        {
            let milliseconds = |key| Some(Duration::from_millis(value(&settings, key)?.parse().ok()?));
            cluster.creates_topics = value(&settings, "auto.create.topics.enable") == Some("true");
            let least = milliseconds("group.min.session.timeout.ms");
            cluster.sessions = least.zip(milliseconds("group.max.session.timeout.ms"));
        }
        Ok((cluster, brokers.len()))
    }

    /// What is known of a topic; it must exist, unless `is_made` on first use.
    async fn topic(&self, topic: &str, is_made: bool) -> anyhow::Result<TopicFacts> {
        let name = topic.to_owned();
        let partitions =
            ask(&self.consumer, move |consumer| topic_reader::partitions(consumer, &name)).await?;
        let Some(partitions) = partitions.filter(|partitions| !partitions.is_empty()) else {
            anyhow::ensure!(
                is_made && self.creates_topics,
                "it does not exist; create it, or check its name"
            );
            return Ok(TopicFacts::default());
        };
        let settings = self.settings(&ResourceSpecifier::Topic(topic)).await;
        let setting = |key| settings.as_ref().and_then(|settings| value(settings, key));
        Ok(TopicFacts {
            partitions: Some(partitions.len()),
            largest_record: setting("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
            compacted: setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        })
    }

    /// What is known of a consumed topic, which must exist and may be read.
    async fn consumed(&self, topic: &str) -> anyhow::Result<TopicFacts> {
        let found = self.topic(topic, false).await?;
        let rights = self.rights(topic).await;
        anyhow::ensure!(
            rights.is_none_or(|rights| rights.may_read()),
            "not authorized to read it; grant the gateway's user READ and DESCRIBE on the topic"
        );
        Ok(found)
    }

    /// What is known of a topic that is written, and made on first use.
    async fn written(&self, topic: &str) -> anyhow::Result<TopicFacts> {
        let found = self.topic(topic, true).await?;
        // The rights on a topic that does not exist are not known.
        if found.partitions.is_some() {
            let rights = self.rights(topic).await;
            anyhow::ensure!(
                rights.is_none_or(|rights| rights.may_write()),
                "not authorized to write it; grant the gateway's user WRITE and DESCRIBE on the topic"
            );
        }
        Ok(found)
    }

    /// What this client may do with a topic, if the brokers say.
    async fn rights(&self, topic: &str) -> Option<TopicRights> {
        let topic = topic.to_owned();
        let ask = move |admin: &AdminClient<DefaultClientContext>| {
            Ok(TopicRights::ask(admin.inner(), &topic, REQUEST_TIMEOUT))
        };
        blocking(&self.admin, ask).await.ok()?
    }

    /// The topics that a pattern currently matches.
    async fn matches(
        &self,
        pattern: &str,
        config: &Config,
        outputs: &[(&str, &str)],
    ) -> anyhow::Result<PatternMatches> {
        let topics = ask(&self.consumer, |consumer| {
            let metadata = consumer.fetch_metadata(None, REQUEST_TIMEOUT)?;
            Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect::<Vec<_>>())
        });
        patterns::matches(pattern, &topics.await?, outputs, config)
    }

    /// Checks that this client may use the group, and that the coordinator accepts its session timeout.
    async fn group(&self, config: &Config) -> anyhow::Result<String> {
        let mut list = TopicPartitionList::new();
        for topic in config.topics.iter().filter(|topic| !is_pattern(topic)) {
            list.add_partition_offset(topic, 0, Offset::Invalid)?;
        }
        let committed =
            ask(&self.consumer, move |consumer| Ok(consumer.committed_offsets(list, REQUEST_TIMEOUT)?))
                .await?;
        let is_new = committed.elements().iter().all(|partition| partition.offset() == Offset::Invalid);
        if let Some(problem) = session_problem(self.sessions, config) {
            anyhow::bail!(problem);
        }
        Ok(if is_new { "it has committed nothing yet" } else { "it has committed offsets" }.to_owned())
    }

    /// The settings of a topic or a broker; `None` if this client may not read them.
    async fn settings(&self, of: &ResourceSpecifier<'_>) -> Option<ConfigResource> {
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let mut answers = self.admin.describe_configs([of], &options).await.ok()?;
        answers.pop()?.ok()
    }
}

/// Why the group's coordinator refuses the session timeout; `taken` is the allowed range.
fn session_problem(taken: Option<(Duration, Duration)>, config: &Config) -> Option<String> {
    let (least, most) = taken.filter(|_| !config.uses_consumer_protocol())?;
    let timeout = config.session_timeout;
    (!(least..=most).contains(&timeout)).then(|| {
        format!(
            "the brokers allow sessions of {least:?} to {most:?} (`group.min.session.timeout.ms`, `group.max.session.timeout.ms`), but `kafka.session_timeout` is {timeout:?}"
        )
    })
}

fn value<'a>(settings: &'a ConfigResource, key: &str) -> Option<&'a str> {
    settings.get(key)?.value.as_deref()
}

/// The error code of a broker's refusal.
fn refusal(error: &anyhow::Error) -> Option<RDKafkaErrorCode> {
    let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    // The client's own error codes are negative.
    code.filter(|code| *code as i32 >= 0)
}

/// Runs a request; a failure includes what librdkafka reported about its connections meanwhile.
async fn ask<T: Send + 'static>(
    consumer: &Arc<ProbeClient>,
    question: impl FnOnce(&ProbeClient) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let answer = blocking(consumer, move |consumer| {
        let answer = question(consumer);
        if answer.is_err() {
            // A poll delivers the log lines.
            drop(consumer.poll(LOG_WAIT));
        }
        answer
    });
    let last = || consumer.context().0.lock().take();
    // Only a request without an answer is explained by a failed connection; others may have failed too.
    answer.await.map_err(|error| match refusal(&error) {
        Some(code) => match remedy(code) {
            Some(remedy) => error.context(remedy),
            None => error,
        },
        None => last().map_or(error, |why| anyhow!(why)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_timeout_has_to_be_allowed() {
        let config = |seconds| Config { session_timeout: Duration::from_secs(seconds), ..Config::default() };
        let taken = Some((Duration::from_secs(6), Duration::from_secs(60)));
        for seconds in [6, 30, 60] {
            assert_eq!(session_problem(taken, &config(seconds)), None);
        }
        let said = session_problem(taken, &config(1)).expect("too short");
        assert!(said.contains("`kafka.session_timeout` is 1s") && said.contains("6s to 60s"), "{said}");
        assert!(session_problem(taken, &config(61)).is_some());
        assert_eq!(session_problem(None, &config(1)), None, "it could not be asked");
    }

    #[test]
    fn dead_letters_need_room_and_no_key() {
        let topic =
            |largest, compacted| TopicFacts { partitions: Some(1), largest_record: largest, compacted };
        assert!(topic(Some(1000), false).check_dead_letters(1000).is_ok());
        assert!(topic(None, false).check_dead_letters(1000).is_ok());
        assert!(topic(Some(999), false).check_dead_letters(1000).is_err());
        assert!(topic(Some(1000), true).check_dead_letters(0).is_err());
    }
}
