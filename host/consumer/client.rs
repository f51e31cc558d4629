//! How librdkafka is set up to consume.

use rdkafka::ClientConfig;

use crate::kafka;

/// The least that the memory of an unpacked batch is bounded to: what librdkafka has by default.
const LEAST_BATCH: u64 = 100_000_000;
/// The most, where memory allows it.
const MOST_BATCH: u64 = 1 << 30;

/// The configuration of the group's consumer. `memory` is what the process may use; topics of these
/// names are never read, whatever pattern they match.
pub(super) fn client_config(config: &kafka::Config, memory: Option<u64>, not_these: &[&str]) -> ClientConfig {
    let mut client = config.client();
    let mut default = |key: &str, value: &str| {
        if !config.properties.contains_key(key) {
            client.set(key, value);
        }
    };
    if !config.is_next_generation() {
        // The brokers assign and say how long a session lasts where the group speaks KIP-848.
        default("partition.assignment.strategy", "cooperative-sticky");
        default("session.timeout.ms", &config.session_timeout.as_millis().to_string());
    }
    // The default of a second makes gaps of a second each time the fetch queue fills.
    default("fetch.queue.backoff.ms", "20");
    default("queued.max.messages.kbytes", "16384");
    // A topic that is created after the gateway started is found within this time.
    default("topic.metadata.refresh.interval.ms", "10000");
    default("statistics.interval.ms", "1000");
    default("receive.message.max.bytes", &largest_batch(config, memory).to_string());
    client
        .set("group.id", &config.group)
        // Where a group begins is decided and committed by `placing`. What is left for this are
        // offsets that the log does not hold any more, or does not hold yet.
        .set("auto.offset.reset", "earliest")
        // librdkafka commits what the watermark stores, and again when Kafka refuses: of a commit
        // made by hand and not waited for, nobody hears how it ended (rdkafka_cgrp.c,
        // propagate_commit_result), and one refused in a rebalance would never be repeated.
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", config.commit_every.as_millis().max(1).to_string())
        .set("enable.auto.offset.store", "false");
    if !config.instance.is_empty() {
        client.set("group.instance.id", &config.instance);
    }
    if config.topics.iter().any(|topic| topic.starts_with('^')) {
        client.set("topic.blacklist", ignored(config, not_these));
    }
    client
}

/// A batch that unpacks to more than `receive.message.max.bytes` is never read (librdkafka issue
/// 5260, for zstd), so that this is as high as memory allows: half of it for one batch.
fn largest_batch(config: &kafka::Config, memory: Option<u64>) -> u64 {
    let fetched = config.properties.get("fetch.max.bytes").and_then(|bytes| bytes.parse::<u64>().ok());
    // librdkafka wants it to hold a whole answer.
    let least = LEAST_BATCH.max(fetched.unwrap_or_default().saturating_add(512));
    memory.map_or(MOST_BATCH, |memory| memory / 2).clamp(least, MOST_BATCH.max(least))
}

/// What librdkafka is to take for topics that do not exist: expressions, separated by commas.
fn ignored(config: &kafka::Config, not_these: &[&str]) -> String {
    let exactly = |topic: &&str| format!("^{}$", topic.replace('.', "\\."));
    let theirs = config.properties.get("topic.blacklist").cloned();
    not_these.iter().map(exactly).chain(theirs).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_may_unpack_to_half_of_the_memory() {
        let config = kafka::Config::default();
        assert_eq!(largest_batch(&config, None), MOST_BATCH);
        assert_eq!(largest_batch(&config, Some(1_000_000_000)), 500_000_000);
        assert_eq!(largest_batch(&config, Some(64 << 20)), LEAST_BATCH);
        let properties = [("fetch.max.bytes".to_owned(), "2000000000".to_owned())].into();
        let fetches_more = kafka::Config { properties, ..config };
        assert_eq!(largest_batch(&fetches_more, None), 2_000_000_512);
    }

    #[test]
    fn patterns_never_match_the_gateway_s_own_topics() {
        let mut config = kafka::Config::default();
        let ours = ["push.dead-letter", "push.offline"];
        assert_eq!(client_config(&config, None, &ours).get("topic.blacklist"), None);
        config.topics = vec!["^push.*".into()];
        config.properties.insert("topic.blacklist".into(), "^push\\.test".into());
        let set = client_config(&config, None, &ours);
        let expected = "^push\\.dead-letter$,^push\\.offline$,^push\\.test";
        assert_eq!(set.get("topic.blacklist"), Some(expected));
    }
}
