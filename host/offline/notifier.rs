//! The notify topic: one record for each absent recipient whom a policy wants told on
//! another channel (APNs, SMS, mail). What sends them reads the topic.
//!
//! Key: the user id. Value: the message's body. Headers say the rest.

use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};

use crate::decision::Absent;
use crate::kafka::{NotWritten, Outgoing, Producer};
use crate::message::{MESSAGE_ID, Message};

/// Writes notifications. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    producer: Producer,
    topic: String,
}

impl Notifier {
    /// Notifications to this topic.
    pub fn new(producer: Producer, topic: String) -> Self {
        Self { producer, topic }
    }

    /// Writes one; returns once the broker has confirmed it.
    ///
    /// # Errors
    /// When the broker did not confirm it: the recipient has no outcome yet.
    pub async fn notify(&self, message: &Message, absent: &Absent, channel: &str) -> Result<(), NotWritten> {
        let operation = message.operation.to_string();
        let room = message.room().map(|room| room.as_str()).unwrap_or_default();
        let fields = [
            (MESSAGE_ID, message.id.as_str()),
            ("halley-channel", channel),
            ("halley-cause", absent.cause.as_str()),
            ("halley-operation", &operation),
            ("halley-room", room),
        ];
        let mut headers = OwnedHeaders::new_with_capacity(fields.len());
        for (key, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
            headers = headers.insert(KafkaHeader { key, value: Some(value) });
        }
        let outgoing = Outgoing {
            key: Some(absent.user.as_str().as_bytes()),
            value: Some(&message.body),
            timestamp_ms: message.record.timestamp_ms,
            headers,
            partition: None,
        };
        self.producer.write(&self.topic, outgoing).await
    }
}
