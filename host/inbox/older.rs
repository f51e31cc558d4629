//! What inboxes no longer hold, kept elsewhere for longer.

use std::fmt::Debug;

use async_trait::async_trait;

use super::StoredMessage;
use super::cursor::Position;
use crate::message::UserId;

/// A part of what is kept for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderRange {
    /// Only entries from this place on.
    pub from: Option<Position>,
    /// Only entries up to this place.
    pub to: Option<Position>,
    /// Entries at most.
    pub limit: usize,
    /// The newest first.
    pub backwards: bool,
}

/// Nothing can be read now. The text is for clients; the store logs the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OlderUnavailable(pub &'static str);

/// Messages that were in inboxes, under the places that they had there.
#[async_trait]
pub trait OlderMessages: Debug + Send + Sync + 'static {
    /// Unexpired entries of a user in this range, in the order of their places. Fewer than `limit` are
    /// all that there are.
    ///
    /// # Errors
    /// If they cannot be read now.
    async fn older(
        &self,
        user: &UserId,
        range: &OlderRange,
    ) -> Result<Vec<(Position, StoredMessage)>, OlderUnavailable>;
}
