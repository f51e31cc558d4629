//! Queues one message's calls at their comets, and waits while a queue has no room.
//!
//! While there is room, this costs nothing per message beyond the calls themselves.

use std::sync::Arc;
use std::time::Duration;

use crate::comets::{CallBatch, CallRequest, Content, Fleet};
use crate::message::{CometAddr, Message, TRACEPARENT};
use crate::pipeline::call::{Acceptance, DispatchedCall};
use crate::pipeline::in_flight::InFlight;
use crate::pipeline::retry::{Cancelled, HoldContext, hold_behind};
use crate::router::Delivery;
use crate::stalls::StallStage;

/// The cause of a stall at this stage: comets accept messages more slowly than the partition reads.
const COMETS_ARE_FULL: &str = "the comets' queues are full; see halley_comet_queued_messages and halley_comets_pending_bytes, and `[comets] queue` and `max_pending_bytes`";
/// How long waiting for comets is ordinary back-pressure.
const BACK_PRESSURE: Duration = Duration::from_secs(2);

/// Queues the calls of one message: first at the comets that have room, then at the others, waiting
/// for room.
///
/// # Errors
/// When the partition was cancelled meanwhile.
pub(super) async fn dispatch(
    fleet: &Fleet,
    batch: &mut CallBatch<'_>,
    hold: HoldContext<'_>,
    message: &Message,
    deliveries: Vec<Delivery>,
    is_broadcast: impl Fn(&CometAddr) -> bool,
    in_flight: &Arc<InFlight>,
) -> Result<Vec<DispatchedCall>, Cancelled> {
    let hold = HoldContext { offset: Some(message.record.origin.offset), ..hold };
    let content = Content {
        operation: message.operation,
        body: &message.body,
        sent_ms: message.record.timestamp_ms.unwrap_or_default(),
        traceparent: message.record.header(TRACEPARENT),
        replayed: false,
    };
    let payload = match fleet.try_payload(&content) {
        Some(payload) => payload,
        None => wait_for_room(hold, batch, fleet.payload(&content)).await?,
    };
    let mut calls = Vec::with_capacity(deliveries.len());
    let mut waiting = Vec::new();
    for (call, Delivery { comet, named_by, target, recipients }) in deliveries.into_iter().enumerate() {
        let request = CallRequest {
            comet: comet.clone(),
            named_by,
            target,
            room: message.room().cloned(),
            payload: payload.clone(),
            message: message.id.clone(),
            reply: in_flight.reply(call),
        };
        waiting.extend(batch.try_send(request).err());
        let is_broadcast = is_broadcast(&comet);
        calls.push(DispatchedCall { comet, recipients, is_broadcast, acceptance: Acceptance::Nothing });
    }
    for request in waiting {
        wait_for_room(hold, batch, fleet.send(request)).await?;
    }
    Ok(calls)
}

/// Waits for room in the comets' queues. A long wait is reported as a stall.
async fn wait_for_room<T>(
    hold: HoldContext<'_>,
    batch: &mut CallBatch<'_>,
    room: impl Future<Output = T>,
) -> Result<T, Cancelled> {
    batch.flush();
    let room = std::pin::pin!(room);
    let cause = || COMETS_ARE_FULL.to_owned();
    let done = hold_behind(hold, StallStage::Dispatch, BACK_PRESSURE, cause, room).await?;
    batch.resume();
    Ok(done)
}
