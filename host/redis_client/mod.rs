//! The one shared way to Redis: two connections that mend themselves, one pipeline call.
//!
//! Promises: making a [`RedisClient`] never waits and fails only for a URL that cannot be
//! right. While Redis is away every call ends as [`Unavailable`] within its timeout, mostly at
//! once, and calls succeed again by themselves within a second of its return. Nothing is queued
//! here: what waits is a caller's own future, and the response timeout bounds it.
//!
//! Room scans have a connection of their own, since one long reply holds up everything behind
//! it. What a call asks for has to bear being asked twice: a command whose connection breaks is
//! sent again once.
//!
//! It does not know what the keys mean.

mod link;
mod metrics;
mod reply;
#[cfg(test)]
pub(crate) mod testing;
mod unavailable;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, IntoConnectionInfo, Pipeline, Value};

use link::Link;
pub use metrics::Metrics;
pub use reply::{Refusal, Texts, elements, refusal, text};
use unavailable::Trouble;
pub use unavailable::Unavailable;

/// How many commands travel in one pipeline; more of them take several. Very large pipelines
/// make both sides buffer for long, and all of a pipeline has to fit into the timeout.
const PIPELINE_LIMIT: usize = 2_000;

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
    /// The same for pipelines that read whole rooms, which take Redis longer.
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

/// The shared client. Cloning it is cheap, and the clones share their connections.
#[derive(Clone, Debug)]
pub struct RedisClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    small: Link,
    scan: Link,
    prefix: String,
    place: Arc<str>,
    metrics: Metrics,
}

impl RedisClient {
    /// Prepares the client; it connects when it is first used.
    ///
    /// # Errors
    /// When the URL cannot be right. That Redis is away is no error here.
    pub fn new(config: &Config, metrics: Metrics) -> Result<Self, BadUrl> {
        let server = server(&config.url)?;
        let place: Arc<str> = place(&config.url, &server).into();
        let link =
            |name, timeout| Link::new(name, server.clone(), place.clone(), config.connect_timeout, timeout);
        let shared = Shared {
            small: link("small commands", config.response_timeout)?,
            scan: link("room scans", config.scan_timeout)?,
            prefix: config.prefix.clone(),
            place: place.clone(),
            metrics,
        };
        Ok(Self(Arc::new(shared)))
    }

    /// What Halley's own keys begin with.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Where Redis is, without user and password: for messages and logs.
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// Runs commands on the connection for small ones; one reply per command, in order.
    /// `operation` names them in metrics and messages, and comes from a small set.
    ///
    /// A reply may be [`Value::ServerError`] where a command is at fault rather than the
    /// server; see [`refusal`].
    ///
    /// # Errors
    /// When Redis is away, not ready, or too slow: nothing is known of what it did.
    pub async fn run_small(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        self.run(&self.0.small, operation, commands).await
    }

    /// The same on the connection for room scans.
    ///
    /// # Errors
    /// As [`RedisClient::run_small`].
    pub async fn run_scan(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        self.run(&self.0.scan, operation, commands).await
    }

    /// Counts the connections made for room scans: when it differs from what it was, the
    /// server may be another one.
    pub fn scan_epoch(&self) -> u64 {
        self.0.scan.epoch()
    }

    /// What was wrong when Redis was last asked; `None` when it answered, or was not asked yet.
    pub fn last_problem(&self) -> Option<Unavailable> {
        self.0.small.last_problem().or_else(|| self.0.scan.last_problem())
    }

    /// Asks Redis for a sign of life.
    ///
    /// # Errors
    /// When none comes.
    pub async fn ping(&self) -> Result<(), Unavailable> {
        self.run_small("ping", vec![redis::cmd("PING")]).await.map(drop)
    }

    /// What a caller reports when the server refuses a command that has to work: the user's
    /// rights or the server's version are wrong, and things wait until a person mends that.
    pub fn denied(&self, operation: &'static str, problem: String) -> Unavailable {
        self.0.metrics.failed(operation);
        Unavailable::new(Trouble::Denied, self.0.place.clone(), operation, problem)
    }

    async fn run(
        &self,
        link: &Link,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        let started = Instant::now();
        let mut replies = Vec::with_capacity(commands.len());
        for pipeline in pipelines(commands) {
            match link.run(operation, &pipeline).await {
                Ok(part) => replies.extend(part),
                Err(unavailable) => {
                    self.0.metrics.failed(operation);
                    return Err(unavailable);
                }
            }
        }
        self.0.metrics.answered(operation, started.elapsed());
        Ok(replies)
    }
}

fn server(url: &str) -> Result<redis::ConnectionInfo, BadUrl> {
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

fn place(url: &str, server: &redis::ConnectionInfo) -> String {
    let scheme = url.split("://").next().unwrap_or_default();
    format!("{scheme}://{}/{}", server.addr(), server.redis_settings().db())
}

fn pipelines(commands: Vec<Cmd>) -> Vec<Pipeline> {
    let mut pipelines = Vec::with_capacity(commands.len().div_ceil(PIPELINE_LIMIT));
    let mut commands = commands.into_iter().peekable();
    while commands.peek().is_some() {
        let mut pipeline = Pipeline::new();
        for command in commands.by_ref().take(PIPELINE_LIMIT) {
            pipeline.add_command(command);
        }
        pipelines.push(pipeline);
    }
    pipelines
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use prometheus_client::registry::Registry;
    use redis::Value;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::testing::{RedisServer, client, eventually, run};
    use super::*;

    fn refused(url: &str) -> String {
        let config = Config { url: url.to_owned(), ..Config::default() };
        let metrics = Metrics::register(&mut Registry::default());
        RedisClient::new(&config, metrics).expect_err("a bad URL").to_string()
    }

    #[test]
    fn only_bad_urls_are_refused_and_passwords_stay_secret() {
        assert!(refused("redis+cluster://a:1,b:2").contains("redis+cluster:// is not supported yet"));
        assert!(refused("redis+sentinel://a:1/main").contains("redis+sentinel:// is not supported yet"));
        assert!(refused("memory://").contains("names no server"));
        assert!(refused("http://user:hunter2@host").contains("expected redis://"));
        for url in ["http://user:hunter2@host", "redis://user:hunter2@host:port", "hunter2"] {
            assert!(!refused(url).contains("hunter2"), "{}", refused(url));
        }
        let url = "rediss://user:hunter2@example.com:6380/3".to_owned();
        assert_eq!(client(&Config { url, ..Config::default() }).place(), "rediss://example.com:6380/3");
    }

    #[tokio::test]
    async fn user_password_and_database_are_used() {
        let server = RedisServer::start().await;
        server.run(&["ACL", "SETUSER", "halley", "on", ">p@ss", "~*", "+@all"]).await;
        let url = server.config().url.replace("redis://", "redis://halley:p%40ss@") + "/5";
        let client5 = client(&Config { url: url.clone(), ..server.config() });
        run(&client5, &["SET", "key", "five"]).await;
        assert_eq!(run(&client5, &["ACL", "WHOAMI"]).await, Value::BulkString(b"halley".to_vec()));
        assert_eq!(server.run(&["GET", "key"]).await, Value::Nil);

        let wrong = client(&Config { url: url.replace("p%40ss", "other"), ..server.config() });
        let unavailable = wrong.ping().await.expect_err("the wrong password");
        assert!(unavailable.to_string().contains("check user and password"), "{unavailable}");
    }

    #[tokio::test]
    async fn thousands_of_commands_are_answered_in_order() {
        let server = RedisServer::start().await;
        let count = PIPELINE_LIMIT * 2 + 7;
        let echo = |number: usize| redis::cmd("ECHO").arg(number).take();
        let replies =
            server.client().run_scan("test", (0..count).map(echo).collect()).await.expect("answers");
        let expected: Vec<_> = (0..count).map(|n| Value::BulkString(n.to_string().into_bytes())).collect();
        assert!(replies == expected, "{} replies", replies.len());
        assert_eq!(server.client().run_small("test", Vec::new()).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn a_refused_command_is_one_reply_among_others() {
        let server = RedisServer::start().await;
        server.run(&["SET", "text", "x"]).await;
        let commands =
            vec![redis::cmd("SMEMBERS").arg("text").take(), redis::cmd("NONSENSE"), redis::cmd("PING")];
        let replies = server.client().run_small("test", commands).await.expect("answers");
        assert_eq!(refusal(&replies[0]), Some(Refusal::WrongType));
        assert!(
            matches!(refusal(&replies[1]), Some(Refusal::Other(said)) if said.contains("unknown command"))
        );
        assert_eq!(refusal(&replies[2]), None);
    }

    #[tokio::test]
    async fn a_server_that_cannot_serve_now_is_unavailable() {
        let server = RedisServer::start().await;
        let client = server.client();
        run(&client, &["REPLICAOF", "127.0.0.1", "1"]).await;
        let write = || vec![redis::cmd("SET").arg("a").arg("b").take()];
        let readonly = client.run_small("test", write()).await.expect_err("a replica");
        assert!(readonly.to_string().contains("READONLY"), "{readonly}");
        run(&client, &["REPLICAOF", "NO", "ONE"]).await;
        client.run_small("test", write()).await.expect("a primary again");

        run(&client, &["CONFIG", "SET", "maxmemory", "1"]).await;
        let full = client.run_small("test", write()).await.expect_err("no memory");
        assert!(full.problem().contains("OOM"), "{full}");
    }

    #[tokio::test]
    async fn a_silent_server_costs_one_timeout_and_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("redis://{}", listener.local_addr().expect("bound"));
        let timeout = Duration::from_millis(100);
        let config = Config { url, connect_timeout: timeout, response_timeout: timeout, ..Config::default() };
        let start = Instant::now();
        client(&config).ping().await.expect_err("accepted, but never answered");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_hanging_server_is_used_again_when_it_answers() {
        let server = RedisServer::start().await;
        let config = Config { response_timeout: Duration::from_millis(100), ..server.config() };
        let client = client(&config);
        client.ping().await.expect("answers");
        server.run(&["CLIENT", "PAUSE", "700", "ALL"]).await;
        let slow = client.ping().await.expect_err("paused");
        assert!(slow.to_string().contains("raise the timeouts"), "{slow}");
        assert_eq!(client.last_problem(), Some(slow));
        eventually("answers again", async || client.ping().await.is_ok()).await;
        assert_eq!(client.last_problem(), None);
    }

    #[tokio::test]
    async fn a_closed_idle_connection_goes_unnoticed() {
        let server = RedisServer::start().await;
        let client = server.client();
        client.ping().await.expect("answers");
        server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        client.ping().await.expect("a new connection is made at once");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn while_redis_is_away_callers_fail_soon_and_recover_together() {
        let mut server = RedisServer::start().await;
        let client = Arc::new(server.client());
        client.ping().await.expect("answers");
        server.kill();
        let start = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..200 {
            let client = client.clone();
            callers.spawn(async move { client.ping().await });
        }
        while let Some(outcome) = callers.join_next().await {
            outcome.expect("no panic").expect_err("killed");
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        server.revive().await;
        let back = Instant::now();
        eventually("answers again", async || client.ping().await.is_ok()).await;
        assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    }
}
