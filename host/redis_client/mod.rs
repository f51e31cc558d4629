//! The one shared client of Redis: connections that mend themselves, one call for a pipeline.
//!
//! Redis is one server, the primary that sentinels watch, or a cluster; who calls does not
//! notice which.
//!
//! Promises: making a [`RedisClient`] never waits and fails only for a URL that cannot be
//! right. While Redis is away every call ends as [`Unavailable`] within its timeout, mostly at
//! once, and calls succeed again by themselves within a second of its return. Nothing is queued
//! here: what waits is a caller's own future, and the response timeout bounds it.
//!
//! Room scans have a connection of their own, since one long reply holds up everything behind
//! it; so has what is written for users who are away, of which there can be very much. What a call asks for has to bear being asked twice: a command whose connection breaks is
//! sent again once.
//!
//! It does not know what the keys mean.

mod bounds;
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod config;
mod dial;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod link;
mod metrics;
mod nodes;
mod reply;
mod rights;
mod sentinel;
#[cfg(test)]
mod sentinel_tests;
mod slots;
mod split;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unavailable;
mod way;
mod wellbeing;

use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, Value};

use bounds::Bounds;
pub use config::Config;
use dial::Timeouts;
pub use metrics::Metrics;
use reply::Partial;
pub use reply::{Refusal, Texts, elements, excess, is_too_large, refusal, text};
pub use target::BadUrl;
use unavailable::Trouble;
pub use unavailable::Unavailable;
use way::Way;
use wellbeing::Wellbeing;

/// The longest string in a reply about rooms: ids and addresses, which are far shorter.
const LONGEST_ID: usize = 4 * 1024;

/// The shared client. Cloning it is cheap, and the clones share their connections.
#[derive(Clone, Debug)]
pub struct RedisClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    small: Way,
    scan: Way,
    bulk: Way,
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
        let (target, place) = target::read(&config.url)?;
        let place: Arc<str> = place.into();
        let sign_of_life = format!("{}ping", config.prefix);
        let longest = |response| config.connect_timeout + response;
        let small = Wellbeing::new("small commands", place.clone(), longest(config.response_timeout));
        let scan = small.of_another("room scans", longest(config.scan_timeout));
        let bulk = small.of_another("bulk writes", longest(config.scan_timeout));
        let replies = usize::try_from(config.max_reply.as_u64()).unwrap_or(usize::MAX);
        let way = |wellbeing, response, value| {
            let bounds = Bounds { value, replies, metrics: metrics.clone() };
            let timeouts = Timeouts { connect: config.connect_timeout, response, bounds };
            Way::new(wellbeing, place.clone(), target.clone(), timeouts, &sign_of_life)
        };
        let shared = Shared {
            small: way(small, config.response_timeout, replies)?,
            scan: way(scan, config.scan_timeout, LONGEST_ID)?,
            bulk: way(bulk, config.scan_timeout, replies)?,
            prefix: config.prefix.clone(),
            place: place.clone(),
            metrics: metrics.clone(),
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

    /// Runs commands on the connection for much that is written, as far as they go: a reply for
    /// each command that has one, and what kept the others from it. What has a reply need not be
    /// asked again.
    pub async fn run_bulk(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> (Vec<Option<Value>>, Option<Unavailable>) {
        let started = Instant::now();
        let (replies, problem) = self.0.bulk.run_each(operation, commands).await;
        match &problem {
            None => self.0.metrics.answered(operation, started.elapsed()),
            Some(_) => self.0.metrics.failed(operation),
        }
        (replies, problem)
    }

    /// Changes with every connection made for room scans: when it differs from what it was, the
    /// server may be another one.
    pub fn scan_epoch(&self) -> u64 {
        self.0.scan.epoch()
    }

    /// What is wrong with Redis at present; `None` when it answers, or was not asked yet.
    pub fn last_problem(&self) -> Option<Unavailable> {
        self.0.small.last_problem()
    }

    /// Asks Redis for a sign of life, on both connections; in a cluster everyone who serves
    /// slots is asked.
    ///
    /// # Errors
    /// When one stays without an answer, or others' calls were refused just now, as a replica
    /// refuses to write.
    pub async fn ping(&self) -> Result<(), Unavailable> {
        self.answers().await?;
        // Only now: what one connection has met counts until it has answered.
        self.last_problem().map_or(Ok(()), Err)
    }

    /// The same, whatever was refused to others.
    ///
    /// # Errors
    /// When one connection stays without an answer.
    pub async fn answers(&self) -> Result<(), Unavailable> {
        let ping = async |way: &Way| {
            let started = Instant::now();
            self.counted("ping", started, way.ping("ping").await)
        };
        let (small, scan) = tokio::join!(ping(&self.0.small), ping(&self.0.scan));
        small.and(scan)
    }

    /// What a caller reports when the server refuses a command that has to work: the user's
    /// rights or the server's version are wrong, and things wait until a person mends that. For
    /// the next two seconds [`RedisClient::ping`] reports it, too.
    pub fn denied(&self, operation: &'static str, problem: String) -> Unavailable {
        self.0.metrics.failed(operation);
        let problem = Unavailable::new(Trouble::Denied, self.0.place.clone(), operation, problem);
        self.0.small.was_denied(operation, problem.clone());
        problem
    }

    async fn run(
        &self,
        way: &Way,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        let started = Instant::now();
        self.counted(operation, started, way.run(operation, commands).await)
    }

    fn counted<T>(
        &self,
        operation: &'static str,
        started: Instant,
        outcome: Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        match &outcome {
            Ok(_) => self.0.metrics.answered(operation, started.elapsed()),
            Err(_) => self.0.metrics.failed(operation),
        }
        outcome
    }
}
