//! The outcome of a call, and who is notified of it.

use std::ops::Range;
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

/// Receives the outcomes of the calls of one run of messages, which are numbered from 0. It is usually
/// called on a comet's task, so it should return soon.
pub trait Outcomes: Send + Sync + std::fmt::Debug {
    /// A call has ended for this message, and the comet did not simply acknowledge it. Called at most once
    /// for each of its calls, before it is finished. Later calls of the same order wait at that comet until
    /// `hold` is dropped.
    fn not_acknowledged(&self, message: u32, call: usize, outcome: CallOutcome, hold: Option<OrderHold>);

    /// All calls of these messages have ended. Called once for each message.
    fn finish(self: Arc<Self>, messages: Range<u32>);

    /// Whether the messages were cancelled: calls that have not started are not made.
    fn is_cancelled(&self) -> bool;
}
