//! The `[redis]` section, and what its URL means.

use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo};

/// The `[redis]` section.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Redis is: `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS,
    /// or `memory://` for a directory, guards and inboxes inside the process.
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            prefix: "halley:".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(2),
            scan_timeout: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// Whether everything is kept inside of the process instead of in Redis.
    pub fn is_memory(&self) -> bool {
        self.url.starts_with("memory:")
    }

    /// What is wrong with the values, one sentence for each mistake.
    pub fn problems(&self) -> Vec<String> {
        if self.is_memory() {
            return Vec::new();
        }
        server(&self.url).err().map(|error| error.to_string()).into_iter().collect()
    }
}

/// A `[redis] url` that cannot be right. Its text does not repeat the URL, which may hold a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Known to other software, but not yet to this.
    #[error("[redis] url: {0}:// is not supported yet; name one server with redis:// or rediss://")]
    NotYet(String),
    /// `memory://` is no server: whoever builds the parts takes the in-memory ones instead.
    #[error("[redis] url: memory:// names no server to connect to; use redis:// or rediss://")]
    Memory,
    /// Everything else.
    #[error(
        "[redis] url cannot be read ({0}); expected redis://[user:password@]host[:port][/database], \
         with special characters of the password percent-encoded"
    )]
    Malformed(String),
}

/// The server that a URL names.
pub(super) fn server(url: &str) -> Result<ConnectionInfo, BadUrl> {
    let scheme = url.split("://").next().unwrap_or_default();
    match scheme {
        "memory" => return Err(BadUrl::Memory),
        "redis+cluster" | "rediss+cluster" | "redis+sentinel" | "rediss+sentinel" => {
            return Err(BadUrl::NotYet(scheme.to_owned()));
        }
        _ => {}
    }
    let info = url.into_connection_info().map_err(|e| BadUrl::Malformed(e.to_string()))?;
    // Without it a pipeline larger than one packet waits for an acknowledgement.
    let settings = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_tcp_settings(settings))
}

/// A URL without user and password.
pub(super) fn place(url: &str, server: &ConnectionInfo) -> String {
    let scheme = url.split("://").next().unwrap_or_default();
    format!("{scheme}://{}/{}", server.addr(), server.redis_settings().db())
}
