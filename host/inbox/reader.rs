//! What reads inboxes: Redis, or memory in the demo and in tests.

use async_trait::async_trait;

use super::Unavailable;
use super::cursor::Position;
use super::page::{DeviceId, Page, PageQuery, Standing};
use crate::message::UserId;

/// Reads inboxes. A user without an inbox has an empty one.
#[async_trait]
pub trait InboxReader: Send + Sync + 'static {
    /// A part of a user's inbox.
    ///
    /// # Errors
    /// If the inbox cannot be read now.
    async fn page(&self, user: &UserId, query: &PageQuery) -> Result<Page, Unavailable>;

    /// Where a user's inbox stands, and what the device has acknowledged.
    ///
    /// # Errors
    /// If the inbox cannot be read now.
    async fn standing(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Standing, Unavailable>;

    /// The device has seen everything up to this place. Its position only moves forward. Nothing is
    /// deleted, except in [`super::Mode::Queue`].
    ///
    /// # Errors
    /// If it cannot be stored now.
    async fn acknowledge(
        &self,
        user: &UserId,
        device: &DeviceId,
        position: Position,
    ) -> Result<Standing, Unavailable>;

    /// Deletes a user's messages and positions. Returns how many messages there were. What is stored
    /// meanwhile stays.
    ///
    /// # Errors
    /// If it cannot be deleted now.
    async fn erase(&self, user: &UserId) -> Result<u64, Unavailable>;
}
