//! The fleet of comets: queues each call of the router, keeps the order, makes the call, retries
//! where that helps, and reports the outcome.
//!
//! # Layout
//! - `fleet`: the comets by address. `comet_table`: the known comets, which of them get
//!   BROADCASTs, and eviction. `node_list`: comets that an operator lists, resolved by DNS;
//!   `discovery`: dynamic lists. `names`: server names. `store` and `sharing`: what all gateways
//!   know. `status`: the view of the admin API. `access`: which addresses may be connected to.
//! - `call_batch`: the calls of many messages on their way to the comets.
//! - `comet`: one comet's task. It owns the comet's order queues, breaker and channel.
//!   `stream`: streamed delivery, where the comet serves it.
//!   `queued_call`: a queued call, and the state that a comet's task shares with the fleet.
//! - `order`, `breaker`, `retry`, `capacity`: pure kernels. `hold`: the order of messages that were
//!   given up. `pending`: bytes over all comets.
//!   `shortage`: files and ports that this process lacks.
//! - `wire`: the encoding of calls in each dialect. `channel`: how calls are made. `coalesced`: many frames
//!   in one write.
//!
//! # Promises
//! - Calls for one room or one connection reach a comet in the order of [`Fleet::send`], one at a
//!   time. Different rooms and connections do not wait for each other.
//! - Every call has its outcome reported: at the latest when it has waited for `delivery_timeout` and
//!   its last attempt has ended, not counting the time behind a message that was given up. This
//!   holds even if a task dies.
//! - Calls that follow a message that was given up wait until its outcome is durable: the
//!   [`OrderHold`] of its outcome is dropped then. Meanwhile they do not expire, and the first one has
//!   an attempt afterwards.
//! - A call whose message was cancelled is not sent any more: its partition was revoked, and another
//!   gateway may have sent later messages already.
//! - A status from a comet's handler is about the message, its room, or one of its connections. Only
//!   those are retried; other calls proceed, and the breaker stays closed.
//! - While a comet's breaker is open, calls to it are [`CallOutcome::Unreachable`] at once.
//!
//! # Back-pressure
//! Each comet has a queue of `queue` messages, limited to a quarter of the bytes that may be pending
//! for all comets together (`max_pending_bytes`). Three rules:
//!
//! 1. *The queue of a comet that keeps up is full:* [`Fleet::send`] waits for room. Reading a
//!    backlog faster than comets accept it is back-pressure, never an outcome.
//! 2. *The comet does not keep up:* its breaker is open, or a message waited `delivery_timeout` for its
//!    first attempt (the comet then counts as slow for as long again). Calls that find its queue
//!    full are unreachable at once. So a comet has to accept `queue` messages in `delivery_timeout`
//!    (100 per second by default), and a slow one blocks others for at most `delivery_timeout` before
//!    it is detected. A smaller queue waits for slower comets; a larger one absorbs longer bursts.
//! 3. *All pending bytes are used:* [`Fleet::payload`] waits. One comet uses a quarter of them at
//!    most, and every pending call has its outcome in bounded time.
//!
//! Content counts once in (3), since calls share it, and once per comet in (1).
//!
//! The fleet does not know what a message means, who its recipients are, or what happens to
//! those that were not reached.

mod access;
mod breaker;
mod call_batch;
mod capacity;
mod channel;
mod coalesced;
mod comet;
mod comet_table;
mod config;
mod discovery;
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hold;
mod metrics;
#[cfg(test)]
#[cfg(feature = "models")]
mod model;
mod name_lookup;
mod names;
mod node_list;
mod order;
mod pending;
mod probe;
pub mod proto;
mod queued_call;
mod retry;
mod sharing;
mod shortage;
mod status;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use crate::message::{CallTarget, CometAddr, ConnectionId, MessageId, NamedBy, RoomId};

pub use breaker::BreakerState;
pub use call_batch::CallBatch;
pub use config::{Config, DeliveryMode};
pub use discovery::Config as DiscoveryConfig;
pub use fleet::Fleet;
pub use hold::OrderHold;
pub use metrics::Metrics;
pub use names::ServerNames;
pub use probe::probe;
pub use queued_call::{ChannelMode, Source};
pub use status::{BroadcastReach, CometStatus};
pub use store::{
    CometStore, MemoryCometStore, ReadOnlyCometStore, RedisCometStore, SharedSightings, Sighting, Unavailable,
};
pub use wire::{Content, Dialect, Payload};

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
    fn cost(&self) -> usize {
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
    fn tell(mut self, delivered: CallOutcome, hold: Option<OrderHold>) {
        if let Some(outcomes) = self.outcomes.take() {
            outcomes.ended(self.call, delivered, hold);
        }
    }

    fn is_cancelled(&self) -> bool {
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
