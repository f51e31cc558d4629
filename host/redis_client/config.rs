//! The `[redis]` section, and what its URL means.

use std::time::Duration;

use bytesize::ByteSize;

use super::target;

/// The `[redis]` section.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Redis is; one of
    ///
    /// - `redis://[user:password@]host[:port][/database]`: one server. Port 6379, database 0.
    /// - `redis+sentinel://[user:password@]sentinel[:port][,...]/service[/database]`: the primary
    ///   that these sentinels watch under the name `service`. Port 26379. User and password are
    ///   the primary's; the sentinels' own follow as
    ///   `?sentinel_username=...&sentinel_password=...`, where they have some.
    /// - `redis+cluster://[user:password@]node[:port][,...]`: the cluster that these nodes belong
    ///   to. One reachable node suffices to find the others. Port 6379.
    /// - `rediss://`, `rediss+sentinel://`, `rediss+cluster://`: the same with TLS, to the
    ///   sentinels too.
    /// - `memory://`: no Redis; directory, guards and inboxes are inside the process.
    ///
    /// Special characters of names and passwords are percent-encoded. In a cluster the user
    /// needs `+cluster|slots`, behind sentinels `+role` is of use.
    pub url: String,
    /// What Halley's own keys begin with: guards, inboxes, plugin state. The keys that comets
    /// write have no prefix.
    pub prefix: String,
    /// How long making a connection may take, TLS and login included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long a pipeline of small commands may take before its connection is given up.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// The same for pipelines that read whole rooms. It has to suffice for all rooms of a batch
    /// together: Redis reads roughly half a million members a second.
    #[serde(with = "humantime_serde")]
    pub scan_timeout: Duration,
    /// The most that Redis' replies to one pipeline may take in memory, roughly. What asks for more
    /// is asked for in smaller parts; one reply that is larger by itself counts as unreadable.
    pub max_reply: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            prefix: "halley:".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(2),
            scan_timeout: Duration::from_secs(5),
            max_reply: ByteSize::mib(64),
        }
    }
}

impl Config {
    /// Whether everything is kept inside of the process instead of in Redis.
    pub fn is_memory(&self) -> bool {
        self.url.starts_with("memory:")
    }

    /// What is wrong with the values, one sentence for each mistake.
    pub fn validate(&self) -> Vec<String> {
        if self.is_memory() {
            return Vec::new();
        }
        let mut problems: Vec<_> = target::read(&self.url).err().iter().map(ToString::to_string).collect();
        if self.max_reply < SMALLEST_REPLY {
            problems.push("`redis.max_reply` must be at least 1MiB".to_owned());
        }
        problems
    }
}

/// Below this, ordinary replies would not fit.
const SMALLEST_REPLY: ByteSize = ByteSize::mib(1);
