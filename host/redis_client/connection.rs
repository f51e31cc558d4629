//! A connection that reconnects on demand.
//!
//! The `redis` crate's connection manager blocks callers while it retries, and keeps a connection
//! whose peer has silently disappeared. Here, a caller without a connection opens one, others wait
//! for the same attempt, and after a failure calls fail immediately until the back-off has elapsed. A
//! connection that broke, timed out or leads to a replica is dropped; the next call opens a new one,
//! resolves the host name again, and queries the sentinels again, if any.
//!
//! It does not know its purpose, and logs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex as StdMutex;
use redis::{Cmd, ConnectionInfo, Pipeline, Value};
use tokio::sync::Mutex;

use super::dial::BoundedConnection;
use super::error::{ServerFailure, ServerFailureKind};
use super::lease::LeaseTerm;
use super::sentinel::{self, Sentinels};
use super::tracking::{ConnectionTracking, ForgetCause, Retry};
use super::{BadUrl, ConnectionLimits, PartialReplies, TrackedValues, reply};
use crate::backoff::Backoff;

/// Back-off after a failed attempt: first and longest. The longest bounds the time until a recovered
/// Redis is used.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(25), Duration::from_millis(500));

/// Maximum number of commands per pipeline. Very large pipelines buffer for long on both sides, and a
/// whole pipeline has to fit into the timeout.
pub(super) const PIPELINE_LIMIT: usize = 2_000;
/// Maximum bytes per pipeline, unless a single command exceeds it: ten thousand user names, or a few
/// large bodies.
const PIPELINE_BYTES: usize = 512 * 1024;
/// How often a pipeline with oversized replies is split: enough to find ten culprits among all of its
/// commands.
const MAX_SPLITS: u32 = 200;

#[derive(Debug)]
pub(super) struct ManagedConnection {
    destination: Destination,
    timeouts: ConnectionLimits,
    /// Held while connecting, so that one attempt serves all waiting callers.
    state: Mutex<ConnectionState>,
    /// Number of connections opened so far.
    epoch: AtomicU64,
    /// How changes are reported over the present connection.
    tracking: StdMutex<Option<Arc<ConnectionTracking>>>,
}

/// The target of new connections.
#[derive(Debug)]
enum Destination {
    Server(Box<ConnectionInfo>),
    Primary(Box<Sentinels>),
}

#[derive(Default, derive_more::Debug)]
#[debug("connected: {}", connection.is_some())]
struct ConnectionState {
    connection: Option<NumberedConnection>,
    failure: Option<ConnectFailure>,
}

/// A connection and its epoch, so that a late error of an earlier connection is ignored.
#[derive(Clone)]
struct NumberedConnection {
    epoch: u64,
    connection: BoundedConnection,
}

struct ConnectFailure {
    problem: ServerFailure,
    until: Instant,
    backoff: Backoff,
}

/// Replies, and the epoch of the connection that delivered them.
pub(super) struct PipelineReply {
    pub(super) replies: Vec<Value>,
    pub(super) epoch: u64,
    /// The term under which tracked keys were read.
    pub(super) term: Option<LeaseTerm>,
}

impl ManagedConnection {
    /// To this server.
    pub(super) fn to_server(server: ConnectionInfo, timeouts: ConnectionLimits) -> Result<Self, BadUrl> {
        Ok(Self::new(Destination::Server(Box::new(server)), timeouts))
    }

    /// To the primary according to the sentinels.
    pub(super) fn to_primary(sentinels: Sentinels, timeouts: ConnectionLimits) -> Self {
        Self::new(Destination::Primary(Box::new(sentinels)), timeouts)
    }

    fn new(destination: Destination, timeouts: ConnectionLimits) -> Self {
        let (state, epoch, tracking) = Default::default();
        Self { destination, timeouts, state, epoch, tracking }
    }

    /// The number of connections opened so far.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Runs commands, one pipeline after another; one reply per command. A reply that
    /// the whole server cannot serve is an error.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, ServerFailure> {
        let mut replies = Vec::with_capacity(commands.len());
        for pipeline in pipelines(commands) {
            replies.extend(self.run_pipeline(&pipeline).await?.replies);
        }
        Ok(replies)
    }

    /// The same, with the term under which each reply was read.
    pub(super) async fn run_tracked(&self, commands: Vec<Cmd>) -> Result<TrackedValues, ServerFailure> {
        let mut replies = Vec::with_capacity(commands.len());
        for pipeline in pipelines(commands) {
            let PipelineReply { replies: part, term, .. } = self.run_pipeline(&pipeline).await?;
            replies.extend(part.into_iter().map(|reply| (reply, term.clone())));
        }
        Ok(replies)
    }

    async fn run_pipeline(&self, pipeline: &Pipeline) -> Result<PipelineReply, ServerFailure> {
        let answer = self.send(pipeline).await?;
        if let Some(problem) = answer.replies.iter().find_map(reply::failure) {
            if self.should_reconnect(&problem) {
                self.invalidate(answer.epoch).await;
            }
            return Err(problem);
        }
        Ok(answer)
    }

    /// Runs commands as far as possible. A reply that the whole server cannot serve does not count as
    /// one.
    pub(super) async fn run_each(&self, commands: Vec<Cmd>) -> PartialReplies {
        let count = commands.len();
        let (mut replies, mut problem) = (Vec::with_capacity(count), None);
        for pipeline in pipelines(commands) {
            let answer = match self.send(&pipeline).await {
                Ok(answer) => answer,
                Err(broken) => {
                    problem = Some(broken);
                    break;
                }
            };
            for reply in answer.replies {
                let unfit = reply::failure(&reply);
                replies.push(if unfit.is_none() { Some(reply) } else { None });
                problem = problem.or(unfit);
            }
            if let Some(problem) = &problem {
                if self.should_reconnect(problem) {
                    self.invalidate(answer.epoch).await;
                }
                break;
            }
        }
        replies.resize(count, None);
        PartialReplies { replies, problem }
    }

    /// Sends one pipeline; one reply per command, whatever it contains. If the replies are
    /// oversized, it is sent in smaller parts. A command with an oversized reply gets a refusal
    /// instead (see [`reply::is_too_large`]), provided that the server is healthy.
    pub(super) async fn send(&self, pipeline: &Pipeline) -> Result<PipelineReply, ServerFailure> {
        match self.send_once(pipeline).await {
            Err(problem) if problem.failure == ServerFailureKind::TooLarge => {
                self.send_split(pipeline, problem, &mut MAX_SPLITS.clone()).await
            }
            other => other,
        }
    }

    /// Sends an oversized pipeline in two parts.
    async fn send_split(
        &self,
        pipeline: &Pipeline,
        why: ServerFailure,
        left: &mut u32,
    ) -> Result<PipelineReply, ServerFailure> {
        *left = left.checked_sub(1).ok_or_else(|| why.clone())?;
        let commands: Vec<Cmd> = pipeline.cmd_iter().cloned().collect();
        // ASKING has to stay with the command that follows it.
        let is_asking = commands
            .first()
            .is_some_and(|command| command.get_packed_command() == redis::cmd("ASKING").get_packed_command());
        let unit = if is_asking { 2 } else { 1 };
        if commands.len() <= unit {
            // Is the command at fault, or the server?
            let mut ping = Pipeline::with_capacity(1);
            ping.cmd("PING");
            let answer = self.send_once(&ping).await?;
            let replies = vec![reply::too_large(&why.message); commands.len()];
            return Ok(PipelineReply { replies, epoch: answer.epoch, term: None });
        }
        let (mut replies, mut epoch) = (Vec::with_capacity(commands.len()), 0);
        let mut terms = Vec::new();
        let middle = commands.len().div_ceil(2 * unit) * unit;
        for part in commands.chunks(middle) {
            let mut pipeline = Pipeline::with_capacity(part.len());
            for command in part {
                pipeline.add_command(command.clone());
            }
            let answer = match self.send_once(&pipeline).await {
                Err(problem) if problem.failure == ServerFailureKind::TooLarge => {
                    Box::pin(self.send_split(&pipeline, problem, left)).await?
                }
                other => other?,
            };
            replies.extend(answer.replies);
            epoch = answer.epoch;
            terms.push(answer.term);
        }
        // Parts that were read over different connections have no term in common: the earliest has ended.
        let term = terms.into_iter().next().flatten();
        Ok(PipelineReply { replies, epoch, term })
    }

    /// Sends one pipeline, and once more if the connection turns out to be closed.
    async fn send_once(&self, pipeline: &Pipeline) -> Result<PipelineReply, ServerFailure> {
        match self.attempt(pipeline).await {
            // A closed idle connection is often only detected on use.
            Err((ServerFailure { failure: ServerFailureKind::Unreachable, .. }, true)) => {
                self.attempt(pipeline).await
            }
            other => other,
        }
        .map_err(|(problem, _)| problem)
    }

    /// One attempt; an error includes whether the connection existed before.
    async fn attempt(&self, pipeline: &Pipeline) -> Result<PipelineReply, (ServerFailure, bool)> {
        let before = self.epoch();
        let NumberedConnection { epoch, mut connection } =
            self.connection().await.map_err(|problem| (problem, false))?;
        match connection.send(pipeline).await {
            Ok((replies, term)) => Ok(PipelineReply { replies, epoch, term }),
            Err(problem) => {
                self.invalidate(epoch).await;
                Err((problem, epoch == before))
            }
        }
    }

    /// Whether a new connection may help: it logs in again, or leads to another server.
    fn should_reconnect(&self, problem: &ServerFailure) -> bool {
        match self.destination {
            Destination::Server(_) => {
                problem.failure.is_about_the_user() || problem.message.starts_with("READONLY")
            }
            Destination::Primary(_) => true,
        }
    }

    async fn connection(&self) -> Result<NumberedConnection, ServerFailure> {
        let mut state = self.state.lock().await;
        if let Some(numbered) = &state.connection {
            return Ok(numbered.clone());
        }
        if let Some(failure) = &state.failure
            && Instant::now() < failure.until
        {
            return Err(failure.problem.clone());
        }
        match self.destination.connect(&self.timeouts).await {
            Ok(connection) => {
                let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
                *self.tracking.lock() = connection.tracking().cloned();
                let numbered = NumberedConnection { epoch, connection };
                *state = ConnectionState { connection: Some(numbered.clone()), failure: None };
                Ok(numbered)
            }
            Err(problem) => {
                let mut backoff = state.failure.as_ref().map_or(BACKOFF, |failure| failure.backoff);
                let until = Instant::now() + backoff.next_wait(fastrand::f64());
                state.failure = Some(ConnectFailure { problem: problem.clone(), until, backoff });
                Err(problem)
            }
        }
    }

    /// Makes the next call reconnect, unless that has happened already.
    pub(super) async fn invalidate(&self, epoch: u64) {
        let mut state = self.state.lock().await;
        if state.connection.as_ref().is_some_and(|numbered| numbered.epoch == epoch) {
            state.connection = None;
            self.forget_reads(ForgetCause::Disconnected);
        }
    }

    /// What was read over the present connection does not count any more.
    pub(super) fn forget_reads(&self, cause: ForgetCause) {
        let tracking = self.tracking.lock().clone();
        if let Some(tracking) = tracking {
            tracking.forget(cause);
        }
    }

    /// Sends a command together with what shows that the server is alive and, behind sentinels, still the
    /// primary; connects if necessary. Returns the number of the connection and the command's reply.
    pub(super) async fn check_alive(&self, command: Cmd) -> Result<(u64, Value), ServerFailure> {
        let mut pipeline = self.destination.sign_of_life();
        pipeline.add_command(command);
        let PipelineReply { mut replies, epoch, .. } = self.send(&pipeline).await?;
        let reply = replies.pop().unwrap_or_default();
        if self.destination.is_demoted(replies) {
            self.invalidate(epoch).await;
            return Err(ServerFailure::new(ServerFailureKind::NotReady, "it is not the primary any more"));
        }
        Ok((epoch, reply))
    }

    /// Renews the lease of the present connection, if there is one: afterwards all changes until now were
    /// reported, or what was read does not count any more. Opens no connection. Returns false if a lease
    /// was lost.
    pub(super) async fn renew_lease(&self) -> bool {
        let Some(tracking) = self.tracking.lock().clone() else { return true };
        let Some(NumberedConnection { epoch, mut connection }) = self.state.lock().await.connection.clone()
        else {
            return true;
        };
        match tracking.due() {
            // Its problem is that of the next call.
            Some(Retry::Ask) => drop(connection.start_tracking().await),
            Some(Retry::Reconnect) => self.invalidate(epoch).await,
            None if tracking.lease().is_none() => {}
            None => {
                let answer = connection.send(&self.destination.sign_of_life()).await;
                if answer.is_err() || answer.is_ok_and(|(replies, _)| self.destination.is_demoted(replies)) {
                    self.invalidate(epoch).await;
                    return false;
                }
            }
        }
        true
    }
}

impl Destination {
    async fn connect(&self, timeouts: &ConnectionLimits) -> Result<BoundedConnection, ServerFailure> {
        match self {
            Self::Server(server) => BoundedConnection::open(server, timeouts).await,
            Self::Primary(sentinels) => sentinels.connect(timeouts).await,
        }
    }

    /// What renews a lease. A primary that was demoted still answers, and may not hear of changes.
    fn sign_of_life(&self) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("PING");
        if matches!(self, Self::Primary(_)) {
            pipeline.cmd("ROLE");
        }
        pipeline
    }

    fn is_demoted(&self, mut replies: Vec<Value>) -> bool {
        matches!(self, Self::Primary(_))
            && replies.pop().is_some_and(|role| sentinel::as_primary(role).is_err())
    }
}

fn pipelines(commands: Vec<Cmd>) -> impl Iterator<Item = Pipeline> {
    let mut commands = commands.into_iter().peekable();
    std::iter::from_fn(move || {
        commands.peek()?;
        let mut pipeline = Pipeline::new();
        let mut bytes = 0;
        while let Some(command) = commands.next_if(|command| {
            bytes += size(command);
            pipeline.is_empty() || pipeline.len() < PIPELINE_LIMIT && bytes <= PIPELINE_BYTES
        }) {
            pipeline.add_command(command);
        }
        Some(pipeline)
    })
}

/// Bytes of a command's arguments.
fn size(command: &Cmd) -> usize {
    command.args_iter().map(|word| super::slots::word(word).len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_bounded_in_commands_and_bytes() {
        let command = |bytes: usize| redis::cmd("SET").arg("k").arg(vec![b'x'; bytes]).take();
        let lengths = |commands: Vec<Cmd>| pipelines(commands).map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(lengths(vec![command(1); 4_500]), [2_000, 2_000, 500]);
        assert_eq!(lengths(vec![command(200_000); 5]), [2, 2, 1]);
        assert_eq!(lengths(vec![command(600_000), command(1), command(600_000)]), [1, 1, 1]);
        assert_eq!(lengths(Vec::new()), Vec::<usize>::new());
    }
}
