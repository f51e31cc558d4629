//! Restricts a redriven message to the recipients that have not received it.

use crate::decision::{AbsenceCause, AbsentRecipient, IdKind};
use crate::message::{CallTarget, CometAddr, RedriveUsers};
use crate::router::{DeliveryPlan, Recipient, connections};

impl DeliveryPlan {
    /// Restricts a redriven message to the comets that did not accept it. A BROADCAST goes to those
    /// of them that are known. Otherwise, if one of them is no longer among the calls, its recipients
    /// have moved to unknown comets, so the message goes to all.
    fn keep_comets(&mut self, comets: &[CometAddr]) {
        let calls = |comet: &CometAddr| self.deliveries.iter().any(|delivery| delivery.comet == *comet);
        if self.is_for_every_comet || comets.iter().all(calls) {
            self.deliveries.retain(|delivery| comets.contains(&delivery.comet));
        }
    }

    /// Restricts a redriven message to the comets that did not accept it and the users for whom it was
    /// not stored. Everyone else has had it, and gets it again only if it is unknown who has not.
    pub fn only_due(&mut self, comets: Option<&[CometAddr]>, users: Option<&RedriveUsers>) {
        match (comets, users) {
            (None, None) => {}
            (Some(comets), None) => self.keep_comets(comets),
            (comets, Some(users)) => self.keep_users(comets.unwrap_or_default(), users),
        }
    }

    /// The message is for these users, wherever they are now, and for everyone at these comets. If there
    /// are more users than are named, or recipients of a comet have moved, anyone may be missing it: a
    /// repeat is better than a loss.
    fn keep_users(&mut self, comets: &[CometAddr], users: &RedriveUsers) {
        let mut missing = users.named.clone();
        let calls = |comet: &CometAddr| self.deliveries.iter().any(|delivery| delivery.comet == *comet);
        let have_moved = !self.is_for_every_comet && !comets.iter().all(calls);
        self.deliveries.retain_mut(|delivery| {
            let named = |recipient: &&Recipient| users.named.contains(recipient.name());
            let due: Vec<_> = delivery.recipients.iter().filter(named).cloned().collect();
            for recipient in &due {
                missing.remove(recipient.name());
            }
            if users.truncated || have_moved || comets.contains(&delivery.comet) {
                return true;
            }
            if due.len() < delivery.recipients.len() {
                delivery.target = CallTarget::Connections(connections(&due));
                delivery.recipients = due.into();
            }
            !delivery.recipients.is_empty()
        });
        // Some users of a comet that did not accept it may be absent now.
        let may_be_anyone = users.truncated || !comets.is_empty();
        let is_due = |absent: &&AbsentRecipient| may_be_anyone || users.named.contains(absent.user.as_str());
        let mut absent: Vec<_> = self.absent.iter().filter(is_due).cloned().collect();
        for absent in &absent {
            missing.remove(absent.user.as_str());
        }
        let gone = |name: String| AbsentRecipient {
            by_policy: false,
            user: name.as_str().into(),
            identity: IdKind::User,
            connection: None,
            cause: AbsenceCause::NoConnection,
        };
        absent.extend(missing.into_iter().map(gone));
        self.absent = absent.into();
        self.is_for_every_comet &= !comets.is_empty();
    }
}
