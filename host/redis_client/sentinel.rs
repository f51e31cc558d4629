//! Finding the primary by way of sentinels.
//!
//! All sentinels are asked together, so that one that is silently gone costs no time, and who
//! they name is asked for its role: right after a failover some still name the old primary. The
//! `redis` crate's own sentinel client asks them one by one, each for as long as it takes.
//!
//! It keeps no connection to the sentinels and does not listen to their announcements: who
//! finds that a primary is none any more asks again.

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
    /// For asking all, and for connecting to the primary, together.
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

    /// Where the primary is, in the eyes of one sentinel.
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

    /// Connects to who should be the primary, and sees whether it is.
    async fn primary(&self, host: &str, port: u16, timeouts: &Timeouts) -> Result<Connection, Problem> {
        let connection = Connection::open(&target::at(&self.watched.primary, host, port), timeouts).await?;
        let reply = ask(connection.clone(), redis::cmd("ROLE")).await?;
        if let Some(problem) = trouble(&reply) {
            return Err(problem);
        }
        // A user who may not ask finds out when writing.
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

/// One command; a refusal is a reply.
async fn ask(mut connection: Connection, command: redis::Cmd) -> Result<Value, Problem> {
    let mut pipeline = redis::Pipeline::with_capacity(1);
    pipeline.add_command(command);
    Ok(connection.send(&pipeline).await?.pop().unwrap_or_default())
}

/// What is wrong with a sentinel, from its reply.
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
