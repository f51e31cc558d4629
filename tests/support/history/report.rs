//! The report of a check.

use std::fmt;

use super::ReceivedMessage;

/// A message at a comet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Occurrence {
    pub comet: String,
    pub room: String,
    pub number: u64,
}

impl Occurrence {
    pub(super) fn of(receipt: &ReceivedMessage) -> Self {
        Self { comet: receipt.comet.clone(), room: receipt.room.clone(), number: receipt.number }
    }
}

/// The result of [`super::History::check`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Messages sent, and messages received by comets including repeats.
    pub sent: usize,
    pub received: usize,
    /// Records in the dead-letter topic, and entries stored for users.
    pub dead_lettered: usize,
    pub kept: usize,
    /// Owed, but not paid.
    pub lost: Vec<Occurrence>,
    /// First received after a later message of its room.
    pub reordered: Vec<Occurrence>,
    /// Received by the wrong comet or room, or with a wrong id.
    pub misrouted: Vec<Occurrence>,
    /// Committed before it had been received.
    pub committed_undelivered: Vec<Occurrence>,
    /// Decided by an older version of the policies than an earlier message.
    pub version_regressed: Vec<Occurrence>,
    /// Received again.
    pub repeated: Vec<Occurrence>,
    /// Received again for a logged reason; not in `repeated`.
    pub excused: Vec<Occurrence>,
    /// Repeats that no interruption explains: their offsets were committed, or there was no
    /// interruption.
    pub unexplained: Vec<Occurrence>,
}

impl Report {
    /// # Panics
    /// If anything is lost, misrouted or committed too early; the order is not checked.
    pub fn assert_nothing_lost(&self) {
        let faults = [&self.lost, &self.misrouted, &self.committed_undelivered];
        assert!(faults.iter().all(|fault| fault.is_empty()), "{self}");
        assert!(self.sent > 0 && self.received + self.kept > 0, "nothing was tried: {self}");
    }

    /// # Panics
    /// If anything is lost, reordered, misrouted, committed too early, or decided by an older version.
    pub fn assert_nothing_lost_or_reordered(&self) {
        self.assert_nothing_lost();
        assert!(self.reordered.is_empty() && self.version_regressed.is_empty(), "{self}");
    }

    /// # Panics
    /// If anything was repeated without a logged reason.
    pub fn assert_no_repeats(&self) {
        assert!(self.repeated.is_empty(), "{self}");
    }

    /// # Panics
    /// If anything was repeated that was committed before the interruption, or without one: repeats
    /// are limited to records in flight.
    pub fn assert_repeats_explained(&self) {
        assert!(self.unexplained.is_empty(), "{self}");
    }

    /// # Panics
    /// If more messages were repeated.
    pub fn assert_repeats_at_most(&self, bound: usize) {
        assert!(self.repeated.len() <= bound, "at most {bound} repeats: {self}");
    }

    /// # Panics
    /// If any record became a dead letter.
    pub fn assert_no_dead_letters(&self) {
        assert_eq!(self.dead_lettered, 0, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, dead_lettered, kept, .. } = self;
        write!(f, "{sent} messages sent, {received} received by comets, {kept} kept for users, ")?;
        write!(f, "{dead_lettered} dead letters")?;
        for (name, found) in [
            ("lost", &self.lost),
            ("reordered", &self.reordered),
            ("misrouted", &self.misrouted),
            ("committed before they were delivered", &self.committed_undelivered),
            ("decided by an older version", &self.version_regressed),
            ("repeated", &self.repeated),
            ("repeated for a reason in a gateway's log", &self.excused),
            ("repeated without a reason", &self.unexplained),
        ] {
            write!(f, "; {} {name}", found.len())?;
            for (at, separator) in found.iter().take(5).zip([": ", ", ", ", ", ", ", ", "]) {
                write!(f, "{separator}{}#{} at {}", at.room, at.number, at.comet)?;
            }
        }
        Ok(())
    }
}
