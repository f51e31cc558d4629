//! `[routing.cache]`: which routes are cached, and for how long.

use std::time::Duration;

use smart_default::SmartDefault;

use crate::mistake::{Mistake, mistake};
use crate::schema;

/// Whether a cached room is exact.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Exactness {
    /// Redis reports changes, and a cached room counts until one is reported.
    #[default]
    Push,
    /// In addition, each batch first waits until everything before it has been reported.
    Strict,
    /// Redis is not asked: a cached room counts for `max_age`.
    Off,
}

/// The limits of the route cache.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// The maximum number of cached rooms; 0 disables the cache.
    #[default(10_000)]
    pub rooms: usize,
    /// The maximum number of connections in all cached rooms. A larger room is not cached.
    #[default(2_000_000)]
    pub connections: usize,
    /// `push`: Redis reports which cached rooms change (client-side caching), so that a connection that
    /// joins is reached by the next message; needs Redis 6 and, in the ACL, `+client|tracking
    /// +client|caching`. `strict`: the same, and each batch first waits for one PING, so that this holds
    /// even for a join that was answered only just before. `off`: cached rooms count for `max_age`.
    #[default(Exactness::Push)]
    pub exact: Exactness,
    /// The maximum age of a cached room where its changes are not reported. For up to this long, a user
    /// who has entered a room may miss messages, and calls may go to connections that have left.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(1))]
    pub max_age: Duration,
    /// The maximum age of what is never reported, while changes of rooms are: `user:online`, and a
    /// connection's comet and user.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(10))]
    pub presence_max_age: Duration,
}

impl CacheConfig {
    /// Whether changes of rooms should be reported.
    pub fn is_exact(&self) -> bool {
        self.exact != Exactness::Off && self.rooms > 0
    }

    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        if self.is_exact() && self.presence_max_age.is_zero() {
            return vec![mistake!(
                "routing.cache.presence_max_age",
                "is zero, so that every message would read its room; set `routing.cache.rooms = 0` if that is meant"
            )];
        }
        Vec::new()
    }
}
