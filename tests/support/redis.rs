//! A Redis for one test, and the directory keys as comets write them.
//!
//! Each test has its own `redis-server` on a free port, which can be stopped and restarted.
//! `HALLEY_TEST_REDIS` (a URL) replaces it: its current database is flushed at the start, and stories
//! that stop Redis cannot be proven with it.

use std::process::Command;
use std::time::Duration;

use redis::aio::MultiplexedConnection;

use super::child_process::ChildProcess;
use super::{PATIENCE, eventually, folder, free_port, print_uncaptured, repository};

/// How long a user counts as online without a renewal, in seconds.
const ONLINE_SECONDS: u64 = 300;

/// A Redis server, running or stopped.
pub struct Redis {
    url: String,
    /// `None` for an external server.
    port: Option<u16>,
    /// Whether it writes everything to disk before it answers.
    keeps: bool,
    server: Option<ChildProcess>,
    connection: Option<MultiplexedConnection>,
}

impl Redis {
    /// Starts an empty server.
    pub async fn start() -> Self {
        let mut redis = Self::not_started();
        redis.restart().await;
        if redis.port.is_none() {
            redis.run::<()>(redis::cmd("FLUSHDB").to_owned()).await;
        }
        redis
    }

    /// A server that [`Self::restart`] will start: its URL is known, and nothing listens there.
    pub fn not_started() -> Self {
        if let Ok(url) = std::env::var("HALLEY_TEST_REDIS") {
            return Self { url, port: None, keeps: false, server: None, connection: None };
        }
        need_redis_server();
        let port = free_port();
        let url = format!("redis://127.0.0.1:{port}");
        Self { url, port: Some(port), keeps: false, server: None, connection: None }
    }

    /// Starts a server that keeps its data across restarts.
    pub async fn start_keeping() -> Self {
        let mut redis = Self::not_started();
        redis.keeps = true;
        redis.restart().await;
        redis
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it can be stopped; prints a warning if not.
    pub fn can_stop(&self, story: &str) -> bool {
        if self.port.is_none() {
            print_uncaptured(format_args!(
                "NOT PROVEN: `{story}` has to stop Redis, and HALLEY_TEST_REDIS names one that is not ours"
            ));
        }
        self.port.is_some()
    }

    /// Kills the server; its data is lost, unless it is persistent.
    pub fn stop(&mut self) {
        assert!(self.port.is_some(), "HALLEY_TEST_REDIS is not ours to stop; ask can_stop() first");
        self.connection = None;
        match &mut self.server {
            Some(server) if self.keeps => server.kill(),
            server => *server = None,
        }
    }

    /// Starts or restarts the server on the same port: empty, or with its persistent data.
    pub async fn restart(&mut self) {
        match (self.port, &mut self.server) {
            (Some(_), Some(server)) if self.keeps => server.restart().expect("redis-server starts again"),
            (Some(port), server) => {
                *server = None;
                *server = Some(start_server(port, self.keeps));
            }
            (None, _) => {}
        }
        let client = redis::Client::open(self.url.as_str()).expect("a Redis URL");
        let server = &mut self.server;
        let connection = eventually(format!("Redis at {}", self.url), PATIENCE, async || {
            if let Some(status) = server.as_mut().and_then(ChildProcess::ended) {
                panic!(
                    "redis-server ended with {status}: {}",
                    server.as_ref().map(ChildProcess::log).unwrap_or_default()
                );
            }
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            // While it loads its data, it accepts connections and refuses commands.
            redis::cmd("PING").query_async::<()>(&mut connection).await.ok()?;
            Some(connection)
        });
        self.connection = Some(connection.await);
    }

    /// Freezes the server: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.server.as_ref().expect("only a running server of our own can be frozen").signal("STOP");
    }

    /// Resumes a frozen server.
    pub fn thaw(&self) {
        self.server.as_ref().expect("only a running server of our own can be thawed").signal("CONT");
    }

    /// A comet accepts a connection of a user to a room; the user is online.
    pub async fn join(&self, room: &str, connection: &str, user: &str, comet: impl std::fmt::Display) {
        self.join_many(room, &[(connection.to_owned(), user.to_owned(), comet.to_string())]).await;
    }

    /// The same for many connections (id, user, comet), in few round trips.
    pub async fn join_many(&self, room: &str, connections: &[(String, String, String)]) {
        for part in connections.chunks(1000) {
            let mut pipe = redis::pipe();
            for (connection, user, comet) in part {
                pipe.sadd(format!("room:connections:{room}"), connection).ignore();
                let info = [("comet_id", comet.as_str()), ("user_id", user), ("room_id", room)];
                pipe.hset_multiple(format!("connection:info:{connection}"), &info).ignore();
                pipe.set_ex(format!("user:online:{user}"), connection, ONLINE_SECONDS).ignore();
            }
            pipe.query_async::<()>(&mut self.connection()).await.expect("Redis answers");
        }
    }

    /// A connection leaves a room and is closed; the user stays online until [`Self::offline`].
    pub async fn leave(&self, room: &str, connection: &str) {
        self.run::<()>(redis::Cmd::srem(format!("room:connections:{room}"), connection)).await;
        self.forget(connection).await;
    }

    /// Removes a connection's details while the room still lists it: a stale member.
    pub async fn forget(&self, connection: &str) {
        self.run::<()>(redis::Cmd::del(format!("connection:info:{connection}"))).await;
    }

    /// A user is online through this connection.
    pub async fn online(&self, user: &str, connection: &str) {
        self.run::<()>(redis::Cmd::set_ex(format!("user:online:{user}"), connection, ONLINE_SECONDS)).await;
    }

    /// A user is offline.
    pub async fn offline(&self, user: &str) {
        self.run::<()>(redis::Cmd::del(format!("user:online:{user}"))).await;
    }

    /// The entries of a stream as (field, value) pairs, oldest first; the inbox is one.
    pub async fn stream(&self, key: &str) -> Vec<Vec<(String, Vec<u8>)>> {
        type Entry = (String, Vec<(String, Vec<u8>)>);
        let entries: Vec<Entry> = {
            let mut command = redis::cmd("XRANGE");
            command.arg(key).arg("-").arg("+");
            self.run(command).await
        };
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// All keys that match a pattern, sorted.
    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.run(redis::Cmd::keys(pattern)).await;
        keys.sort();
        keys
    }

    /// Runs any command.
    ///
    /// # Panics
    /// If Redis does not answer successfully within [`PATIENCE`].
    pub async fn run<T: redis::FromRedisValue>(&self, command: redis::Cmd) -> T {
        let mut connection = self.connection();
        let answer = tokio::time::timeout(PATIENCE, command.query_async(&mut connection)).await;
        answer.expect("Redis answers in time").unwrap_or_else(|e| panic!("{}: {e}", self.url))
    }

    fn connection(&self) -> MultiplexedConnection {
        let mut connection = self.connection.clone().expect("Redis is running; call restart() first");
        connection.set_response_timeout(Duration::from_secs(20));
        connection
    }
}

fn start_server(port: u16, keeps: bool) -> ChildProcess {
    let folder = folder("redis");
    let data = folder.path().display().to_string();
    let keep = if keeps { "yes --appendfsync always" } else { "no" };
    let args =
        format!("--port {port} --bind 127.0.0.1 --save  --appendonly {keep} --daemonize no --dir {data}");
    // `--save ""` takes an empty argument: no snapshots.
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    ChildProcess::start("redis-server", &args, folder).expect("redis-server starts")
}

fn need_redis_server() {
    let script = repository("tests/support/need.sh");
    let status = Command::new("sh").arg(script).args(["redis-server", "redis-server"]).status();
    assert!(
        status.is_ok_and(|s| s.success()),
        "the stories need redis-server on the PATH, or HALLEY_TEST_REDIS=redis://host:port"
    );
}
