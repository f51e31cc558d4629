//! Keeps the messages of a batch in the histories of their rooms, before anyone is looked up for them: a
//! user who registers later, and reads the history then, misses nothing.
//!
//! While Redis does not take them, the partition is held: a message is delivered only once it is kept.

use tokio::sync::Mutex;

use crate::history::HistoryProgress;
use crate::message::Message;
use crate::pipeline::parts::Pipeline;
use crate::pipeline::retry::{Cancelled, HoldContext, retry_until_cancelled};
use crate::stalls::StallStage;

/// What a partition knows of the histories of its rooms, as long as it is assigned.
#[derive(Debug, Default)]
pub(super) struct PartitionHistory(Mutex<HistoryProgress>);

impl PartitionHistory {
    /// Stores messages, in order, each once however often its record is delivered.
    pub(super) async fn keep<'a>(
        &self,
        pipeline: &Pipeline,
        messages: impl Iterator<Item = &'a Message>,
        hold: HoldContext<'_>,
    ) -> Result<(), Cancelled> {
        let Some(history) = &pipeline.history else { return Ok(()) };
        let messages: Vec<_> = messages.filter_map(|message| Some((message.room()?, message))).collect();
        if messages.is_empty() {
            return Ok(());
        }
        let store = || async { history.store(&messages, &mut *self.0.lock().await).await };
        retry_until_cancelled(hold, StallStage::History, store).await
    }
}
