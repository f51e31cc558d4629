//! What inboxes and histories no longer hold, kept elsewhere for longer.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use super::StoredMessage;
use super::cursor::{Owner, Position};
use super::references::Reference;

/// A part of what is kept for a user or a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderRange {
    /// Only entries from this place on.
    pub from: Option<Position>,
    /// Only entries up to this place.
    pub to: Option<Position>,
    /// Entries at most.
    pub limit: usize,
    /// Bytes of their bodies, about: the entry that exceeds this is the last one.
    pub bytes: usize,
    /// The newest first.
    pub backwards: bool,
}

/// The entries of such a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderEntries {
    /// In the order of their places.
    pub entries: Vec<(Position, StoredMessage)>,
    /// Whether the range has no others.
    pub are_all: bool,
}

/// Nothing can be read now. The text is for clients; the store logs the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OlderUnavailable(pub &'static str);

/// Messages that were in inboxes and histories, under the places that they had there.
#[async_trait]
pub trait OlderMessages: Debug + Send + Sync + 'static {
    /// Unexpired entries of an owner in this range, at least one if there are any.
    ///
    /// # Errors
    /// If they cannot be read now.
    async fn older(&self, owner: Owner<'_>, range: &OlderRange) -> Result<OlderEntries, OlderUnavailable>;

    /// When the oldest entry of this owner that was dropped here as well had been stored, in milliseconds
    /// since 1970; `None` if everything is there.
    ///
    /// # Errors
    /// If that cannot be read now.
    async fn oldest_dropped(&self, owner: Owner<'_>) -> Result<Option<u64>, OlderUnavailable>;

    /// The bodies of these messages from the histories of their rooms, in this order; `None` for those that
    /// are not kept.
    ///
    /// # Errors
    /// If they cannot be read now.
    async fn referenced(&self, references: &[Reference]) -> Result<Vec<Option<Bytes>>, OlderUnavailable>;
}
