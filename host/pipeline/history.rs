//! Keeps the messages of a batch in the histories of their rooms, before anyone is looked up for them: a
//! user who registers later, and reads the history then, misses nothing. With an archive, its topic gets them
//! while their recipients are looked up.
//!
//! While Redis or the topic do not take them, the partition is held: a message is delivered only once it is
//! kept.

use futures_util::future::try_join_all;
use tokio::sync::Mutex;

use crate::archive;
use crate::history::HistoryProgress;
use crate::inbox::Position;
use crate::message::{Message, TraceContext};
use crate::pipeline::parts::Pipeline;
use crate::pipeline::retry::{Cancelled, HoldContext, retry_until_cancelled};
use crate::stalls::StallStage;

/// What a partition knows of the histories of its rooms, as long as it is assigned.
#[derive(Debug, Default)]
pub(super) struct PartitionHistory(Mutex<HistoryProgress>);

impl PartitionHistory {
    /// Stores messages, in order, each once however often its record is delivered. Returns their places in
    /// the histories: `None` if a message is for no room, or can never be stored.
    pub(super) async fn keep(
        &self,
        pipeline: &Pipeline,
        messages: &[&Message],
        hold: HoldContext<'_>,
    ) -> Result<Vec<Option<Position>>, Cancelled> {
        let mut places = vec![None; messages.len()];
        let Some(history) = &pipeline.history else { return Ok(places) };
        let of_rooms = messages.iter().enumerate();
        let of_rooms = of_rooms.filter_map(|(index, message)| Some((index, (message.room()?, *message))));
        let (indexes, of_rooms): (Vec<usize>, Vec<_>) = of_rooms.unzip();
        if of_rooms.is_empty() {
            return Ok(places);
        }
        let store = || async { history.store(&of_rooms, &mut *self.0.lock().await).await };
        let stored = retry_until_cancelled(hold, StallStage::History, store).await?;
        indexes.into_iter().zip(stored).for_each(|(index, place)| places[index] = place);
        Ok(places)
    }
}

/// Writes messages that have these places in the histories of their rooms to the archive topic, if there is
/// one. Those that were written before are written again: that changes nothing.
pub(super) async fn archive_rooms<'a>(
    pipeline: &Pipeline,
    messages: impl Iterator<Item = (&'a Message, Option<TraceContext<'a>>, Position)>,
    hold: HoldContext<'_>,
) -> Result<(), Cancelled> {
    let Some(topic) = &pipeline.archive else { return Ok(()) };
    let archive = |(message, trace, place)| async move {
        let write = || topic.append_history(message, trace, place);
        let refused = match archive::room_refusal(message) {
            Some(why) => Some(why),
            None => retry_until_cancelled(hold, StallStage::Archive, write).await?,
        };
        if let Some(why) = refused {
            topic.note_refused(message, &why);
        }
        Ok(())
    };
    try_join_all(messages.map(archive)).await.map(drop)
}
