//! The fleet of comets: takes each call that the router wants made, keeps its order, makes it,
//! tries again where that helps, and tells the outcome.
//!
//! # Layout
//! - `fleet`: the comets by address. `known`: which are known, who gets BROADCASTs, who is
//!   forgotten. `nodes`: those that an operator names, and what DNS says of them; `discovery`:
//!   those that come and go. `names`: server names. `store` and `sharing`: what all gateways
//!   know. `status`: what is told of it. `access`: which addresses may be connected to.
//! - `comet`: one comet's task. It owns the comet's lanes, breaker and channel. `job`: a call
//!   that waits, and what a comet's task shares with the fleet.
//! - `lanes`, `breaker`, `retry`, `places`: pure kernels. `pending`: bytes over all comets.
//!   `shortage`: what this process lacks.
//! - `wire`: what the calls look like in each dialect. `channel`: how they are made.
//!
//! # Promises
//! - Parcels for one room or one connection reach a comet in the order of [`Fleet::send`], one
//!   call at a time. Rooms and connections are spread over lanes, so that they do not wait for
//!   each other.
//! - Every receipt resolves: at the latest when the parcel has waited for `give_up_after` and
//!   its last call has ended. That is so even when a task dies.
//! - A parcel whose receipt is dropped before its call is not sent: its partition was given up, and
//!   another gateway may have sent what comes after it.
//! - A status that a comet's handler gives is about the message, or about one of its connections
//!   or its room. Those wait for another attempt by themselves; the lane and the breaker go on.
//! - While a comet's breaker is open, parcels for it are [`Delivered::Unreachable`] at once.
//!
//! # When more is sent than comets take
//! Each comet has a queue of `queue` messages, and of a quarter of the bytes that may wait for all
//! comets together (`max_pending_bytes`). Three rules say who waits:
//!
//! 1. *The queue of a comet that takes messages is full:* [`Fleet::send`] waits for room. A
//!    backlog that is read faster than comets take it is back-pressure, never an outcome.
//! 2. *The comet does not take them:* its breaker is open, or a message waited for its first
//!    call for `give_up_after`, which counts for as long again. Then what finds the queue full is
//!    unreachable at once. So a comet has to take `queue` messages in `give_up_after` (100 a second
//!    by default) to be waited for, and holds others up for `give_up_after` at most before that is
//!    known. A smaller queue waits for slower comets; a larger one takes longer bursts.
//! 3. *As many bytes as may wait for all comets:* [`Fleet::payload`] waits. One comet has a quarter
//!    of them at most, and what waits has its outcome in bounded time.
//!
//! Content counts once in (3), since calls share it, and for each comet in (1).
//!
//! It does not know what a message is about, who its recipients are, or what becomes of those
//! who were not reached.

mod access;
mod breaker;
mod channel;
mod comet;
mod config;
mod discovery;
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod job;
mod known;
mod lanes;
mod lookup;
mod metrics;
#[cfg(test)]
#[cfg(feature = "models")]
mod model;
mod names;
mod nodes;
mod pending;
mod places;
mod probe;
pub mod proto;
mod retry;
mod sharing;
mod shortage;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod wire;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::message::{CometAddr, ConnectionId, MessageId, NamedBy, RoomId, Target};

pub use breaker::State as BreakerState;
pub use config::Config;
pub use discovery::Config as DiscoveryConfig;
pub use fleet::Fleet;
pub use job::Source;
pub use metrics::Metrics;
pub use names::Names;
pub use probe::probe;
pub use status::{CometStatus, Reach};
pub use store::{CometStore, Kept, MemoryCometStore, ReadOnly, RedisCometStore, Sighting, Unavailable};
pub use wire::{Dialect, Payload};

/// How long is tried. Part of `[delivery]`, whose other keys are not the comets' concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The deadline of one call.
    pub timeout: Duration,
    /// How long after it was queued a parcel is still tried again. A call that is under way at
    /// that moment may still end well: an outcome takes at most this and `timeout` together.
    pub give_up_after: Duration,
}

/// One message for one comet.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The comet to call.
    pub comet: CometAddr,
    /// Who named it: this decides whether its address may be connected to.
    pub named_by: NamedBy,
    /// For whom it is there.
    pub target: Target,
    /// The room whose order it keeps, whatever its target: a room's messages may go to a
    /// comet as a whole now and by connection after a policy changed.
    pub room: Option<RoomId>,
    /// The message, encoded once by [`Fleet::payload`] for all its parcels.
    pub payload: Payload,
    /// The message's id, which travels in the call's metadata.
    pub message: MessageId,
}

impl Parcel {
    /// What it takes of the comet's queue in bytes: its content and the names of its connections.
    fn cost(&self) -> usize {
        let keys = match &self.target {
            Target::Connections(keys) => keys.iter().map(|key| wire::key_len(key) + size_of_val(key)).sum(),
            Target::Room(_) | Target::Everyone { .. } => 0,
        };
        self.payload.len() + keys
    }
}

/// How a parcel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The comet said that it took it.
    Acknowledged,
    /// The comet did not take it in time: why.
    Unreachable(String),
    /// The comet refused it for good, with a status that no repetition can mend: which.
    Refused(String),
    /// Some of the connections that the parcel names were not reached; the others were.
    Partly(Box<Partly>),
}

/// The connections of a parcel that were not reached while others were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partly {
    /// Those that did not take it in time: their client's queue is full, or it is gone.
    pub unreachable: Vec<ConnectionId>,
    /// Those that the comet refused for good.
    pub refused: Vec<ConnectionId>,
    /// Why, in the comet's words.
    pub why: String,
}

/// The outcome of one parcel, to be awaited. Dropping it does not stop the call.
#[derive(Debug)]
#[must_use = "the outcome decides what becomes of the recipients"]
pub struct Receipt(Outcome);

#[derive(Debug)]
enum Outcome {
    Known(Option<Delivered>),
    Awaited(oneshot::Receiver<Delivered>),
}

impl Receipt {
    /// The receipt of a parcel for which no call was made.
    fn known(delivered: Delivered) -> Self {
        Self(Outcome::Known(Some(delivered)))
    }

    fn awaited(outcome: oneshot::Receiver<Delivered>) -> Self {
        Self(Outcome::Awaited(outcome))
    }
}

impl Future for Receipt {
    type Output = Delivered;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Delivered> {
        let task_ended = || Delivered::Unreachable("the comet's task ended before its call did".into());
        match &mut self.0 {
            Outcome::Known(delivered) => Poll::Ready(delivered.take().unwrap_or_else(task_ended)),
            Outcome::Awaited(outcome) => {
                Pin::new(outcome).poll(context).map(|delivered| delivered.unwrap_or_else(|_| task_ended()))
            }
        }
    }
}
