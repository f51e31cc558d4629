//! Inboxes in memory: for the demo, `memory://` and tests.

use std::collections::{HashMap, HashSet, VecDeque};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{
    Config, Inbox, InboxEntry, Metrics, PartialStore, Stored, StoredMessage, Unavailable, now_ms, returned,
};
use crate::message::{ConnectionId, UserId};

/// Maximum number of inboxes; above it the oldest inbox is evicted.
const MAX_USERS: usize = 100_000;

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
    inboxes: HashMap<UserId, VecDeque<StoredMessage>>,
    /// The users in the order in which their inboxes were created.
    order: VecDeque<UserId>,
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
        let now = now_ms();
        let mut table = self.table.lock();
        for entry in entries {
            let kept = StoredMessage::new(entry, now, self.config.retention(entry.retention));
            let inbox = table.inbox(&entry.user, MAX_USERS);
            inbox.push_back(kept);
            while inbox.len() > self.config.max_per_user {
                inbox.pop_front();
            }
        }
        drop(table);
        self.metrics.stored.inc_by(entries.len() as u64);
        let returned = returned(entries, |_, entry| (self.online)(&entry.user));
        self.metrics.returned.inc_by(returned.len() as u64);
        Ok(Stored { not_stored: Vec::new(), returned })
    }

    async fn read(&self, user: &UserId, limit: usize) -> Result<Vec<StoredMessage>, Unavailable> {
        let now = now_ms();
        let table = self.table.lock();
        let mut seen = HashSet::new();
        let kept = table.inboxes.get(user).into_iter().flatten();
        let valid = kept.filter(|kept| kept.expires_ms > now && seen.insert(kept.id.clone()));
        Ok(valid.take(limit).cloned().collect())
    }
}

impl InboxTable {
    fn inbox(&mut self, user: &UserId, max_users: usize) -> &mut VecDeque<StoredMessage> {
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
