//! The notify topic: one record per absent recipient whom a policy notifies on another channel (APNs,
//! SMS, mail). Senders consume the topic.
//!
//! Key: the user id. Value: the message's body. Headers: everything else, and the producer's trace
//! context.
//!
//! The volume in flight to the broker is bounded over all messages, so that a backlog is not mistaken
//! for an unresponsive broker.

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::poll_immediate;
use tokio::sync::Semaphore;

use crate::decision::AbsentRecipient;
use crate::inbox::entry::size;
use crate::kafka::{OutgoingRecord, Producer, WriteError};
use crate::message::{Header, MESSAGE_ID, Message, TraceContext};

/// Writes notifications. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    producer: Producer,
    topic: String,
    /// Kibibytes that may be in flight.
    in_flight: Arc<Semaphore>,
}

/// Maximum volume in flight to the broker; a notification counts one kibibyte plus its body and
/// names.
const KIBIBYTES: usize = 16 * 1024;

impl Notifier {
    /// Notifications to this topic.
    pub fn new(producer: Producer, topic: String) -> Self {
        Self { producer, topic, in_flight: Arc::new(Semaphore::new(KIBIBYTES)) }
    }

    /// Writes a notification, with this trace context; returns after the broker has confirmed it. Calls `queued` once its
    /// order among the user's notifications is fixed. Returns why the topic will never accept it, if so.
    ///
    /// # Errors
    /// If the broker did not confirm it: the recipient has no outcome yet.
    pub async fn notify(
        &self,
        message: &Message,
        trace: Option<TraceContext<'_>>,
        absent: &AbsentRecipient,
        channel: &str,
        queued: impl FnOnce(),
    ) -> Result<Option<String>, WriteError> {
        let size = (size(message, &absent.user) / 1024 + 1).min(KIBIBYTES) as u32;
        // The semaphore is never closed.
        let _permit = self.in_flight.acquire_many(size).await.ok();
        let room = message.room().map(|room| room.as_str()).unwrap_or_default();
        let fields = [
            (MESSAGE_ID, message.id.to_string()),
            ("halley-channel", channel.to_owned()),
            ("halley-cause", absent.cause.as_str().to_owned()),
            ("halley-operation", message.operation.to_string()),
            ("halley-room", room.to_owned()),
        ];
        let said = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let trace = trace.into_iter().flat_map(TraceContext::headers);
        let headers = said.map(|(name, value)| Header::new(name, value)).chain(trace).collect();
        let outgoing = OutgoingRecord {
            key: Some(absent.user.as_str().as_bytes().into()),
            value: Some((&*message.body).into()),
            timestamp_ms: message.record.timestamp_ms,
            headers,
            partition: None,
        };
        let mut write = pin!(self.producer.write(&self.topic, outgoing));
        // The first poll puts it into the producer's queue, unless that is full.
        let written = poll_immediate(&mut write).await;
        queued();
        WriteError::or_refusal(match written {
            Some(written) => written,
            None => write.await,
        })
    }
}
