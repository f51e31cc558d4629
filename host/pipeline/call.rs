//! One call to a comet, and how far it came.

use std::collections::HashSet;
use std::sync::Arc;

use crate::comets::{Partly, Receipt};
use crate::message::{CometAddr, ConnectionId};
use crate::router::Recipient;

/// One call that waits in a comet's lane, is under way, or has ended.
pub(super) struct Call {
    pub(super) comet: CometAddr,
    pub(super) recipients: Arc<[Recipient]>,
    /// Whether it is made because the message is for every comet that counts.
    pub(super) of_everyone: bool,
    pub(super) receipt: Receipt,
    /// What the comet took.
    pub(super) took: Took,
}

/// What a comet took of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Took {
    Nothing,
    All,
    /// All but what was for these connections.
    AllBut(HashSet<ConnectionId>),
}

impl Call {
    /// The recipients who were reached.
    pub(super) fn reached(&self) -> impl Iterator<Item = &Recipient> {
        self.recipients.iter().filter(|recipient| match &self.took {
            Took::Nothing => false,
            Took::All => true,
            Took::AllBut(missed) => !missed.contains(&recipient.connection),
        })
    }
}

/// The recipients of a call that reached only some of them.
pub(super) struct Apart<'a> {
    pub(super) unreachable: Vec<&'a Recipient>,
    /// How many the comet refused for good.
    pub(super) refused: usize,
    /// Whether the record itself has to be kept: somebody was refused for good, or nobody knows
    /// whose connections were not reached.
    pub(super) is_failed: bool,
}

impl<'a> Apart<'a> {
    pub(super) fn of(recipients: &'a [Recipient], partly: &Partly) -> Self {
        let missed: HashSet<_> = partly.unreachable.iter().collect();
        let refused: HashSet<_> = partly.refused.iter().collect();
        let unreachable: Vec<_> =
            recipients.iter().filter(|recipient| missed.contains(&recipient.connection)).collect();
        let refused = recipients.iter().filter(|recipient| refused.contains(&recipient.connection)).count();
        let is_failed = !partly.refused.is_empty() || unreachable.len() < partly.unreachable.len();
        Self { unreachable, refused, is_failed }
    }
}
