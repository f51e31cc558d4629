//! The calls of a message to comets: what is planned, their outcomes, and which recipients they reached.

use std::collections::HashSet;
use std::sync::Arc;

use crate::comets::{CallOutcome, OrderHold, PartialDelivery};
use crate::decision::AbsentRecipient;
use crate::message::{CallTarget, ConnectionId};
use crate::pipeline::chain::BatchChain;
use crate::router::{Delivery, DeliveryPlan, Recipient, Route};

/// What happens to a message. The messages of a room in a batch share it, unless a policy treats them
/// differently.
pub(super) struct MessagePlan {
    pub(super) calls: Vec<PlannedCall>,
    /// How many recipients the calls have, as far as they are known.
    pub(super) recipients: usize,
    /// Recipients that are absent regardless of the calls' outcomes.
    pub(super) absent: Arc<[AbsentRecipient]>,
    pub(super) withheld: usize,
    /// The room, when it was looked up.
    pub(super) route: Option<Arc<Route>>,
    /// The batch's policies.
    pub(super) chain: BatchChain,
}

/// One call to a comet.
pub(super) struct PlannedCall {
    pub(super) delivery: Delivery,
    /// Whether it is part of a BROADCAST.
    pub(super) is_broadcast: bool,
}

/// How much of a call a comet accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acceptance {
    Nothing,
    All,
    /// All except the messages for these connections.
    AllBut(HashSet<ConnectionId>),
}

impl MessagePlan {
    pub(super) fn new(
        plan: DeliveryPlan,
        route: Option<Arc<Route>>,
        is_broadcast: impl Fn(&Delivery) -> bool,
        chain: BatchChain,
    ) -> Self {
        let DeliveryPlan { deliveries, absent, withheld, .. } = plan;
        let recipients = deliveries.iter().map(|delivery| delivery.recipients.len()).sum();
        let planned = |delivery| PlannedCall { is_broadcast: is_broadcast(&delivery), delivery };
        let calls = deliveries.into_iter().map(planned).collect();
        Self { calls, recipients, absent, withheld, route, chain }
    }

    /// Whether all its calls are for a room.
    pub(super) fn is_for_room(&self) -> bool {
        self.calls.iter().all(|call| matches!(call.delivery.target, CallTarget::Room(_)))
    }
}

impl PlannedCall {
    /// The recipients that were reached if the comet accepted this much.
    pub(super) fn reached<'a>(&'a self, acceptance: &'a Acceptance) -> impl Iterator<Item = &'a Recipient> {
        self.delivery.recipients.iter().filter(move |recipient| match acceptance {
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
