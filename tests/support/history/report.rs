//! What was found, and how it is told.

use std::fmt;

use super::Receipt;

/// A message at a comet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub comet: String,
    pub room: String,
    pub number: u64,
}

impl At {
    pub(super) fn of(receipt: &Receipt) -> Self {
        Self { comet: receipt.comet.clone(), room: receipt.room.clone(), number: receipt.number }
    }
}

/// What [`super::History::check`] found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many messages were sent, and how many arrived at comets, repeats included.
    pub sent: usize,
    pub received: usize,
    /// How many records are dead letters, and how often a message was kept for a user.
    pub dead_lettered: usize,
    pub kept: usize,
    /// Owed, and never paid.
    pub lost: Vec<At>,
    /// Came for the first time after a later message of its room.
    pub reordered: Vec<At>,
    /// Came to a comet or room that it was not for, or with a wrong id.
    pub misrouted: Vec<At>,
    /// Its offset was committed before it had arrived.
    pub committed_undelivered: Vec<At>,
    /// Was decided by an older version of the policies than one before it.
    pub went_back: Vec<At>,
    /// Came again.
    pub repeated: Vec<At>,
    /// Came again, and a gateway has said why; not in `repeated`.
    pub excused: Vec<At>,
    /// Those of `repeated` that no interruption explains: their offsets were committed, or
    /// nothing was interrupted.
    pub unexplained: Vec<At>,
}

impl Report {
    /// # Panics
    /// When anything is lost, misrouted or committed too early; order is not asked for.
    pub fn assert_nothing_lost(&self) {
        let faults = [&self.lost, &self.misrouted, &self.committed_undelivered];
        assert!(faults.iter().all(|fault| fault.is_empty()), "{self}");
        assert!(self.sent > 0 && self.received + self.kept > 0, "nothing was tried: {self}");
    }

    /// # Panics
    /// When anything is lost, reordered, misrouted, committed too early or decided by an older
    /// version than before.
    pub fn assert_nothing_lost_or_reordered(&self) {
        self.assert_nothing_lost();
        assert!(self.reordered.is_empty() && self.went_back.is_empty(), "{self}");
    }

    /// # Panics
    /// When anything came twice and no gateway has logged why.
    pub fn assert_no_repeats(&self) {
        assert!(self.repeated.is_empty(), "{self}");
    }

    /// # Panics
    /// When anything came twice that was committed before the interruption, or without one:
    /// repeats are bounded by what was in flight.
    pub fn assert_repeats_explained(&self) {
        assert!(self.unexplained.is_empty(), "{self}");
    }

    /// # Panics
    /// When more came twice.
    pub fn assert_repeats_at_most(&self, bound: usize) {
        assert!(self.repeated.len() <= bound, "at most {bound} repeats: {self}");
    }

    /// # Panics
    /// When a record became a dead letter.
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
            ("decided by an older version", &self.went_back),
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
