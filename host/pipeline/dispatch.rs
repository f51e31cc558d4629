//! Handing one message's calls to the comets' lanes, and waiting where there is no room.
//!
//! Nothing is done here per message beyond the calls themselves while there is room.

use std::time::Duration;

use futures_util::FutureExt as _;

use crate::comets::{Fleet, Parcel};
use crate::message::{CometAddr, Message};
use crate::pipeline::call::{Call, Took};
use crate::pipeline::persist::{Abandoned, Hold, hold_behind};
use crate::router::Delivery;
use crate::stalls::StallStage;

/// What a partition waits for that reads faster than comets take.
const COMETS_ARE_FULL: &str = "comets have as many messages as may wait for them; see halley_comet_waiting and halley_comets_pending_bytes, and `[comets] queue` and `max_pending_bytes`";
/// For how long waiting for comets is ordinary back-pressure.
const BACK_PRESSURE: Duration = Duration::from_secs(2);

/// Hands the calls of one message to the lanes: first to those that have room, then, waiting, to
/// the others.
///
/// # Errors
/// When the partition was abandoned meanwhile.
pub(super) async fn dispatch(
    fleet: &Fleet,
    hold: Hold<'_>,
    message: &Message,
    deliveries: Vec<Delivery>,
    of_everyone: impl Fn(&CometAddr) -> bool,
) -> Result<Vec<Call>, Abandoned> {
    let hold = Hold { offset: Some(message.record.origin.offset), ..hold };
    let payload = once_there_is_room(hold, fleet.payload(message.operation, &message.body)).await?;
    let mut calls = Vec::with_capacity(deliveries.len());
    let mut waiting = Vec::new();
    for Delivery { comet, named_by, target, recipients } in deliveries {
        let parcel = Parcel {
            comet: comet.clone(),
            named_by,
            target,
            room: message.room().cloned(),
            payload: payload.clone(),
            message: message.id.clone(),
        };
        let of_everyone = of_everyone(&comet);
        match fleet.try_send(parcel) {
            Ok(receipt) => calls.push(Call { comet, recipients, of_everyone, receipt, took: Took::Nothing }),
            Err(parcel) => waiting.push((parcel, recipients, of_everyone)),
        }
    }
    for (parcel, recipients, of_everyone) in waiting {
        let comet = parcel.comet.clone();
        let receipt = once_there_is_room(hold, fleet.send(parcel)).await?;
        calls.push(Call { comet, recipients, of_everyone, receipt, took: Took::Nothing });
    }
    Ok(calls)
}

/// Waits for room among what waits for comets. What lasts long shows as a stall.
async fn once_there_is_room<T>(hold: Hold<'_>, room: impl Future<Output = T>) -> Result<T, Abandoned> {
    let mut room = std::pin::pin!(room);
    if let Some(done) = room.as_mut().now_or_never() {
        return Ok(done);
    }
    hold_behind(hold, StallStage::Dispatch, BACK_PRESSURE, || COMETS_ARE_FULL.to_owned(), room).await
}
