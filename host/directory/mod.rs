//! Where connections live: rooms and keys to connections, in batches.
//!
//! The comets write the directory; the gateway only reads it. [`RedisDirectory`] reads the real
//! one, [`MemoryDirectory`] stands in for it in the demo and in tests and behaves the same (one
//! suite of scenarios runs against both). [`RouteCache`] keeps what was made of a room for a
//! short time.
//!
//! Promises: one answer per look-up, in order; members that lead nowhere are counted and never
//! fail a look-up; a room that cannot be read for what it is fails no other one; while the directory cannot be read the answer is [`Unavailable`], never
//! "nobody is there". It does not know messages or policies.

mod batch;
#[cfg(test)]
mod behaviour;
mod cache;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod large_tests;
mod memory;
mod metrics;
mod pages;
mod reading;
mod redis;
mod rooms;

use std::sync::Arc;

use async_trait::async_trait;

use crate::membership::{Connection, Membership};
use crate::message::RoomId;
pub use crate::redis_client::Unavailable;
pub use cache::{CacheConfig, CacheMetrics, Claim, Maker, Permit, RouteCache, Waiter};
pub use memory::MemoryDirectory;
pub use metrics::Metrics;
pub use redis::RedisDirectory;

/// One question to the directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// Who is in this room?
    Room(RoomId),
    /// Where is the connection with this id, or else the connection of the user with this id?
    Key(Arc<str>),
}

/// The answer to a [`Lookup`] of the same kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The room's connections; none for a room that nobody is in.
    Room(Membership),
    /// The connection; `None` when the key leads to none.
    Key(Option<Connection>),
    /// The room cannot be read, though the directory answers; why. Asking again soon is of no use.
    Unreadable(Arc<str>),
}

/// The directory of connections.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Answers all look-ups together: one answer for each, in the same order.
    ///
    /// # Errors
    /// When the directory cannot be read now; asking again later may succeed.
    async fn lookup(&self, lookups: &[Lookup]) -> Result<Vec<Found>, Unavailable>;

    /// Asks for a sign of life, and says how rooms are read.
    ///
    /// # Errors
    /// When the directory cannot be read now.
    async fn check(&self) -> Result<String, Unavailable>;
}
