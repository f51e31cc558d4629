//! Reads the histories of rooms.

use std::sync::Arc;

use super::{Config, Unavailable};
use crate::inbox::{OlderMessages, Page, PageQuery, Standing, StreamReader};
use crate::message::RoomId;
use crate::redis_client::RedisClient;

/// Reads histories, in pages, which go on in the archive where Redis ends.
#[derive(Clone, Debug)]
pub struct RoomHistoryReader(StreamReader);

impl RoomHistoryReader {
    /// A reader through this client. Its pages go on in `older`.
    pub fn new(client: RedisClient, config: &Config, older: Option<Arc<dyn OlderMessages>>) -> Self {
        Self(StreamReader::new(client, config.retention, older))
    }

    /// A part of a room's history. A room without one has an empty one.
    ///
    /// # Errors
    /// If it cannot be read now.
    pub async fn page(&self, room: &RoomId, query: &PageQuery) -> Result<Page, Unavailable> {
        let mut page = self.0.page(room, query).await?;
        page.entries.iter_mut().for_each(|entry| entry.message.room = Some(room.clone()));
        Ok(page)
    }

    /// Where a room's history stands in Redis.
    ///
    /// # Errors
    /// If it cannot be read now.
    pub async fn standing(&self, room: &RoomId) -> Result<Standing, Unavailable> {
        Ok(self.0.standing(room, Vec::new()).await?.0)
    }
}
