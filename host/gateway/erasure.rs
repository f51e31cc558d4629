//! Erasure of a user: from the inbox and from the archive.

use crate::archive::{self, Archive};
use crate::config::Config;
use crate::inbox::{InboxReader, Unavailable};
use crate::message::UserId;

/// Erases users.
#[derive(Debug, Clone)]
pub struct Erasure {
    /// `None` without an archive.
    archive: Option<Archive>,
    /// Whether there is an archive that this process does not reach.
    is_elsewhere: bool,
}

/// How many messages were erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    /// From the inbox.
    pub inbox: u64,
    /// From the archive.
    pub archive: u64,
}

/// A user could not be erased everywhere. Erasing again continues.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The inbox.
    #[error(transparent)]
    Inbox(#[from] Unavailable),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] archive::DatabaseError),
    /// The archive is not configured here.
    #[error(
        "messages are archived (`[archive] enabled`), and `[archive] url` is empty here: nothing was deleted"
    )]
    NoArchive,
}

impl Erasure {
    /// For this configuration.
    ///
    /// # Errors
    /// When `[archive] url` cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime, if there is an archive.
    pub fn new(config: &Config) -> Result<Self, archive::InvalidUrl> {
        let archive = config.archive.has_database().then(|| Archive::new(&config.archive)).transpose()?;
        let is_elsewhere = config.archive.enabled && archive.is_none();
        Ok(Self { archive, is_elsewhere })
    }

    /// Erases what is stored for a user.
    ///
    /// # Errors
    /// If something could not be erased.
    pub async fn erase(&self, inbox: &dyn InboxReader, user: &UserId) -> Result<Erased, EraseError> {
        if self.is_elsewhere {
            return Err(EraseError::NoArchive);
        }
        let archive = match &self.archive {
            Some(archive) => archive.erase(user).await?,
            None => 0,
        };
        Ok(Erased { inbox: inbox.erase(user).await?, archive })
    }
}
