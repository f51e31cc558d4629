//! Redis servers for tests: child processes on free ports, killed on drop.
//!
//! Unit tests always start their own servers: `HALLEY_TEST_REDIS` is for the stories only, because
//! nearly every test here stops, flushes or reconfigures its server. Clusters and sentinels are
//! shared with the stories, from `tests/support`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use redis::Value;

use super::{Config, Metrics, RedisClient};

#[allow(dead_code, unreachable_pub, reason = "shared with the stories, which use other parts of it")]
#[path = "../../tests/support/child_process.rs"]
mod child_process;
#[allow(dead_code, unreachable_pub, reason = "shared with the stories, which use other parts of it")]
#[path = "../../tests/support/redis_cluster.rs"]
pub(crate) mod redis_cluster;
#[allow(dead_code, unreachable_pub, reason = "shared with the stories, which use other parts of it")]
#[path = "../../tests/support/redis_nodes.rs"]
pub(crate) mod redis_nodes;
#[allow(dead_code, unreachable_pub, reason = "shared with the stories, which use other parts of it")]
#[path = "../../tests/support/redis_sentinel.rs"]
pub(crate) mod redis_sentinel;

pub(crate) use redis_cluster::RedisCluster;
use redis_nodes::free_port;
pub(crate) use redis_sentinel::RedisSentinel;

/// How long a server may take to answer on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `redis-server` without persistence.
pub(crate) struct RedisServer {
    port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with additional arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut server = Self { port: free_port(), arguments, child: None };
        server.restart().await;
        server
    }

    /// A port on which nothing listens yet; `restart` starts the server there.
    pub(crate) fn unreachable() -> Self {
        Self { port: free_port(), arguments: Vec::new(), child: None }
    }

    /// Restarts the server on the same port, empty.
    pub(crate) async fn restart(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(["--port", &port, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("tests need redis-server 7 in the PATH: apt-get install redis-server");
        self.child = Some(child);
        let client = self.client();
        eventually("redis-server answers", async || client.ping().await.is_ok()).await;
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the child can be killed");
            child.wait().expect("the child can be waited for");
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config { url: format!("redis://127.0.0.1:{}", self.port), ..Config::default() }
    }

    /// A new client of this server.
    pub(crate) fn client(&self) -> RedisClient {
        client(&self.config())
    }

    /// Runs one command given as words.
    pub(crate) async fn run(&self, words: &[&str]) -> Value {
        run(&self.client(), words).await
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client for this URL.
pub(crate) fn client_of(url: &str) -> RedisClient {
    client(&Config { url: url.to_owned(), ..Config::default() })
}

/// A client with unused metrics.
pub(crate) fn client(config: &Config) -> RedisClient {
    RedisClient::new(config, Metrics::register(&mut Registry::default())).expect("a good URL")
}

/// Runs one command given as words.
pub(crate) async fn run(client: &RedisClient, words: &[&str]) -> Value {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    client.run_small("test", vec![command]).await.expect("Redis answers").remove(0)
}

/// Polls until the condition holds; panics if it takes too long.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "timed out after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
