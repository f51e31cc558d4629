//! Whether a configuration looks like one for tests: load is not put on anything else by mistake.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;

use super::ledger::PREFIX;
use crate::config::Config;
use crate::directory::Registrations;
use crate::kafka::TopicReader;
use crate::message::Message;

/// Why the configured Kafka and Redis may be those of real users; empty if nothing suggests it.
pub(super) async fn doubts(
    config: &Config,
    topic: &str,
    registrations: &Registrations,
    redis: &str,
) -> anyhow::Result<Vec<String>> {
    let mut doubts = Vec::new();
    if let Some(broker) = config.kafka.brokers.split(',').map(str::trim).find(|broker| !is_local(broker)) {
        doubts.push(format!("the Kafka broker {broker} is not on this machine"));
    }
    if !redis.split(',').all(is_local) {
        doubts.push(format!("Redis at {redis} is not on this machine"));
    }
    let room = registrations.room_of_others(PREFIX).await.context("cannot look into Redis")?;
    doubts.extend(room.map(|room| format!("Redis has rooms of others, such as `{room}`")));
    if holds_messages_of_others(config, topic).await? {
        doubts.push(format!("topic `{topic}` holds messages of others"));
    }
    Ok(doubts)
}

/// Whether the last record of a partition is not of a benchmark.
async fn holds_messages_of_others(config: &Config, topic: &str) -> anyhow::Result<bool> {
    let reader = TopicReader::open(&config.kafka, topic, &config.kafka.group).await?;
    let mut reader = reader.with_context(|| format!("topic `{topic}` does not exist; create it first"))?;
    let ends: Vec<_> = reader.ranges().map(|range| (range.partition, range.end)).collect();
    for (partition, end) in ends {
        let Some(record) = reader.read_at(partition, end - 1).await? else { continue };
        let message = Message::decode(Arc::new(record)).ok();
        let is_ours = |message: Message| message.room().is_some_and(|room| room.as_str().starts_with(PREFIX));
        if !message.is_some_and(is_ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an address, perhaps with a scheme, a user and a port, is on this machine.
fn is_local(address: &str) -> bool {
    let rest = address.rsplit_once("://").map_or(address, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or_default();
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let host = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => rest.rsplit_once(':').map_or(rest, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_this_machine() {
        for local in
            ["localhost:9092", "127.0.0.1:6379", "redis://u:p@[::1]:6379/0", "PLAINTEXT://127.0.0.1:1"]
        {
            assert!(is_local(local), "{local}");
        }
        for other in
            ["", "kafka:9092", "10.0.0.1:9092", "redis://localhost.example:1", "redis://127.0.0.1@db:1"]
        {
            assert!(!is_local(other), "{other}");
        }
    }
}
