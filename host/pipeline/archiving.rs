//! Writes a message that was stored for absent users to the archive topic.

use std::collections::HashMap;
use std::time::Duration;

use crate::archive::{self, ArchiveRecipient};
use crate::decision::AbsenceCause;
use crate::inbox::{Position, StoreResult};
use crate::message::{Message, UserId};
use crate::pipeline::delivery_task::DeliveryTask;
use crate::pipeline::retry::{Cancelled, retry_until_cancelled};
use crate::stalls::StallStage;
use crate::time::{now_record_ms, record_millis};

impl DeliveryTask {
    /// Archives a message for the users for whom it was stored, each with the reason (none if it is always
    /// stored) and the retention that a policy asked for; `positions` are their places in the inboxes, which
    /// may refer to a place in the history of its room. Returns the users for whom the archive can never have
    /// it, and why.
    pub(super) async fn archive(
        &self,
        message: &Message,
        stored: impl Iterator<Item = (&UserId, Option<AbsenceCause>, Option<Duration>)>,
        (positions, reference): (&[(UserId, Position)], Option<Position>),
    ) -> Result<StoreResult, Cancelled> {
        let mut outcome = StoreResult::default();
        let Some(archive) = &self.pipeline.archive else { return Ok(outcome) };
        let now = now_record_ms();
        let expires_ms = |retention: Duration| now.saturating_add(record_millis(retention));
        let positions: HashMap<&UserId, Position> = positions.iter().map(|(user, at)| (user, *at)).collect();
        let mut recipients = Vec::new();
        for (user, cause, retention) in stored {
            match archive::refusal(message, user) {
                None => {
                    let (expires_ms, position) = (retention.map(expires_ms), positions.get(user).copied());
                    recipients.push(ArchiveRecipient { user, cause, expires_ms, position });
                }
                Some(why) => {
                    outcome.refused.push(user.clone());
                    outcome.reason.get_or_insert(why);
                }
            }
        }
        if recipients.is_empty() {
            return Ok(outcome);
        }
        let write = || archive.append(message, self.trace.context(), &recipients, reference);
        if let Some(why) = retry_until_cancelled(self.hold(), StallStage::Archive, write).await? {
            outcome.refused.extend(recipients.iter().map(|recipient| recipient.user.clone()));
            outcome.reason.get_or_insert(why);
        }
        Ok(outcome)
    }
}
