//! The shared Redis client: reconnecting connections, and one call per pipeline.
//!
//! Redis is a single server, a primary monitored by sentinels, or a cluster; callers do not see the
//! difference.
//!
//! Promises: creating a [`RedisClient`] never blocks and fails only for an invalid URL. While Redis
//! is unreachable, every call ends as [`Unavailable`] within its timeout, usually immediately; calls
//! succeed again within a second of its recovery. Nothing is queued here: a caller waits in its own
//! future, and the response timeout bounds it.
//!
//! Room scans have their own connection, because one long reply delays everything behind it; so have
//! bulk writes for absent users and reads of their inboxes. Calls have to be idempotent: commands whose connection breaks are
//! sent again once.
//!
//! The module does not know what the keys mean.

use crate::time::millis;

mod bounded_stream;
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod config;
mod confirmations;
mod connection;
mod dial;
mod error;
mod events;
mod fan_out;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod lease;
mod metrics;
mod nodes;
mod permissions;
mod reply;
mod reply_meter;
mod resp_scanner;
mod scan;
mod sentinel;
#[cfg(test)]
mod sentinel_tests;
mod slots;
mod subscriber;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod topology;
mod tracking;
#[cfg(test)]
mod tracking_tests;
mod transport;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

pub use config::Config;
use confirmations::Confirmations;
use dial::ConnectionLimits;
use error::ServerFailureKind;
pub use error::Unavailable;
pub use events::{KeyEvents, SubscribeError, Subscribed};
use health::ConnectionHealth;
pub use lease::{Lease, LeaseTerm, TrackedValue, TrackedValues};
pub use metrics::Metrics;
use reply::PartialReplies;
pub use reply::{Refusal, TextReply, denial, elements, excess, is_too_large, refusal, text};
use reply_meter::ReplyLimits;
pub use scan::ScanCursor;
pub use topology::{BadUrl, UrlProblem};
use tracking::Tracker;
pub use tracking::{ForgetCause, KeyObserver};
use transport::Transport;

/// Maximum length of a string in replies about rooms: ids and addresses are far shorter.
const LONGEST_ID: usize = 4 * 1024;

/// The shared client. Clones are cheap and share their connections.
#[derive(Clone, Debug)]
pub struct RedisClient(Arc<ClientInner>);

#[derive(Debug)]
struct ClientInner {
    small: Transport,
    scan: Transport,
    bulk: Transport,
    reads: Transport,
    prefix: String,
    endpoint: Arc<str>,
    metrics: Metrics,
    /// Of the connection for room scans.
    tracker: Option<Arc<Tracker>>,
    confirmations: Confirmations,
}

/// How long a key lives, as `PX` and `PEXPIRE` expect it: whole milliseconds, at least one, at most a century.
/// Redis rejects durations that overflow when added to the current time.
pub fn lifetime_ms(lifetime: Duration) -> u64 {
    const CENTURY: u64 = 100 * 365 * 24 * 3600 * 1000;
    millis(lifetime).clamp(1, CENTURY)
}

impl RedisClient {
    /// Creates the client; it connects on first use.
    ///
    /// # Errors
    /// If the URL is invalid. An unreachable Redis is not an error.
    pub fn new(config: &Config, metrics: Metrics) -> Result<Self, BadUrl> {
        Self::create(config, metrics, None)
    }

    /// The same. In addition the server is asked to report changes of the keys with this prefix that
    /// [`RedisClient::run_tracked`] reads.
    ///
    /// # Errors
    /// As [`RedisClient::new`].
    pub fn with_tracking(config: &Config, metrics: Metrics, prefix: &'static str) -> Result<Self, BadUrl> {
        Self::create(config, metrics, Some(prefix))
    }

    fn create(config: &Config, metrics: Metrics, tracked: Option<&'static str>) -> Result<Self, BadUrl> {
        let (topology, endpoint) = topology::read(&config.url)?;
        let endpoint: Arc<str> = endpoint.into();
        let health_key = format!("{}ping", config.prefix);
        let longest = |response| config.connect_timeout + response;
        let small =
            ConnectionHealth::new("small commands", endpoint.clone(), longest(config.response_timeout));
        let scan = small.for_connection("room scans", longest(config.scan_timeout));
        let bulk = small.for_connection("bulk writes", longest(config.scan_timeout));
        let reads = small.for_connection("inbox reads", longest(config.scan_timeout));
        let replies = usize::try_from(config.max_reply.as_u64()).unwrap_or(usize::MAX);
        let tracker = tracked.map(|prefix| Tracker::new(prefix, endpoint.clone(), metrics.clone()));
        let transport = |health, response, value, tracker| {
            let reply_limits = ReplyLimits { value, replies, metrics: metrics.clone() };
            let timeouts = ConnectionLimits {
                connect: config.connect_timeout,
                response,
                reply_limits,
                tracker,
                subscriber: None,
            };
            Transport::new(health, endpoint.clone(), topology.clone(), timeouts, &health_key)
        };
        let shared = ClientInner {
            small: transport(small, config.response_timeout, replies, None)?,
            scan: transport(scan, config.scan_timeout, LONGEST_ID, tracker.clone())?,
            bulk: transport(bulk, config.scan_timeout, replies, None)?,
            reads: transport(reads, config.scan_timeout, replies, None)?,
            prefix: config.prefix.clone(),
            endpoint: endpoint.clone(),
            metrics: metrics.clone(),
            tracker,
            confirmations: Confirmations::default(),
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Prefix of Halley's own keys.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Whether commands of one call may run concurrently, on different nodes.
    pub fn is_cluster(&self) -> bool {
        self.0.bulk.is_cluster()
    }

    /// The address of Redis without credentials, for messages and logs.
    pub fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// Runs small commands; one reply per command, in order. `operation` names them in metrics and
    /// messages, and is one of few constants.
    ///
    /// A reply may be [`Value::ServerError`] if the command is at fault and not the server; see
    /// [`refusal`].
    ///
    /// # Errors
    /// If Redis is unreachable, not ready, or too slow: its effect is unknown.
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

    /// As [`RedisClient::run_scan`], with the term under which each reply was read.
    ///
    /// # Errors
    /// As [`RedisClient::run_small`].
    pub async fn run_tracked(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<TrackedValues, Unavailable> {
        let started = Instant::now();
        self.record_call(operation, started, self.0.scan.run_tracked(operation, commands).await)
    }

    /// Tells this observer of reported changes from now on.
    pub fn observe(&self, observer: Arc<dyn KeyObserver>) {
        if let Some(tracker) = &self.0.tracker {
            tracker.observe(observer);
        }
    }

    /// Renews leases for as long as it is polled. Without it, nothing counts for longer than a second.
    pub async fn keep_leases(&self) {
        if self.0.tracker.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(tracking::RENEWAL_INTERVAL).await;
            self.0.scan.renew_leases().await;
        }
    }

    /// Waits until all changes before this call have been reported, up to a second: what is not covered
    /// by then does not count (see [`LeaseTerm::covers`]). All that wait share one `PING` per server.
    /// Returns whether all servers have answered.
    pub async fn confirm_leases(&self) -> bool {
        let confirmed = self.0.confirmations.next(|| self.0.scan.confirm_leases());
        tokio::time::timeout(lease::LEASE, confirmed).await.unwrap_or(false)
    }

    /// Why the server does not report changes; `None` if it does, or was not asked to.
    pub fn tracking_problem(&self) -> Option<String> {
        self.0.tracker.as_ref()?.problem()
    }

    /// The same on the connection for reading inboxes, whose replies may be large.
    ///
    /// # Errors
    /// As [`RedisClient::run_small`].
    pub async fn run_reads(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        self.run(&self.0.reads, operation, commands).await
    }

    /// Runs bulk writes as far as possible: returns a reply for each completed command, and the
    /// problem of the others. Completed commands need not be repeated.
    pub async fn run_bulk(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> (Vec<Option<Value>>, Option<Unavailable>) {
        let started = Instant::now();
        let (replies, problem) = self.0.bulk.run_each(operation, commands).await;
        match &problem {
            None => self.0.metrics.record_latency(operation, started.elapsed()),
            Some(_) => self.0.metrics.record_failure(operation),
        }
        (replies, problem)
    }

    /// Changes with every connection for room scans: if it differs, the server may be another one.
    pub fn scan_epoch(&self) -> u64 {
        self.0.scan.epoch()
    }

    /// The current problem with Redis; `None` if it answers, or was not used yet.
    pub fn last_problem(&self) -> Option<Unavailable> {
        self.0.small.last_problem()
    }

    /// Checks that Redis answers on both connections; in a cluster, all nodes with slots.
    ///
    /// # Errors
    /// If a connection does not answer, or other calls were refused recently, as a replica refuses
    /// writes.
    pub async fn ping(&self) -> Result<(), Unavailable> {
        self.answers().await?;
        // Checked last: a problem of one connection counts until that connection has answered.
        self.last_problem().map_or(Ok(()), Err)
    }

    /// The same, ignoring refused calls.
    ///
    /// # Errors
    /// If a connection does not answer.
    pub async fn answers(&self) -> Result<(), Unavailable> {
        let ping = async |transport: &Transport| {
            let started = Instant::now();
            self.record_call("ping", started, transport.ping("ping").await)
        };
        let (small, scan) = tokio::join!(ping(&self.0.small), ping(&self.0.scan));
        small.and(scan)
    }

    /// The error if the server refuses a command that is required: the user's permissions or the
    /// server's version are wrong, and callers wait until an operator fixes it. [`RedisClient::ping`]
    /// reports it for the next two seconds as well.
    pub fn denied(&self, operation: &'static str, problem: String) -> Unavailable {
        self.0.metrics.record_failure(operation);
        let problem =
            Unavailable::new(ServerFailureKind::Denied, self.0.endpoint.clone(), operation, problem);
        self.0.small.record_denial(operation, problem.clone());
        problem
    }

    /// The error if the server refuses a command that the gateway can do without: it is not a problem of
    /// the connection, and only the caller reports it.
    pub fn refused(&self, operation: &'static str, problem: String) -> Unavailable {
        self.0.metrics.record_failure(operation);
        Unavailable::new(ServerFailureKind::Denied, self.0.endpoint.clone(), operation, problem)
    }

    async fn run(
        &self,
        transport: &Transport,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        let started = Instant::now();
        self.record_call(operation, started, transport.run(operation, commands).await)
    }

    fn record_call<T>(
        &self,
        operation: &'static str,
        started: Instant,
        outcome: Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        match &outcome {
            Ok(_) => self.0.metrics.record_latency(operation, started.elapsed()),
            Err(_) => self.0.metrics.record_failure(operation),
        }
        outcome
    }
}
