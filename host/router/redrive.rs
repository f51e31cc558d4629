//! Restricts a redriven message to the recipients that have not received it.

use crate::decision::{Absent, Cause, Identity};
use crate::message::{CometAddr, RedriveUsers, Target};
use crate::router::{Plan, Recipient, connections};

impl Plan {
    /// A redriven message: only these comets did not take it. A message to all comets goes to
    /// those of them that are known. Recipients of a comet that is no longer among the calls have
    /// moved, nobody knows where to, so that the message goes to all then.
    fn only(&mut self, comets: &[CometAddr]) {
        let calls = |comet: &CometAddr| self.deliveries.iter().any(|delivery| delivery.comet == *comet);
        if self.is_for_every_comet || comets.iter().all(calls) {
            self.deliveries.retain(|delivery| comets.contains(&delivery.comet));
        }
    }

    /// A redriven message: these comets did not take it, and it was not kept for these users. Everyone
    /// else has had it, and gets it again only where it is not known who has not.
    pub fn only_due(&mut self, comets: Option<&[CometAddr]>, users: Option<&RedriveUsers>) {
        match (comets, users) {
            (None, None) => {}
            (Some(comets), None) => self.only(comets),
            (comets, Some(users)) => self.only_users(comets.unwrap_or_default(), users),
        }
    }

    /// Wherever these users are now, it is for them, and for everyone at these comets. When there are
    /// more users than are named, or recipients of a comet have moved, anybody may be one of those
    /// who have not had it: a repeat is better than a loss.
    fn only_users(&mut self, comets: &[CometAddr], users: &RedriveUsers) {
        let mut missing = users.named.clone();
        let calls = |comet: &CometAddr| self.deliveries.iter().any(|delivery| delivery.comet == *comet);
        let have_moved = !self.is_for_every_comet && !comets.iter().all(calls);
        self.deliveries.retain_mut(|delivery| {
            let named = |recipient: &&Recipient| users.named.contains(recipient.name());
            let due: Vec<_> = delivery.recipients.iter().filter(named).cloned().collect();
            for recipient in &due {
                missing.remove(recipient.name());
            }
            if users.more || have_moved || comets.contains(&delivery.comet) {
                return true;
            }
            if due.len() < delivery.recipients.len() {
                delivery.target = Target::Connections(connections(&due));
                delivery.recipients = due.into();
            }
            !delivery.recipients.is_empty()
        });
        // Of those whom a comet did not take it for, some may be away now.
        let may_be_anyone = users.more || !comets.is_empty();
        let is_due = |absent: &&Absent| may_be_anyone || users.named.contains(absent.user.as_str());
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
        self.is_for_every_comet &= !comets.is_empty();
    }
}
