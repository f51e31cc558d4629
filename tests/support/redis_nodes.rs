//! One Redis process of several: a cluster node, a primary, a replica, a sentinel.
//!
//! Also included by the unit tests of `host/redis_client`: it depends only on [`ChildProcess`] and always
//! starts its own servers, regardless of `HALLEY_TEST_REDIS`.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisError, RedisResult};

use super::child_process::ChildProcess;

/// Timeout of any operation, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(40);
/// Timeout of one command.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a user counts as online without a renewal, in seconds.
const ONLINE_SECONDS: u64 = 300;

/// A server; it ends with this value.
pub struct RedisNode {
    port: u16,
    args: Vec<String>,
    /// Outlives the process, like a disk.
    data: tempfile::TempDir,
    process: Option<ChildProcess>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisNode {
    /// A server that is not running yet, without snapshots.
    pub fn new(args: &[&str]) -> Self {
        let port = free_port();
        let data = tempfile::Builder::new().prefix("halley-redis-").tempdir().expect("a temporary folder");
        let fixed = format!("--port {port} --bind 127.0.0.1 --appendonly no --daemonize no --save ");
        let mut args: Vec<String> =
            fixed.split(' ').map(str::to_owned).chain(args.iter().map(|&a| a.to_owned())).collect();
        args.extend(["--dir".to_owned(), data.path().display().to_string()]);
        Self { port, args, data, process: None, connection: Mutex::default() }
    }

    /// A sentinel with this configuration, which it rewrites.
    pub fn sentinel(config: &str) -> Self {
        let mut node = Self::new(&[]);
        let file = node.data.path().join("sentinel.conf");
        let dir = node.data.path().display();
        let text = format!("port {}\nbind 127.0.0.1\ndir {dir}\n{config}\n", node.port);
        std::fs::write(&file, text).expect("a temporary file can be written");
        node.args = vec![file.display().to_string(), "--sentinel".to_owned()];
        node
    }

    /// Starts or restarts it, and waits until it answers.
    pub async fn start(&mut self) {
        self.kill();
        let folder = tempfile::Builder::new().prefix("halley-redis-log-").tempdir();
        let process = ChildProcess::start("redis-server", &self.args, folder.expect("a temporary folder"));
        self.process = Some(process.expect("tests need redis-server 7 in the PATH"));
        soon(format_args!("redis-server at {}", self.address()), async || {
            let process = self.process.as_mut()?;
            if let Some(status) = process.ended() {
                panic!("redis-server ended with {status}: {}", process.log());
            }
            self.ask::<String>(&["PING"]).await.ok()
        })
        .await;
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
        *self.connection.lock() = None;
    }

    /// Whether it was started and not killed.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Freezes it: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.process.as_ref().expect("only a running server can be frozen").signal("STOP");
    }

    /// Resumes it after [`Self::freeze`].
    pub fn thaw(&self) {
        self.process.as_ref().expect("only a running server can be thawed").signal("CONT");
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs one command given as words.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        self.run(&command(words)).await
    }

    /// The same, if it has to succeed.
    pub async fn tell<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.ask(words).await.unwrap_or_else(|e| panic!("{words:?} at {}: {e}", self.address()))
    }

    /// Runs one command.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        self.retry_when_closed(async |mut connection| command.query_async(&mut connection).await).await
    }

    /// Runs a pipeline.
    pub async fn run_all<T: FromRedisValue>(&self, pipeline: &Pipeline) -> RedisResult<T> {
        self.retry_when_closed(async |mut connection| pipeline.query_async(&mut connection).await).await
    }

    /// A server that becomes a replica closes all connections: retries with a new one.
    async fn retry_when_closed<T>(
        &self,
        ask: impl AsyncFn(MultiplexedConnection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let was_there = self.connection.lock().is_some();
        let answer = ask(self.connection().await?).await;
        if !answer.as_ref().is_err_and(RedisError::is_io_error) {
            return answer;
        }
        *self.connection.lock() = None;
        if was_there { ask(self.connection().await?).await } else { answer }
    }

    /// Parses `name:value` lines, as in replies to `INFO` and `CLUSTER INFO`.
    pub async fn facts(&self, words: &[&str]) -> HashMap<String, String> {
        let text = self.ask::<String>(words).await.unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }

    async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = self.connection.lock().clone() {
            return Ok(connection);
        }
        let client = redis::Client::open(format!("redis://{}", self.address()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        *self.connection.lock() = Some(connection.clone());
        Ok(connection)
    }
}

/// A command given as words.
pub fn command(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command
}

/// The commands of a comet when a user's connection joins a room.
pub fn joining(room: &str, connection: &str, user: &str, comet: &str) -> [Cmd; 3] {
    let info = [("comet_id", comet), ("user_id", user), ("room_id", room)];
    [
        Cmd::sadd(format!("room:connections:{room}"), connection),
        Cmd::hset_multiple(format!("connection:info:{connection}"), &info),
        Cmd::set_ex(format!("user:online:{user}"), connection, ONLINE_SECONDS),
    ]
}

/// The entries of a stream, from the reply to `XRANGE`, as (field, value) pairs, oldest first.
pub type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

/// Waits until `condition` returns a value.
///
/// # Panics
/// After [`PATIENCE`].
pub async fn soon<T>(what: impl std::fmt::Display, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "timed out after {PATIENCE:?} waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A free port below the range that systems use for outgoing connections: a test that has not started
/// its server yet should not lose the port to one.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Concurrent test processes start far apart.
        let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + (number % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
