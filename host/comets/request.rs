//! A call to a comet as the pipeline requests it, and its outcome.

use std::sync::Arc;
use std::time::Duration;

use super::hold::OrderHold;
use super::wire::{self, Payload};
use crate::message::{CallTarget, CometAddr, ConnectionId, MessageId, NamedBy, RoomId};

/// The timeouts of calls: the part of `[delivery]` that concerns comets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallTimeouts {
    /// The deadline of one call.
    pub request_timeout: Duration,
    /// How long after it was queued a call is retried. An attempt in flight at that moment may
    /// still succeed: an outcome takes at most this plus `request_timeout`.
    pub delivery_timeout: Duration,
}

/// One message for one comet.
#[derive(Debug)]
pub struct CallRequest {
    /// The comet to call.
    pub comet: CometAddr,
    /// Who named it: this decides whether its address may be connected to.
    pub named_by: NamedBy,
    /// What the call is for.
    pub target: CallTarget,
    /// The room whose order it keeps, whatever its target: a room's messages may go to a comet as
    /// a whole now, and by connection after a policy change.
    pub room: Option<RoomId>,
    /// The message, encoded once by [`Fleet::payload`] for all its calls.
    pub payload: Payload,
    /// The message's id, sent in the call's metadata.
    pub message: MessageId,
    /// Receives the outcome.
    pub reply: ReplyTo,
}

impl CallRequest {
    /// Its size in the comet's queue in bytes: the content and the connection ids.
    pub(super) fn cost(&self) -> usize {
        let keys = match &self.target {
            CallTarget::Connections(keys) => {
                keys.iter().map(|key| wire::key_len(key) + size_of_val(key)).sum()
            }
            CallTarget::Room(_) | CallTarget::Everyone { .. } => 0,
        };
        self.payload.len() + keys
    }
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The comet acknowledged it.
    Acknowledged,
    /// The comet did not accept it in time: why.
    Unreachable(String),
    /// The comet rejected it with a permanent status: which.
    Refused(String),
    /// Some of the call's connections were not reached; the others were.
    Partial(Box<PartialDelivery>),
    /// The comet acknowledged it, and has nobody of the room any more.
    NobodyThere,
}

/// The connections of a partially delivered call that were not reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartialDelivery {
    /// Those that did not accept it in time: their client's queue is full, or they are closed.
    pub unreachable: Vec<ConnectionId>,
    /// Those that the comet rejected permanently.
    pub refused: Vec<ConnectionId>,
    /// Those that are not connected to the comet any more, as it said when it acknowledged the message.
    pub missing: Vec<ConnectionId>,
    /// The comet's error message; empty if there is none.
    pub why: String,
}

/// Receives the outcomes of one message's calls.
pub trait Outcomes: Send + Sync + std::fmt::Debug {
    /// The call with this number has ended. Called once per call, usually on the comet's task, so it
    /// should return soon. Later calls of the same order wait at that comet until `hold` is dropped.
    fn ended(self: Arc<Self>, call: usize, delivered: CallOutcome, hold: Option<OrderHold>);

    /// Whether the message was cancelled: calls that have not started are not made.
    fn is_cancelled(&self) -> bool;
}

/// Reports the outcome of one call. Dropping it reports that the call will not be made.
#[derive(Debug)]
pub struct ReplyTo {
    /// `None` once the outcome is reported.
    outcomes: Option<Arc<dyn Outcomes>>,
    call: usize,
}

impl ReplyTo {
    /// Reports to `outcomes`, for the call with this number.
    pub fn new(outcomes: Arc<dyn Outcomes>, call: usize) -> Self {
        Self { outcomes: Some(outcomes), call }
    }

    /// Reports the outcome.
    pub(super) fn tell(mut self, delivered: CallOutcome, hold: Option<OrderHold>) {
        if let Some(outcomes) = self.outcomes.take() {
            outcomes.ended(self.call, delivered, hold);
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.outcomes.as_ref().is_none_or(|outcomes| outcomes.is_cancelled())
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if let Some(outcomes) = self.outcomes.take() {
            let why = "the comet's task ended before its call did";
            outcomes.ended(self.call, CallOutcome::Unreachable(why.into()), None);
        }
    }
}
