//! Finds the primary through sentinels.
//!
//! All sentinels are queried concurrently, so that an unresponsive one costs no time. The role of the
//! named server is verified: right after a failover some sentinels still name the old primary. The
//! `redis` crate's sentinel client queries them one by one, with a timeout each.
//!
//! It keeps no connections to the sentinels and does not subscribe to their events: a caller that
//! finds that a primary has been demoted queries again.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{ConnectionInfo, Value};

use super::ConnectionLimits;
use super::dial::BoundedConnection;
use super::error::{ServerFailure, ServerFailureKind};
use super::reply::{TextReply, elements, failure, refusal, text};
use super::topology::{self, MonitoredPrimary};

/// The sentinels of one primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    monitored: MonitoredPrimary,
    /// Timeout of querying all sentinels and connecting to the primary together.
    timeout: Duration,
}

impl Sentinels {
    pub(super) fn new(monitored: MonitoredPrimary, timeout: Duration) -> Self {
        Self { monitored, timeout }
    }

    /// Connects to the primary.
    pub(super) async fn connect(
        &self,
        timeouts: &ConnectionLimits,
    ) -> Result<BoundedConnection, ServerFailure> {
        let found = tokio::time::timeout(self.timeout, self.find(timeouts)).await;
        found.unwrap_or_else(|_| {
            Err(ServerFailure::new(ServerFailureKind::TimedOut, "no primary was found in time"))
        })
    }

    async fn find(&self, timeouts: &ConnectionLimits) -> Result<BoundedConnection, ServerFailure> {
        let sentinels = &self.monitored.sentinels;
        let mut answers: FuturesUnordered<_> = sentinels.iter().map(|s| self.ask(s, timeouts)).collect();
        let (mut tried, mut worst) = (HashSet::new(), None);
        while let Some(answer) = answers.next().await {
            let problem = match answer {
                Ok(address) if !tried.insert(address.clone()) => continue,
                Ok((host, port)) => match self.primary(&host, port, timeouts).await {
                    Ok(connection) => return Ok(connection),
                    Err(problem) => problem.of(format_args!("{host}:{port}")),
                },
                Err(problem) => problem,
            };
            worst = ServerFailure::more_specific(worst, problem);
        }
        Err(worst
            .unwrap_or_else(|| ServerFailure::new(ServerFailureKind::UnknownService, "no sentinel is named")))
    }

    /// The address of the primary according to one sentinel.
    async fn ask(
        &self,
        sentinel: &ConnectionInfo,
        timeouts: &ConnectionLimits,
    ) -> Result<(String, u16), ServerFailure> {
        let message = self.reply(sentinel, timeouts).await;
        let name = sentinel.addr();
        let reply = message.map_err(|problem| problem.of(format_args!("sentinel {name}")))?;
        if let Some(problem) = sentinel_problem(&reply) {
            return Err(problem.of(format_args!("sentinel {name}")));
        }
        let mut parts = elements(reply).into_iter().map(text);
        if let (Some(TextReply::Text(host)), Some(TextReply::Text(port))) = (parts.next(), parts.next())
            && let Ok(port) = port.parse()
        {
            return Ok((host, port));
        }
        let message = format!("sentinel {name} knows no `{}`", self.monitored.service);
        Err(ServerFailure::new(ServerFailureKind::UnknownService, message))
    }

    async fn reply(
        &self,
        sentinel: &ConnectionInfo,
        timeouts: &ConnectionLimits,
    ) -> Result<Value, ServerFailure> {
        let reply_limits = timeouts.reply_limits.clone();
        let (connect, response) = (self.timeout, self.timeout);
        let timeouts = ConnectionLimits { connect, response, reply_limits, tracker: None, subscriber: None };
        let connection = BoundedConnection::open(sentinel, &timeouts).await?;
        let question =
            redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.monitored.service).take();
        ask(connection, question).await
    }

    /// Connects to the presumed primary, and verifies its role.
    async fn primary(
        &self,
        host: &str,
        port: u16,
        timeouts: &ConnectionLimits,
    ) -> Result<BoundedConnection, ServerFailure> {
        let connection =
            BoundedConnection::open(&topology::at(&self.monitored.primary, host, port), timeouts).await?;
        let reply = ask(connection.clone(), redis::cmd("ROLE")).await?;
        as_primary(reply)?;
        Ok(connection)
    }
}

/// The reply to `ROLE` of a server that should be a primary.
pub(super) fn as_primary(reply: Value) -> Result<(), ServerFailure> {
    if let Some(problem) = failure(&reply) {
        return Err(problem);
    }
    // If the user may not query the role, a replica is detected on the first write.
    let may_not_ask = refusal(&reply).is_some();
    let role = elements(reply).into_iter().next().map(text).and_then(TextReply::filled);
    match role.as_deref() {
        Some("master") => Ok(()),
        _ if may_not_ask => Ok(()),
        role => {
            let message = format!("its role is `{}`, a failover may be under way", role.unwrap_or("?"));
            Err(ServerFailure::new(ServerFailureKind::NotReady, message))
        }
    }
}

/// One command; a refusal counts as a reply.
async fn ask(mut connection: BoundedConnection, command: redis::Cmd) -> Result<Value, ServerFailure> {
    let mut pipeline = redis::Pipeline::with_capacity(1);
    pipeline.add_command(command);
    let (mut replies, _) = connection.send(&pipeline).await?;
    Ok(replies.pop().unwrap_or_default())
}

/// The problem in a sentinel's reply, if any.
fn sentinel_problem(reply: &Value) -> Option<ServerFailure> {
    let Value::ServerError(error) = reply else { return None };
    let message = super::reply::message(error);
    let failure = match error.code() {
        "NOAUTH" | "WRONGPASS" => ServerFailureKind::NotLetIn,
        "NOPERM" => ServerFailureKind::Denied,
        _ => ServerFailureKind::UnknownService,
    };
    Some(ServerFailure::new(failure, message))
}
