//! Produces records like a `logic` service: bodies of 200 bytes for rooms.
//!
//! A body begins with its number within its room and the time when it was produced, by which comets
//! detect missing and reordered messages and measure latencies.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use halley::message::{Audience, encode};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

pub(crate) const PARTITIONS: i32 = 4;
const BODY: usize = 200;
/// Chat, in goim's examples.
const OPERATION: i32 = 4;
/// How long the broker may take.
const ANSWER: Duration = Duration::from_secs(60);

/// The time of this process, for bodies.
pub(crate) fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// The beginning of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) number: u64,
    /// Of [`now`].
    pub(crate) at: Duration,
}

impl Stamp {
    fn body(self) -> Vec<u8> {
        let text = "this is what people say to each other in a room where a stream is watched";
        let body = format!("{:010} {:020} {text}", self.number, self.at.as_nanos());
        format!("{body:<BODY$}").into_bytes()
    }

    /// `None` if the body was not produced here.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let number = |digits: &[u8]| {
            digits.iter().try_fold(0_u64, |sum, digit| {
                digit.is_ascii_digit().then(|| sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
            })
        };
        Some(Self { number: number(body.get(..10)?)?, at: Duration::from_nanos(number(body.get(11..31)?)?) })
    }
}

/// The name of a room.
pub(crate) fn room_name(room: usize) -> String {
    format!("room-{room:06}")
}

/// The size of a record: key and value.
pub(crate) fn record_len() -> usize {
    let name = room_name(0);
    name.len() + value(&name, Stamp { number: 0, at: Duration::ZERO }).len()
}

fn value(room: &str, stamp: Stamp) -> bytes::Bytes {
    encode(&Audience::Room(room.into()), OPERATION, &stamp.body())
}

/// A producer for one topic, which numbers what it sends to each room.
pub(crate) struct Producer {
    client: BaseProducer,
    topic: String,
    rooms: HashMap<usize, u64>,
}

impl Producer {
    /// Creates a topic.
    ///
    /// # Errors
    /// When Kafka does not create it.
    pub(crate) async fn new(brokers: &str, topic: &str, linger: Duration) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
        let made = admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(ANSWER))).await?;
        for result in made {
            result.map_err(|(topic, why)| anyhow::anyhow!("the topic {topic} cannot be made: {why}"))?;
        }
        // Otherwise a retry on a busy machine would repeat messages in the topic.
        config.set("enable.idempotence", "true");
        config.set("linger.ms", linger.as_millis().to_string());
        config.set("batch.size", "500000").set("queue.buffering.max.messages", "200000");
        Ok(Self { client: config.create()?, topic: topic.to_owned(), rooms: HashMap::new() })
    }

    /// The topic's name.
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// Sends the next message of a room. Rooms have their partition, so that they stay in order.
    ///
    /// # Errors
    /// When Kafka does not accept it.
    pub(crate) fn send(&mut self, room: usize) -> anyhow::Result<()> {
        let number = self.rooms.entry(room).or_default();
        *number += 1;
        let stamp = Stamp { number: *number, at: now() };
        let name = room_name(room);
        let value = value(&name, stamp);
        let partition = i32::try_from(room % PARTITIONS as usize)?;
        let mut record = BaseRecord::to(&self.topic).partition(partition).key(&name).payload(&*value);
        while let Err((why, again)) = self.client.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            anyhow::ensure!(why == full, "Kafka does not take a record: {why}");
            self.client.poll(Duration::from_millis(20));
            record = again;
        }
        self.client.poll(Duration::ZERO);
        Ok(())
    }

    /// Waits until Kafka has acknowledged everything.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        self.client.flush(ANSWER).context("Kafka does not take the records")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back() {
        let stamp = Stamp { number: 4_711, at: Duration::from_nanos(12_345_678_901) };
        let body = stamp.body();
        assert_eq!((body.len(), Stamp::read(&body)), (BODY, Some(stamp)));
        assert_eq!(Stamp::read(b"something else that somebody wrote to a room"), None);
    }
}
