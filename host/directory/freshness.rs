//! How current a room's members are, and who is notified when they change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::membership::Membership;
use crate::message::RoomId;
pub use crate::redis_client::{ForgetCause, LeaseTerm};

/// The members of a room as they were read.
#[derive(Debug, Clone)]
pub struct RoomReading {
    /// The members.
    pub membership: Arc<Membership>,
    /// How current they are.
    pub freshness: Freshness,
}

/// How current a reading is.
#[derive(Debug, Clone)]
pub struct Freshness {
    /// While this term is valid, every change of the room's members is reported. `None` if changes are
    /// not reported: the reading counts for a short time.
    pub term: Option<LeaseTerm>,
    /// When the oldest presence and connection details in it were read. Changes of these are never
    /// reported.
    pub details_since: Instant,
    /// Whether the details of every listed connection were found. Those of the others may be about to be
    /// written, which is never reported.
    pub complete: bool,
    /// How long reading it occupied the connection.
    pub cost: Duration,
}

impl Freshness {
    /// Of something that was just read, and whose changes are not reported.
    pub fn untracked() -> Self {
        Self { term: None, details_since: Instant::now(), complete: true, cost: Duration::ZERO }
    }
}

impl RoomReading {
    /// Members whose changes are not reported.
    pub fn untracked(membership: Membership) -> Self {
        Self { membership: Arc::new(membership), freshness: Freshness::untracked() }
    }
}

/// Readings are equal if they name the same members.
impl PartialEq for RoomReading {
    fn eq(&self, other: &Self) -> bool {
        self.membership == other.membership
    }
}

impl Eq for RoomReading {}

/// Is told what changes. Must not block.
pub trait RoomChanges: Send + Sync {
    /// The members of this room have changed.
    fn room_changed(&self, room: &RoomId);

    /// Terms have ended: the rooms that were read under them may have changed.
    fn terms_ended(&self, cause: ForgetCause);
}
