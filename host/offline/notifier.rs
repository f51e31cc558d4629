//! The notify topic: one record for each absent recipient whom a policy wants told on
//! another channel (APNs, SMS, mail). What sends them reads the topic.
//!
//! Key: the user id. Value: the message's body. Headers say the rest.

use crate::decision::Absent;
use crate::kafka::{NotWritten, Outgoing, Producer};
use crate::message::{Header, MESSAGE_ID, Message};

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
        let room = message.room().map(|room| room.as_str()).unwrap_or_default();
        let fields = [
            (MESSAGE_ID, message.id.to_string()),
            ("halley-channel", channel.to_owned()),
            ("halley-cause", absent.cause.as_str().to_owned()),
            ("halley-operation", message.operation.to_string()),
            ("halley-room", room.to_owned()),
        ];
        let said = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let headers = said.map(|(name, value)| Header::new(name, value)).collect();
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
