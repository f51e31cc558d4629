//! One call to a comet: its outcome, and which recipients it reached.

use std::collections::HashSet;
use std::sync::Arc;

use crate::comets::{CallOutcome, OrderHold, PartialDelivery};
use crate::message::{CometAddr, ConnectionId};
use crate::router::Recipient;

/// One call that was handed to a comet: queued, in flight or finished.
pub(super) struct DispatchedCall {
    pub(super) comet: CometAddr,
    pub(super) recipients: Arc<[Recipient]>,
    /// Whether it is part of a BROADCAST.
    pub(super) is_broadcast: bool,
    /// What the comet took.
    pub(super) acceptance: Acceptance,
}

/// How much of a call a comet accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acceptance {
    Nothing,
    All,
    /// All except the messages for these connections.
    AllBut(HashSet<ConnectionId>),
}

impl DispatchedCall {
    /// The recipients that were reached.
    pub(super) fn reached(&self) -> impl Iterator<Item = &Recipient> {
        self.recipients.iter().filter(|recipient| match &self.acceptance {
            Acceptance::Nothing => false,
            Acceptance::All => true,
            Acceptance::AllBut(missed) => !missed.contains(&recipient.connection),
        })
    }
}

/// A call that was not simply acknowledged.
#[derive(Debug)]
pub(super) struct Exception {
    pub(super) call: usize,
    pub(super) outcome: CallOutcome,
    /// Keeps later calls behind this message until its outcome is durable.
    pub(super) hold: Option<OrderHold>,
}

/// The recipients of a partially delivered call.
pub(super) struct SplitRecipients<'a> {
    pub(super) unreachable: Vec<&'a Recipient>,
    /// Those that are not connected to the comet any more.
    pub(super) missing: Vec<&'a Recipient>,
    /// How many the comet rejected permanently.
    pub(super) refused: usize,
    /// Whether the record becomes a dead letter: a recipient was rejected permanently, or an
    /// unreached connection belongs to no known recipient.
    pub(super) is_failed: bool,
}

impl<'a> SplitRecipients<'a> {
    pub(super) fn of(recipients: &'a [Recipient], partly: &PartialDelivery) -> Self {
        let missed: HashSet<_> = partly.unreachable.iter().collect();
        let refused: HashSet<_> = partly.refused.iter().collect();
        let gone: HashSet<_> = partly.missing.iter().collect();
        // A comet may name connections that the directory does not know.
        let missing = recipients.iter().filter(|recipient| gone.contains(&recipient.connection)).collect();
        let unreachable: Vec<_> =
            recipients.iter().filter(|recipient| missed.contains(&recipient.connection)).collect();
        let refused = recipients.iter().filter(|recipient| refused.contains(&recipient.connection)).count();
        let is_failed = !partly.refused.is_empty() || unreachable.len() < partly.unreachable.len();
        Self { unreachable, missing, refused, is_failed }
    }
}
