//! The `[redis]` section and its URL.

use std::time::Duration;

use bytesize::ByteSize;
use smart_default::SmartDefault;

use super::topology;

use crate::mistake::{Mistake, mistake};
use crate::schema;

/// The `[redis]` section.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Redis is; one of
    ///
    /// - `redis://[user:password@]host[:port][/database]`: one server. Port 6379, database 0.
    /// - `redis+sentinel://[user:password@]sentinel[:port][,...]/service[/database]`: the primary
    ///   that these sentinels monitor under the name `service`. Port 26379. User and password are the
    ///   primary's; those of the sentinels, if any, follow as
    ///   `?sentinel_username=...&sentinel_password=...`.
    /// - `redis+cluster://[user:password@]node[:port][,...]`: the cluster of these nodes. One
    ///   reachable node is enough to find the others. Port 6379.
    /// - `rediss://`, `rediss+sentinel://`, `rediss+cluster://`: the same with TLS, also to the
    ///   sentinels.
    /// - `memory://`: no Redis; directory, guards and inboxes are in memory.
    ///
    /// Special characters in names and passwords are percent-encoded. In a cluster the user needs
    /// `+cluster|slots`; with sentinels `+role` is recommended. Exact routes (`[routing.cache] exact`) need
    /// `+client|tracking +client|caching`.
    #[default("redis://127.0.0.1:6379")]
    pub url: String,
    /// Prefix of Halley's own keys: guards, inboxes, plugin state. The keys that comets write have no
    /// prefix.
    #[default("halley:")]
    pub prefix: String,
    /// Timeout of connecting, including TLS and login.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(2))]
    pub connect_timeout: Duration,
    /// Timeout of a pipeline of small commands; after it the connection is dropped.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(2))]
    pub response_timeout: Duration,
    /// The same for pipelines that read whole rooms. It has to be sufficient for all rooms of a
    /// batch: Redis reads roughly half a million members per second.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(5))]
    pub scan_timeout: Duration,
    /// Approximate maximum memory of the replies to one pipeline. Larger requests are split; a single
    /// reply above it counts as unreadable.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(64))]
    pub max_reply: ByteSize,
}

impl Config {
    /// Whether everything is kept in memory instead of in Redis.
    pub fn is_memory(&self) -> bool {
        self.url.starts_with("memory:")
    }

    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        if self.is_memory() {
            return Vec::new();
        }
        let mut problems =
            Vec::from_iter(topology::read(&self.url).err().map(|error| Mistake::about("redis.url", error)));
        if self.max_reply < SMALLEST_REPLY {
            problems.push(mistake!("redis.max_reply", "must be at least 1MiB"));
        }
        problems
    }
}

/// Ordinary replies would not fit into less.
const SMALLEST_REPLY: ByteSize = ByteSize::mib(1);
