//! The directory in memory: for the demo, `memory://` and tests.
//!
//! It holds the same three kinds of entries as Redis (a room's members, a connection's comet and
//! user, a user's connection), and gives the same results.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Directory, DirectoryReply, ForgetCause, Lookup, RoomChanges, RoomReading, Unavailable};
use crate::membership::{Connection, Membership};
use crate::message::{CometAddr, ConnectionId, RoomId, UserId};
use crate::redis_client::Lease;

/// The directory in memory. Clones share the content.
#[derive(Clone, Debug)]
pub struct MemoryDirectory {
    tables: Arc<Mutex<DirectoryTables>>,
    check_online: bool,
    lease: Arc<Lease>,
    subscribers: Subscribers,
}

/// Who is notified of changes.
#[derive(Clone, Default, derive_more::Debug)]
#[debug("{} subscribers", _0.lock().len())]
struct Subscribers(Arc<Mutex<Vec<Arc<dyn RoomChanges>>>>);

#[derive(Debug, Default)]
struct DirectoryTables {
    /// `room:connections`. Ordered, so that the demo is deterministic.
    rooms: HashMap<RoomId, BTreeSet<ConnectionId>>,
    /// `connection:info`.
    connections: HashMap<ConnectionId, (CometAddr, Option<UserId>)>,
    /// `user:online`.
    online: HashMap<UserId, ConnectionId>,
    /// Simulates an unreachable directory.
    unreachable: bool,
}

impl MemoryDirectory {
    /// An empty directory. With `check_online`, connections whose user is not registered as online
    /// are reported as offline, as for Redis.
    pub fn new(check_online: bool) -> Self {
        let (tables, subscribers) = Default::default();
        Self { tables, check_online, lease: Lease::in_process(), subscribers }
    }

    fn room_changed(&self, room: &str) {
        let room = RoomId::from(room);
        self.subscribers.0.lock().iter().for_each(|subscriber| subscriber.room_changed(&room));
    }

    /// Details are those of any rooms.
    fn details_changed(&self) {
        self.lease.end_term();
        let flushed = ForgetCause::Flushed;
        self.subscribers.0.lock().iter().for_each(|subscriber| subscriber.terms_ended(flushed));
    }

    /// A user enters a room with a connection: writes all entries that a comet writes.
    pub fn enter(&self, room: &str, connection: &str, user: &str, comet: &str) {
        self.connect(connection, comet, Some(user));
        self.join(room, connection);
        self.online(user, connection);
    }

    /// Adds a connection to a room's members.
    pub fn join(&self, room: &str, connection: &str) {
        self.tables.lock().rooms.entry(room.into()).or_default().insert(connection.into());
        self.room_changed(room);
    }

    /// Removes a connection from a room's members.
    pub fn leave(&self, room: &str, connection: &str) {
        let mut tables = self.tables.lock();
        let Some(members) = tables.rooms.get_mut(room) else { return };
        members.remove(connection);
        if members.is_empty() {
            tables.rooms.remove(room);
        }
        drop(tables);
        self.room_changed(room);
    }

    /// Registers a connection with its comet and user.
    pub fn connect(&self, connection: &str, comet: &str, user: Option<&str>) {
        self.tables.lock().connections.insert(connection.into(), (comet.into(), user.map(UserId::from)));
        self.details_changed();
    }

    /// Registers a user as online with a connection.
    pub fn online(&self, user: &str, connection: &str) {
        self.tables.lock().online.insert(user.into(), connection.into());
        self.details_changed();
    }

    /// The connection with which a user is registered as online.
    pub fn connection_of(&self, user: &UserId) -> Option<ConnectionId> {
        self.tables.lock().online.get(user).cloned()
    }

    /// Registers a user as offline.
    pub fn offline(&self, user: &str) {
        self.tables.lock().online.remove(user);
        self.details_changed();
    }

    /// Simulates an unreachable directory: look-ups fail while it is set.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.tables.lock().unreachable = unreachable;
    }
}

#[async_trait]
impl Directory for MemoryDirectory {
    async fn lookup(&self, lookups: &[Lookup]) -> Result<Vec<DirectoryReply>, Unavailable> {
        let term = self.lease.term();
        let tables = self.tables.lock();
        if tables.unreachable {
            return Err(Unavailable::simulated_outage("lookup"));
        }
        let mut found: Vec<_> = lookups.iter().map(|lookup| tables.find(lookup, self.check_online)).collect();
        for reply in &mut found {
            if let DirectoryReply::Room(reading) = reply {
                reading.freshness.term = Some(term.clone());
            }
        }
        Ok(found)
    }

    async fn check(&self) -> Result<String, Unavailable> {
        match self.tables.lock().unreachable {
            true => Err(Unavailable::simulated_outage("check")),
            false => Ok("memory".to_owned()),
        }
    }

    fn subscribe(&self, changes: Arc<dyn RoomChanges>) {
        self.subscribers.0.lock().push(changes);
    }

    async fn confirm_changes(&self) -> bool {
        true
    }

    async fn keep_current(&self) {
        std::future::pending().await
    }

    fn forget(&self, _: &RoomId) {}

    fn warning(&self) -> Option<String> {
        None
    }
}

impl DirectoryTables {
    fn find(&self, lookup: &Lookup, check_online: bool) -> DirectoryReply {
        match lookup {
            Lookup::Room(room) => {
                let members = self.rooms.get(room);
                let ids = || members.into_iter().flatten();
                let connections: Vec<_> = ids().filter_map(|id| self.connection(id, check_online)).collect();
                let stale = ids().count() - connections.len();
                DirectoryReply::Room(RoomReading::untracked(Membership::new(connections, stale)))
            }
            Lookup::Key(key) => {
                let direct = self.connection(&ConnectionId::from(key.clone()), check_online);
                DirectoryReply::Key(direct.or_else(|| self.of_user(&UserId::from(key.clone()))))
            }
        }
    }

    /// `None` if it is stale.
    fn connection(&self, id: &ConnectionId, check_online: bool) -> Option<Connection> {
        let (comet, user) = self.connections.get(id)?;
        if id.is_empty() || comet.is_empty() {
            return None;
        }
        let user = user.clone().filter(|user| !user.is_empty());
        let is_online = user.as_ref().is_none_or(|user| self.online.contains_key(user));
        Some(Connection { id: id.clone(), user, comet: comet.clone(), online: is_online || !check_online })
    }

    /// `None` if the user is offline, or the connection is stale or belongs to another user.
    fn of_user(&self, user: &UserId) -> Option<Connection> {
        let found = self.connection(self.online.get(user)?, false)?;
        let own = found.user.as_ref().is_none_or(|owner| owner == user);
        own.then(|| Connection { user: Some(user.clone()), ..found })
    }
}
