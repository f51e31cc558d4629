//! The directory of connections: maps rooms and keys to connections, in batches.
//!
//! Comets write the directory; the gateway only reads it ([`Registrations`] is for `halley bench`).
//! [`RedisDirectory`] reads the real one. [`MemoryDirectory`] replaces it in the demo and in tests and
//! behaves the same (both pass one contract test suite). [`RouteCache`] caches the routes of rooms until a
//! change is reported.
//!
//! Promises: one result per look-up, in order. Stale members are counted and never fail a look-up. A
//! room that cannot be read does not fail other look-ups. While the directory cannot be read, the
//! result is [`Unavailable`], never an empty room. The module does not know messages or policies.

mod batch;
mod cache;
#[cfg(test)]
mod contract_tests;
mod freshness;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod known_rooms;
#[cfg(test)]
mod large_room_tests;
mod memory;
mod metrics;
mod newcomers;
mod pages;
mod redis;
mod registrations;
mod replies;
mod room_hints;
mod room_query;
#[cfg(test)]
mod tracking_tests;

use std::sync::Arc;

use async_trait::async_trait;

use crate::membership::Connection;
use crate::message::RoomId;
pub use crate::redis_client::Unavailable;
pub use cache::{
    CacheConfig, CacheLookup, CacheMetrics, CachedAge, Exactness, FillPermit, FillWaiter, LookupLeader, Need,
    RouteCache,
};
pub use freshness::{ForgetCause, Freshness, LeaseTerm, RoomChanges, RoomReading};
pub use memory::MemoryDirectory;
pub use metrics::Metrics;
pub use redis::RedisDirectory;
pub use registrations::{Registration, Registrations};
pub use room_query::ROOM_KEYS;

/// A query to the directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// The connections in a room.
    Room(RoomId),
    /// The connection with this id, or else the connection of the user with this id.
    Key(Arc<str>),
}

/// The result of a [`Lookup`] of the same kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryReply {
    /// The room's connections; empty for a room without members.
    Room(RoomReading),
    /// The connection; `None` if the key has none.
    Key(Option<Connection>),
    /// The room cannot be read although the directory answers, for this reason. Retrying soon does
    /// not help.
    Unreadable(Arc<str>),
}

impl DirectoryReply {
    /// The connection of a key, if it has one.
    pub(crate) fn connection(self) -> Option<Connection> {
        if let Self::Key(connection) = self { connection } else { None }
    }
}

/// The directory of connections.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Answers all look-ups together: one result for each, in the same order.
    ///
    /// # Errors
    /// If the directory cannot be read now; a retry may succeed.
    async fn lookup(&self, lookups: &[Lookup]) -> Result<Vec<DirectoryReply>, Unavailable>;

    /// Checks that the directory answers, and describes how rooms are read.
    ///
    /// # Errors
    /// If the directory cannot be read now.
    async fn check(&self) -> Result<String, Unavailable>;

    /// Reports changes of rooms that were looked up from now on, if the directory can: see
    /// [`Freshness::term`].
    fn subscribe(&self, changes: Arc<dyn RoomChanges>);

    /// Waits for a bounded time until every change before this call has been reported, and returns whether
    /// it has. If not, what was read before may be outdated; terms say which of it is not.
    async fn confirm_changes(&self) -> bool;

    /// Keeps what was read current for as long as it is polled.
    async fn keep_current(&self);

    /// What is known of a room's connections is wrong: the next look-up reads all of it.
    fn forget(&self, room: &RoomId);

    /// Why changes are not reported, although they should be.
    fn warning(&self) -> Option<String>;
}
