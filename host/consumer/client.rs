//! librdkafka's configuration for the consumer.

use std::time::Duration;

use rdkafka::ClientConfig;

use crate::kafka;

/// The librdkafka property for the next constant.
pub(super) const METADATA_REFRESH_KEY: &str = "topic.metadata.refresh.interval.ms";
/// How often librdkafka refreshes its metadata. A topic that is created while the gateway runs is
/// discovered within this time.
pub(super) const METADATA_REFRESH: Duration = Duration::from_secs(10);

/// The lowest bound on the size of a decompressed batch: librdkafka's default.
const MIN_BATCH_LIMIT: u64 = 100_000_000;
/// The highest bound, if memory allows it.
const MAX_BATCH_LIMIT: u64 = 1 << 30;

/// The consumer's configuration. `memory` is the memory limit of the process. Topics with these
/// names are never consumed, even if a pattern matches them.
pub(super) fn client_config(
    config: &kafka::Config,
    memory: Option<u64>,
    excluded_topics: &[&str],
) -> ClientConfig {
    let mut client = config.client();
    let mut default = |key: &str, value: &str| {
        if !config.properties.contains_key(key) {
            client.set(key, value);
        }
    };
    if !config.uses_consumer_protocol() {
        // With KIP-848 the brokers assign partitions and set the session timeout.
        default("partition.assignment.strategy", "cooperative-sticky");
        default("session.timeout.ms", &config.session_timeout.as_millis().to_string());
    }
    // The default of 1 s causes a gap of 1 s each time the fetch queue fills.
    default("fetch.queue.backoff.ms", "20");
    default("queued.max.messages.kbytes", "16384");
    default(METADATA_REFRESH_KEY, &METADATA_REFRESH.as_millis().to_string());
    default("statistics.interval.ms", "1000");
    default("receive.message.max.bytes", &largest_batch(config, memory).to_string());
    client
        .set("group.id", &config.group)
        // `positioning` decides and commits where a group starts. This setting only covers offsets
        // outside the log: already removed, or not yet written.
        .set("auto.offset.reset", "earliest")
        // librdkafka commits the stored watermark and retries a refused commit. The result of an
        // explicit asynchronous commit is not reported (rdkafka_cgrp.c, propagate_commit_result),
        // and a commit refused during a rebalance would never be retried.
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", config.commit_interval.as_millis().max(1).to_string())
        .set("enable.auto.offset.store", "false");
    if !config.instance_id.is_empty() {
        client.set("group.instance.id", &config.instance_id);
    }
    if config.topics.iter().any(|topic| topic.starts_with('^')) {
        client.set("topic.blacklist", ignored(config, excluded_topics));
    }
    client
}

/// librdkafka never reads a batch that decompresses to more than `receive.message.max.bytes`
/// (issue 5260, for zstd). So this is as high as memory allows: half of the limit for one batch.
fn largest_batch(config: &kafka::Config, memory: Option<u64>) -> u64 {
    let fetched = config.properties.get("fetch.max.bytes").and_then(|bytes| bytes.parse::<u64>().ok());
    // librdkafka requires room for a whole response.
    let least = MIN_BATCH_LIMIT.max(fetched.unwrap_or_default().saturating_add(512));
    memory.map_or(MAX_BATCH_LIMIT, |memory| memory / 2).clamp(least, MAX_BATCH_LIMIT.max(least))
}

/// Topics for librdkafka to ignore, as comma-separated regular expressions.
fn ignored(config: &kafka::Config, excluded_topics: &[&str]) -> String {
    let exactly = |topic: &&str| format!("^{}$", topic.replace('.', "\\."));
    let theirs = config.properties.get("topic.blacklist").cloned();
    excluded_topics.iter().map(exactly).chain(theirs).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_may_decompress_to_half_of_the_memory() {
        let config = kafka::Config::default();
        assert_eq!(largest_batch(&config, None), MAX_BATCH_LIMIT);
        assert_eq!(largest_batch(&config, Some(1_000_000_000)), 500_000_000);
        assert_eq!(largest_batch(&config, Some(64 << 20)), MIN_BATCH_LIMIT);
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
