//! Users who return while a message is being stored for them.
//!
//! A comet registers a connection and then reads the user's inbox; the gateway stores and then looks who
//! is registered. Each side writes before it reads, so one of them sees the other: a user whom the look
//! finds may have read the inbox before, and gets the message live as well, under the same id.
//!
//! The message stays in the inbox whatever comes of it. A push that fails is counted and left to the next
//! replay: it holds nothing up.

use crate::message::{ConnectionId, Message, UserId};
use crate::pipeline::delivery_task::DeliveryTask;
use crate::pipeline::outcome::HandOverOutcome;
use crate::pipeline::push::{PushOutcome, PushedMessage, Pusher};
use crate::pipeline::retry::Cancelled;

impl DeliveryTask {
    /// Delivers a stored message to users who have returned, over these connections.
    pub(super) async fn hand_over(
        &self,
        message: &Message,
        returned: &[(UserId, ConnectionId)],
    ) -> Result<(), Cancelled> {
        if returned.is_empty() {
            return Ok(());
        }
        let pushed = PushedMessage {
            id: &message.id,
            operation: message.operation,
            body: &message.body,
            sent_ms: message.record.timestamp_ms.unwrap_or_default(),
        };
        let (resolver, fleet) = (&self.pipeline.resolver, &*self.pipeline.fleet);
        let pusher = Pusher { resolver, fleet };
        let pushing = pusher.push_to_users(returned, pushed);
        let pushed = self.cancel.run_until_cancelled(pushing).await.ok_or(Cancelled)?;
        let metrics = &self.pipeline.metrics;
        match pushed {
            Ok(outcomes) => {
                for outcome in outcomes {
                    metrics.handed_over(match outcome {
                        PushOutcome::Delivered => HandOverOutcome::Delivered,
                        PushOutcome::NotConnected => HandOverOutcome::NotConnected,
                        PushOutcome::Failed(why) => {
                            tracing::debug!(id = %message.id, why, "not delivered to a user who returned");
                            HandOverOutcome::Failed
                        }
                    });
                }
            }
            Err(unavailable) => {
                tracing::debug!(id = %message.id, %unavailable, "not delivered to users who returned");
                returned.iter().for_each(|_| metrics.handed_over(HandOverOutcome::Failed));
            }
        }
        Ok(())
    }
}
