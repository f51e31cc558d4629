//! Queues the messages of one batch at their comets, and waits while a queue has no room.
//!
//! The messages of a room share their plan and travel together: a comet gets one entry for many of
//! them. Rooms may overtake each other meanwhile; the messages of one room never do, and nothing
//! overtakes or falls behind a message that is for connections or for everyone. While there is room, a
//! message costs nothing here beyond its content.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::comets::{CallBatch, CallMessage, CallRequest, Content, Fleet, Payload, ReservedBytes, Run};
use crate::decision::Overrides;
use crate::message::{CometAddr, Message, RoomId, TraceContext};
use crate::pipeline::call::MessagePlan;
use crate::pipeline::in_flight::{InFlight, InFlightMessage, RunContext, Settler};
use crate::pipeline::retry::{Cancelled, HoldContext, hold_behind};
use crate::stalls::StallStage;

/// The cause of a stall at this stage: comets accept messages more slowly than the partition reads.
const COMETS_ARE_FULL: &str = "the comets' queues are full; see halley_comet_queued_messages and halley_comets_pending_bytes, and `[comets] queue` and `max_pending_bytes`";
/// How long waiting for comets is ordinary back-pressure.
const BACK_PRESSURE: Duration = Duration::from_secs(2);

/// Queues messages at comets, in their order.
pub(super) struct Dispatcher<'a> {
    fleet: &'a Fleet,
    settler: &'a Arc<Settler>,
    hold: HoldContext<'a>,
    batch: CallBatch<'a>,
    /// When the batch of records started.
    started: Instant,
    /// What happens to messages of a room that nothing treats differently.
    plans: HashMap<RoomId, Arc<MessagePlan>, RandomState>,
    /// Who gets BROADCASTs, once that is needed.
    everyone: Option<Vec<CometAddr>>,
    /// When both were found out.
    known_at: Instant,
    /// Messages that have not been queued, by room; and the rooms in their order.
    runs: HashMap<RoomId, OpenRun, RandomState>,
    rooms: Vec<RoomId>,
    /// Room for their bytes.
    reserved: ReservedBytes,
}

/// Messages of a room that share a plan.
struct OpenRun {
    plan: Arc<MessagePlan>,
    run: Run,
    messages: Vec<InFlightMessage>,
    queued: Instant,
}

impl<'a> Dispatcher<'a> {
    /// Nothing is queued yet of this batch, which started then.
    pub(super) fn new(
        fleet: &'a Fleet,
        settler: &'a Arc<Settler>,
        hold: HoldContext<'a>,
        started: Instant,
    ) -> Self {
        let batch = CallBatch::new(fleet);
        Self {
            fleet,
            settler,
            hold,
            started,
            known_at: batch.now(),
            batch,
            plans: HashMap::default(),
            everyone: None,
            runs: HashMap::default(),
            rooms: Vec::new(),
            reserved: ReservedBytes::default(),
        }
    }

    /// The comets that get BROADCASTs.
    pub(super) fn everyone(&mut self) -> &[CometAddr] {
        self.everyone.get_or_insert_with(|| self.fleet.everyone())
    }

    /// The plan of other messages of the room, if it is this one's as well.
    pub(super) fn shared_plan(
        &mut self,
        message: &Message,
        overrides: &Overrides,
    ) -> Option<Arc<MessagePlan>> {
        if self.known_at != self.batch.now() {
            // After a wait, the comets may be others.
            (self.everyone, self.known_at) = (None, self.batch.now());
            self.plans.clear();
        }
        let room = message.room().filter(|_| is_shareable(message, overrides))?;
        self.plans.get(room).cloned()
    }

    /// Lets other messages of the room share this plan, if nothing treats this one differently.
    pub(super) fn share(&mut self, message: &Message, overrides: &Overrides, plan: &Arc<MessagePlan>) {
        if let Some(room) = message.room().filter(|_| is_shareable(message, overrides)) {
            self.plans.insert(room.clone(), Arc::clone(plan));
        }
    }

    /// The content of a message with its trace context, once there is room for its bytes.
    ///
    /// # Errors
    /// When the partition was cancelled meanwhile.
    pub(super) async fn payload(
        &mut self,
        message: &Message,
        trace: Option<TraceContext<'_>>,
    ) -> Result<Payload, Cancelled> {
        self.hold.offset = Some(message.record.origin.offset);
        let content = Content {
            operation: message.operation,
            body: &message.body,
            sent_ms: message.record.timestamp_ms.unwrap_or_default(),
            trace,
            replayed: false,
        };
        match self.fleet.try_payload(&content, &mut self.reserved) {
            Some(payload) => Ok(payload),
            None => {
                // What holds the bytes has to get on its way.
                self.queue_all().await?;
                self.wait_for_room(self.fleet.payload(&content)).await
            }
        }
    }

    /// Queues a message, perhaps together with later ones of its room.
    ///
    /// # Errors
    /// When the partition was cancelled meanwhile.
    pub(super) async fn queue(
        &mut self,
        plan: Arc<MessagePlan>,
        payload: Payload,
        message: InFlightMessage,
    ) -> Result<(), Cancelled> {
        let call_message = CallMessage { payload, id: message.message.id.clone() };
        let Some(room) = message.message.room().filter(|_| plan.is_for_room()) else {
            self.queue_all().await?;
            let alone = self.open(plan, call_message, message);
            return self.send(None, alone).await;
        };
        let call_message = match self.runs.get_mut(room) {
            Some(open) if Arc::ptr_eq(&open.plan, &plan) => match open.run.push(call_message) {
                Ok(()) => {
                    open.messages.push(message);
                    return Ok(());
                }
                Err(call_message) => call_message,
            },
            _ => call_message,
        };
        let room = room.clone();
        let next = self.open(plan, call_message, message);
        match self.runs.insert(room.clone(), next) {
            Some(full) => self.send(Some(&room), full).await,
            None => {
                self.rooms.push(room);
                Ok(())
            }
        }
    }

    fn open(&self, plan: Arc<MessagePlan>, call_message: CallMessage, message: InFlightMessage) -> OpenRun {
        OpenRun { plan, run: Run::one(call_message), messages: vec![message], queued: self.batch.now() }
    }

    /// Queues all messages that wait for others.
    ///
    /// # Errors
    /// When the partition was cancelled meanwhile.
    pub(super) async fn queue_all(&mut self) -> Result<(), Cancelled> {
        for room in std::mem::take(&mut self.rooms) {
            if let Some(open) = self.runs.remove(&room) {
                self.send(Some(&room), open).await?;
            }
        }
        Ok(())
    }

    /// Begins a wait: everything is on its way.
    ///
    /// # Errors
    /// When the partition was cancelled meanwhile.
    pub(super) async fn flush(&mut self) -> Result<(), Cancelled> {
        self.queue_all().await?;
        self.batch.flush();
        self.reserved.release();
        Ok(())
    }

    /// Continues after a wait.
    pub(super) fn resume(&mut self) {
        self.batch.resume();
    }

    /// Queues a run: first at the comets that have room, then at the others, waiting for room.
    async fn send(&mut self, room: Option<&RoomId>, run: OpenRun) -> Result<(), Cancelled> {
        let OpenRun { plan, mut run, messages, queued } = run;
        run.hold(&mut self.reserved);
        let context = RunContext { plan: Arc::clone(&plan), started: self.started, queued };
        let outcomes = InFlight::new(self.settler, context, messages);
        let mut waiting = Vec::new();
        for (call, run) in plan.calls.iter().zip(run.into_calls(plan.calls.len(), outcomes)) {
            let request = CallRequest {
                comet: call.delivery.comet.clone(),
                named_by: call.delivery.named_by,
                target: call.delivery.target.clone(),
                room: room.cloned(),
                run,
            };
            waiting.extend(self.batch.try_send(request).err());
        }
        for request in waiting {
            self.wait_for_room(self.fleet.send(request)).await?;
        }
        Ok(())
    }

    /// Waits for room in the comets' queues. A long wait is reported as a stall.
    async fn wait_for_room<T>(&mut self, room: impl Future<Output = T>) -> Result<T, Cancelled> {
        self.batch.flush();
        self.reserved.release();
        let room = std::pin::pin!(room);
        let cause = || COMETS_ARE_FULL.to_owned();
        let done = hold_behind(self.hold, StallStage::Dispatch, BACK_PRESSURE, cause, room).await?;
        self.batch.resume();
        Ok(done)
    }
}

/// Whether a message may share the plan of others of its room: no policy changed its comets, and it was
/// not redriven for some of its recipients.
fn is_shareable(message: &Message, overrides: &Overrides) -> bool {
    let is_changed = overrides.restricts() || !overrides.also.is_empty();
    !is_changed && message.record.trusted_id().is_none()
}
