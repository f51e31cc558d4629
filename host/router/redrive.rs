//! Whom a redriven message is for: those who have not had it.

use crate::decision::{Absent, Cause, Identity};
use crate::message::{CometAddr, RedriveUsers, Target};
use crate::router::{Plan, Recipient, connections};

impl Plan {
    /// A redriven message: only these comets did not take it. A message to all comets goes to
    /// those of them that are known. Recipients of a comet that is no longer among the calls have
    /// moved, nobody knows where to, so that the message goes to all then.
    pub fn only(&mut self, comets: &[CometAddr]) {
        let calls = |comet: &CometAddr| self.deliveries.iter().any(|delivery| delivery.comet == *comet);
        if self.is_for_every_comet || comets.iter().all(calls) {
            self.deliveries.retain(|delivery| comets.contains(&delivery.comet));
        }
    }

    /// A redriven message that was not kept for these users, and that everyone else has had:
    /// wherever they are now, it is for them only. Of those who are not named it may be for
    /// everyone who is away.
    pub fn only_users(&mut self, users: &RedriveUsers) {
        let mut missing = users.named.clone();
        self.deliveries.retain_mut(|delivery| {
            let named = |recipient: &&Recipient| users.named.contains(recipient.name());
            let due: Vec<_> = delivery.recipients.iter().filter(named).cloned().collect();
            for recipient in &due {
                missing.remove(recipient.name());
            }
            if due.len() < delivery.recipients.len() {
                delivery.target = Target::Connections(connections(&due));
                delivery.recipients = due.into();
            }
            !delivery.recipients.is_empty()
        });
        let is_due = |absent: &&Absent| users.more || users.named.contains(absent.user.as_str());
        let mut absent: Vec<_> = self.absent.iter().filter(is_due).cloned().collect();
        for absent in &absent {
            missing.remove(absent.user.as_str());
        }
        let gone = |name: String| Absent {
            user: name.as_str().into(),
            identity: Identity::User,
            connection: None,
            cause: Cause::NoConnection,
        };
        absent.extend(missing.into_iter().map(gone));
        self.absent = absent.into();
        self.is_for_every_comet = false;
    }
}
