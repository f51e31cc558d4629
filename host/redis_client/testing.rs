//! A real Redis server for tests: a child process on a free port, killed when it is dropped.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use redis::Value;

use super::{Config, Metrics, RedisClient};

/// How long a server may take until it answers, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `redis-server` that keeps nothing on disk.
pub(crate) struct RedisServer {
    port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts one and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut server = Self { port: free_port(), arguments, child: None };
        server.revive().await;
        server
    }

    /// A port on which nothing listens yet; `revive` starts the server there.
    pub(crate) fn away() -> Self {
        Self { port: free_port(), arguments: Vec::new(), child: None }
    }

    /// Starts the server again, on the same port, empty.
    pub(crate) async fn revive(&mut self) {
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

    /// A client of its own for this server.
    pub(crate) fn client(&self) -> RedisClient {
        client(&self.config())
    }

    /// Runs one command given as words, for what a test puts into Redis.
    pub(crate) async fn run(&self, words: &[&str]) -> Value {
        run(&self.client(), words).await
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client whose metrics nobody sees.
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

/// Asks again and again until the condition holds; panics when it takes unreasonably long.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port where nothing listens, below the range from which systems take the ports of outgoing
/// connections: a test that has not started its server yet should not lose the port to one.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Test processes that run side by side begin far apart.
        let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + (number % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
