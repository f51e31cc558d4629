//! A call to a comet as the pipeline requests it.

use std::time::Duration;

use super::message_run::MessageRun;
use super::outcome::CallOutcome;
use super::wire;
use crate::message::{CallTarget, CometAddr, NamedBy, RoomId};

/// The timeouts of calls: the part of `[delivery]` that concerns comets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallTimeouts {
    /// The deadline of one call.
    pub request_timeout: Duration,
    /// How long after it was queued a call is retried. An attempt in flight at that moment may
    /// still succeed: an outcome takes at most this plus `request_timeout`.
    pub delivery_timeout: Duration,
}

/// A call to one comet.
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
    /// Its messages: several only if the target is a room.
    pub run: MessageRun,
}

impl CallRequest {
    /// Reports the outcome of a call that is not made.
    pub(super) fn tell(self, outcome: CallOutcome) {
        self.run.tell(&outcome, |_| None);
    }

    /// Its size in the comet's queue in bytes: the content and the connection ids.
    pub(super) fn cost(&self) -> usize {
        let keys = match &self.target {
            CallTarget::Connections(keys) => {
                keys.iter().map(|key| wire::key_len(key) + size_of_val(key)).sum()
            }
            CallTarget::Room(_) | CallTarget::Everyone { .. } => 0,
        };
        self.run.bytes() + keys
    }
}
