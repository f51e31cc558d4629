//! Inboxes in memory: for the demo, `memory://` and tests.

use std::collections::{HashMap, VecDeque};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::cursor::{Cursor, Position};
use super::entry::returned;
use super::page::{DeviceId, Page, PageBuilder, PageQuery, Standing};
use super::reader::InboxReader;
use super::{Config, Inbox, InboxEntry, Metrics, Mode, PartialStore, Stored, StoredMessage, Unavailable};
use crate::message::{ConnectionId, UserId};
use crate::time::{now_record_ms, record_millis};

/// Maximum number of inboxes; above it the oldest inbox is evicted.
const MAX_USERS: usize = 100_000;
/// Maximum number of devices of a user; the one furthest behind is forgotten.
const MAX_DEVICES: usize = 64;

/// The connection with which a user is registered as online.
pub type OnlineUsers = Box<dyn Fn(&UserId) -> Option<ConnectionId> + Send + Sync>;

/// Inboxes in memory, with a bounded number of users and of messages per user.
pub struct MemoryInbox {
    config: Config,
    metrics: Metrics,
    table: Mutex<InboxTable>,
    online: OnlineUsers,
}

#[derive(Debug, Default)]
struct InboxTable {
    inboxes: HashMap<UserId, UserInbox>,
    /// The users in the order in which their inboxes were created.
    order: VecDeque<UserId>,
}

#[derive(Debug, Default)]
struct UserInbox {
    entries: VecDeque<(Position, StoredMessage)>,
    newest: Option<Position>,
    is_trimmed: bool,
    acknowledged: HashMap<DeviceId, Position>,
}

impl MemoryInbox {
    /// Empty inboxes; `online` is asked for users who are back.
    pub fn new(config: &Config, metrics: Metrics, online: OnlineUsers) -> Self {
        Self { config: config.clone(), metrics, table: Mutex::default(), online }
    }
}

#[async_trait]
impl Inbox for MemoryInbox {
    async fn store(&self, entries: &[InboxEntry]) -> Result<Stored, PartialStore> {
        let now = now_record_ms();
        let mut table = self.table.lock();
        let mut positions = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let kept = StoredMessage::new(entry, now, self.config.retention(entry.retention));
            let inbox = table.inbox(&entry.user, MAX_USERS);
            positions.push((index, inbox.add(now, kept, self.config.max_per_user)));
        }
        drop(table);
        self.metrics.stored.inc_by(entries.len() as u64);
        let returned = returned(entries, |_, entry| (self.online)(&entry.user));
        self.metrics.returned.inc_by(returned.len() as u64);
        Ok(Stored { not_stored: Vec::new(), returned, positions })
    }
}

#[async_trait]
impl InboxReader for MemoryInbox {
    async fn page(&self, user: &UserId, query: &PageQuery) -> Result<Page, Unavailable> {
        let table = self.table.lock();
        let mut page = PageBuilder::new(*query, now_record_ms(), record_millis(self.config.retention));
        let Some(inbox) = table.inboxes.get(user) else { return Ok(page.finish(false)) };
        let is_wanted = |(position, _): &&(Position, StoredMessage)| {
            query.before.is_none_or(|before| *position < before.position())
                && query.after.is_none_or(|after| *position >= after.position())
        };
        let wanted = inbox.entries.iter().filter(is_wanted);
        let mut push =
            |(position, message): &(Position, StoredMessage)| page.push(*position, Some(message.clone()));
        let _all =
            if query.backwards { wanted.rev().all(&mut push) } else { wanted.into_iter().all(&mut push) };
        let is_trimmed = page.reaches_the_oldest() && inbox.is_trimmed;
        Ok(page.finish(is_trimmed))
    }

    async fn standing(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Standing, Unavailable> {
        let table = self.table.lock();
        Ok(table.inboxes.get(user).map_or_else(Standing::default, |inbox| inbox.standing(device)))
    }

    async fn acknowledge(
        &self,
        user: &UserId,
        device: &DeviceId,
        position: Position,
    ) -> Result<Standing, Unavailable> {
        let mut table = self.table.lock();
        let inbox = table.inbox(user, MAX_USERS);
        inbox.acknowledge(device, position);
        if self.config.mode == Mode::Queue
            && let Some(lowest) = inbox.acknowledged.values().min().copied()
        {
            while inbox.entries.front().is_some_and(|(position, _)| *position < lowest) {
                inbox.entries.pop_front();
                inbox.is_trimmed = true;
            }
        }
        Ok(inbox.standing(Some(device)))
    }

    async fn erase(&self, user: &UserId) -> Result<u64, Unavailable> {
        let mut table = self.table.lock();
        let inbox = table.inboxes.remove(user);
        table.order.retain(|known| known != user);
        Ok(inbox.map_or(0, |inbox| inbox.entries.len() as u64))
    }
}

impl UserInbox {
    fn add(&mut self, now_ms: i64, message: StoredMessage, most: usize) -> Position {
        let ms = u64::try_from(now_ms).unwrap_or_default();
        let position = match self.newest {
            Some(newest) if newest.ms >= ms => Position { number: newest.number + 1, ..newest },
            _ => Position { ms, number: 0 },
        };
        self.newest = Some(position);
        self.entries.push_back((position, message));
        while self.entries.len() > most {
            self.entries.pop_front();
            self.is_trimmed = true;
        }
        position
    }

    fn acknowledge(&mut self, device: &DeviceId, position: Position) {
        let before = self.acknowledged.get(device).copied();
        self.acknowledged.insert(device.clone(), before.map_or(position, |before| before.max(position)));
        if self.acknowledged.len() > MAX_DEVICES {
            let furthest = self.acknowledged.iter().min_by_key(|(_, position)| **position);
            if let Some(device) = furthest.map(|(device, _)| device.clone()) {
                self.acknowledged.remove(&device);
            }
        }
    }

    fn standing(&self, device: Option<&DeviceId>) -> Standing {
        Standing {
            first: self.entries.front().map(|(position, _)| Cursor::Before(*position)),
            last: self.entries.back().map(|(position, _)| Cursor::At(*position)),
            acknowledged: device.and_then(|device| self.acknowledged.get(device)).copied().map(Cursor::At),
            kept: self.entries.len() as u64,
        }
    }
}

impl InboxTable {
    fn inbox(&mut self, user: &UserId, max_users: usize) -> &mut UserInbox {
        if !self.inboxes.contains_key(user) {
            self.order.push_back(user.clone());
            while self.order.len() > max_users
                && let Some(first) = self.order.pop_front()
            {
                self.inboxes.remove(&first);
            }
        }
        self.inboxes.entry(user.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inboxes_is_bounded() {
        let mut table = InboxTable::default();
        for number in 0..10 {
            table.inbox(&format!("user-{number}").into(), 3);
        }
        table.inbox(&"user-8".into(), 3);
        assert_eq!((table.inboxes.len(), table.order.len()), (3, 3));
        assert!(table.inboxes.contains_key("user-9"));
    }
}
