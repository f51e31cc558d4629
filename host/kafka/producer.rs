//! One producer for the whole gateway, whose records are confirmed by the broker.
//!
//! Records go in batches. The broker refuses a batch as a whole, for its size as well, so that
//! its refusal tells nothing of one record: each then goes once more alone. What is refused
//! even so is written as the topic takes it, without its value or its timestamp.

use std::sync::Arc;

use rdkafka::error::KafkaError;
use tokio::sync::{OnceCell, Semaphore};

use crate::kafka::sender::{NotWritten, Outgoing, Refusal, Sender};
use crate::kafka::{Config, refused};
use crate::message::{Header, VALUE_LEFT_OUT};
use crate::telemetry::LogThrottle;

/// Writes records and waits for all in-sync replicas to have them. Cheap to clone; the clones
/// share what they write with.
#[derive(Clone)]
pub struct Producer(Arc<Senders>);

struct Senders {
    config: Config,
    batching: Sender,
    /// Made when a batch is refused for the first time.
    alone: OnceCell<Sender>,
    /// What goes alone is slow; its five seconds begin with its turn.
    turns: Semaphore,
}

/// Records that go alone at once. librdkafka sends five at a time to each broker.
const ALONE_AT_ONCE: usize = 100;

impl Producer {
    /// Makes the producer. It connects by itself, now and after every interruption.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let batching = Sender::batching(config).map_err(refused)?;
        let (config, turns) = (config.clone(), Semaphore::new(ALONE_AT_ONCE));
        Ok(Self(Arc::new(Senders { config, batching, alone: OnceCell::new(), turns })))
    }

    /// Writes a key and a value; returns once the broker has confirmed it.
    ///
    /// # Errors
    /// After five seconds without a confirmation, or at once when a retry is of no use. A
    /// record that is refused and goes again has its turn, and five seconds again.
    pub async fn put(&self, topic: &str, key: &[u8], value: &[u8]) -> Result<(), NotWritten> {
        self.write(
            topic,
            Outgoing { key: Some(key.into()), value: Some(value.into()), ..Outgoing::default() },
        )
        .await
    }

    /// Writes one record; returns once the broker has confirmed it. One that was refused
    /// in a batch comes after those that were not.
    ///
    /// # Errors
    /// Those of [`Producer::put`].
    pub(crate) async fn write(&self, topic: &str, record: Outgoing<'_>) -> Result<(), NotWritten> {
        let mut result = self.0.batching.send(topic, record.clone()).await;
        if result.as_ref().is_err_and(|error| Refusal::of(error).is_some()) {
            result = self.write_alone(topic, record).await;
        }
        result.map_err(|error| NotWritten::new(topic, &error))
    }

    /// Each refusal takes something away from the record, so that there are three at most.
    async fn write_alone(&self, topic: &str, mut record: Outgoing<'_>) -> Result<(), KafkaError> {
        let make = async || Sender::one_by_one(&self.0.config);
        let alone = self.0.alone.get_or_try_init(make).await?;
        let _turn = self.0.turns.acquire().await.expect("the turns are never closed");
        loop {
            let Err(error) = alone.send(topic, record.clone()).await else { return Ok(()) };
            let Some(acceptable) = acceptable(topic, record, &error) else { return Err(error) };
            record = acceptable;
        }
    }
}

/// What is left of a record that its topic has refused.
fn acceptable<'a>(topic: &str, record: Outgoing<'a>, error: &KafkaError) -> Option<Outgoing<'a>> {
    match Refusal::of(error)? {
        Refusal::TooLarge => without_value(topic, record, error),
        // Ours carry it in a header, too.
        Refusal::Timestamp if record.timestamp_ms.is_some() => {
            Some(Outgoing { timestamp_ms: None, ..record })
        }
        Refusal::Timestamp | Refusal::Other => None,
    }
}

/// The record as a topic takes it for which its value is too large. A record that fitted into
/// its topic may not fit with our headers, or into another one; trying for ever would hold up
/// its partition.
fn without_value<'a>(topic: &str, mut record: Outgoing<'a>, error: &KafkaError) -> Option<Outgoing<'a>> {
    let size = record.value.as_ref().map(|value| value.len()).filter(|size| *size > 0)?;
    static LINE: LogThrottle = LogThrottle::per_record();
    if let Some(held_back) = LINE.admit() {
        tracing::error!(
            topic,
            size,
            held_back,
            "a record is too large for the topic and is written without its value; raise the topic's `max.message.bytes`"
        );
    }
    let left_out = format!("{size} bytes: {error}");
    record.headers.push(Header::new(VALUE_LEFT_OUT, left_out));
    Some(Outgoing { value: None, ..record })
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[test]
    fn what_the_topic_refuses_is_left_out() {
        let of = |code| KafkaError::MessageProduction(code);
        let (large, old) =
            (of(RDKafkaErrorCode::MessageSizeTooLarge), of(RDKafkaErrorCode::InvalidTimestamp));
        let record = Outgoing {
            key: Some(b"k".into()),
            value: Some(b"v".into()),
            timestamp_ms: Some(7),
            ..Outgoing::default()
        };
        let key = Some(&b"k"[..]);
        let stub = acceptable("t", record, &large).expect("something is left");
        assert_eq!((stub.key.as_deref(), &stub.value, stub.timestamp_ms), (key, &None, Some(7)));
        let names: Vec<_> = stub.headers.iter().map(|header| header.name.clone()).collect();
        assert_eq!(names, [VALUE_LEFT_OUT]);
        assert!(acceptable("t", stub.clone(), &large).is_none(), "there is nothing more to leave out");

        let stub = acceptable("t", stub, &old).expect("something is left");
        assert_eq!((stub.key.as_deref(), stub.timestamp_ms, stub.headers.len()), (key, None, 1));
        assert!(acceptable("t", stub.clone(), &old).is_none());
        assert!(acceptable("t", stub, &of(RDKafkaErrorCode::MessageTimedOut)).is_none());
    }
}
