//! Bounds how many absent recipients are in flight, over all messages.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::inbox::InboxQueue;
use crate::pipeline::retry::{Cancelled, HoldContext, wait_while_held};
use crate::stalls::StallStage;

/// Bounds the absent recipients in flight, over all messages. A worker acquires permits for those
/// of a message before it dispatches the calls, and waits while none are left: otherwise the next
/// records would wait in memory.
#[derive(Clone, Debug)]
pub struct AbsentBudget {
    permits: Arc<Semaphore>,
    all: u32,
}

impl AbsentBudget {
    /// A budget of this many recipients.
    pub fn new(recipients: usize) -> Self {
        let all = u32::try_from(recipients).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32).max(1);
        Self { permits: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Acquires permits for the absent recipients of one message, at most the whole budget.
    pub(super) async fn take(
        &self,
        absent: usize,
        inbox: &InboxQueue,
        hold: HoldContext<'_>,
    ) -> Result<Option<OwnedSemaphorePermit>, Cancelled> {
        if absent == 0 {
            return Ok(None);
        }
        let wanted = u32::try_from(absent).unwrap_or(u32::MAX).min(self.all);
        let taken = Arc::clone(&self.permits).acquire_many_owned(wanted);
        // The semaphore is never closed.
        Ok(wait_while_held(hold, StallStage::Inbox, inbox.problem(), taken).await?.ok())
    }

    /// Like [`AbsentBudget::take`], without waiting: `None` if the budget is used up.
    pub(super) fn try_take(&self, absent: usize) -> Option<Option<OwnedSemaphorePermit>> {
        if absent == 0 {
            return Some(None);
        }
        let wanted = u32::try_from(absent).unwrap_or(u32::MAX).min(self.all);
        Arc::clone(&self.permits).try_acquire_many_owned(wanted).ok().map(Some)
    }
}
