//! The outcome of a call, and who is told.

use std::sync::Arc;

use super::hold::OrderHold;
use crate::message::ConnectionId;

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
    /// The call with this number has ended; returns whether all calls have. Called once per call,
    /// usually on the comet's task, so it should return soon. Later calls of the same order wait at that
    /// comet until `hold` is dropped.
    fn ended(&self, call: usize, delivered: CallOutcome, hold: Option<OrderHold>) -> bool;

    /// All calls have ended.
    fn finish(self: Arc<Self>);

    /// Whether the message was cancelled: calls that have not started are not made.
    fn is_cancelled(&self) -> bool;
}
