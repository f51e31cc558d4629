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

use super::Timeouts;
use super::dial::Connection;
use super::reply::{Texts, elements, refusal, text, trouble};
use super::target::{self, Watched};
use super::unavailable::{Problem, Trouble};

/// The sentinels of one primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    watched: Watched,
    /// Timeout of querying all sentinels and connecting to the primary together.
    timeout: Duration,
}

impl Sentinels {
    pub(super) fn new(watched: Watched, timeout: Duration) -> Self {
        Self { watched, timeout }
    }

    /// Connects to the primary.
    pub(super) async fn connect(&self, timeouts: &Timeouts) -> Result<Connection, Problem> {
        let found = tokio::time::timeout(self.timeout, self.find(timeouts)).await;
        found.unwrap_or_else(|_| Err(Problem::new(Trouble::Slow, "no primary was found in time")))
    }

    async fn find(&self, timeouts: &Timeouts) -> Result<Connection, Problem> {
        let sentinels = &self.watched.sentinels;
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
            worst = Problem::worse(worst, problem);
        }
        Err(worst.unwrap_or_else(|| Problem::new(Trouble::NoService, "no sentinel is named")))
    }

    /// The address of the primary according to one sentinel.
    async fn ask(&self, sentinel: &ConnectionInfo, timeouts: &Timeouts) -> Result<(String, u16), Problem> {
        let said = self.reply(sentinel, timeouts).await;
        let name = sentinel.addr();
        let reply = said.map_err(|problem| problem.of(format_args!("sentinel {name}")))?;
        if let Some(problem) = sentinel_problem(&reply) {
            return Err(problem.of(format_args!("sentinel {name}")));
        }
        let mut parts = elements(reply).into_iter().map(text);
        if let (Some(Texts::Text(host)), Some(Texts::Text(port))) = (parts.next(), parts.next())
            && let Ok(port) = port.parse()
        {
            return Ok((host, port));
        }
        let said = format!("sentinel {name} knows no `{}`", self.watched.service);
        Err(Problem::new(Trouble::NoService, said))
    }

    async fn reply(&self, sentinel: &ConnectionInfo, timeouts: &Timeouts) -> Result<Value, Problem> {
        let bounds = timeouts.bounds.clone();
        let timeouts = Timeouts { connect: self.timeout, response: self.timeout, bounds };
        let connection = Connection::open(sentinel, &timeouts).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.watched.service);
        ask(connection, question).await
    }

    /// Connects to the presumed primary, and verifies its role.
    async fn primary(&self, host: &str, port: u16, timeouts: &Timeouts) -> Result<Connection, Problem> {
        let connection = Connection::open(&target::at(&self.watched.primary, host, port), timeouts).await?;
        let reply = ask(connection.clone(), redis::cmd("ROLE")).await?;
        if let Some(problem) = trouble(&reply) {
            return Err(problem);
        }
        // If the user may not query the role, a replica is detected on the first write.
        let may_not_ask = refusal(&reply).is_some();
        let role = elements(reply).into_iter().next().map(text).and_then(Texts::filled);
        match role.as_deref() {
            Some("master") => Ok(connection),
            _ if may_not_ask => Ok(connection),
            role => {
                let said = format!("its role is `{}`, a failover may be under way", role.unwrap_or("?"));
                Err(Problem::new(Trouble::NotReady, said))
            }
        }
    }
}

/// One command; a refusal counts as a reply.
async fn ask(mut connection: Connection, command: redis::Cmd) -> Result<Value, Problem> {
    let mut pipeline = redis::Pipeline::with_capacity(1);
    pipeline.add_command(command);
    Ok(connection.send(&pipeline).await?.pop().unwrap_or_default())
}

/// The problem in a sentinel's reply, if any.
fn sentinel_problem(reply: &Value) -> Option<Problem> {
    let Value::ServerError(error) = reply else { return None };
    let said = super::reply::said(error);
    let trouble = match error.code() {
        "NOAUTH" | "WRONGPASS" => Trouble::NotLetIn,
        "NOPERM" => Trouble::Denied,
        _ => Trouble::NoService,
    };
    Some(Problem::new(trouble, said))
}
