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

mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod link;
mod metrics;
mod reply;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unavailable;

use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, Pipeline, Value};

pub use config::{BadUrl, Config};
use link::Link;
pub use metrics::Metrics;
pub use reply::{Refusal, Texts, elements, refusal, text};
use unavailable::Trouble;
pub use unavailable::Unavailable;

/// How many commands travel in one pipeline; more of them take several. Very large pipelines
/// make both sides buffer for long, and all of a pipeline has to fit into the timeout.
const PIPELINE_LIMIT: usize = 2_000;

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
        let server = config::server(&config.url)?;
        let place: Arc<str> = config::place(&config.url, &server).into();
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

    /// Asks Redis for a sign of life, on both connections.
    ///
    /// # Errors
    /// When one stays without an answer.
    pub async fn ping(&self) -> Result<(), Unavailable> {
        let ping = || vec![redis::cmd("PING")];
        let (small, scan) = tokio::join!(self.run_small("ping", ping()), self.run_scan("ping", ping()));
        small.and(scan).map(drop)
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
