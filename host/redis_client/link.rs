//! One connection that mends itself.
//!
//! The `redis` crate's own connection manager makes callers wait while it retries, and keeps a
//! connection whose peer is silently gone. Here the caller that finds no connection makes one,
//! others wait for that one attempt, and after a failed attempt calls fail at once until the
//! back-off is over. A connection that broke, stayed silent too long, or leads to a replica is
//! forgotten; the next call makes a new one and resolves the host name again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, ErrorKind, Pipeline, RedisError, Value};
use tokio::sync::Mutex;

use super::unavailable::{Trouble, Unavailable};
use super::{BadUrl, reply};

/// How soon after a failed attempt the next one is made, at first and at most. Redis' return is
/// noticed within the longer.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(500));

pub(super) struct Link {
    name: &'static str,
    place: Arc<str>,
    server: redis::Client,
    config: AsyncConnectionConfig,
    /// Held while connecting, so that one attempt serves all who wait.
    state: Mutex<State>,
    /// Connections made so far.
    epoch: AtomicU64,
    /// What the last call met; also tells when to log that Redis went or returned.
    last_problem: StdMutex<Option<Unavailable>>,
}

#[derive(Default)]
struct State {
    connection: Option<Numbered>,
    failure: Option<Failure>,
}

/// A connection and which one it is, so that a late complaint about an earlier one is ignored.
#[derive(Clone)]
struct Numbered {
    epoch: u64,
    connection: MultiplexedConnection,
}

struct Failure {
    trouble: Trouble,
    problem: Arc<str>,
    at: Instant,
    wait: Duration,
}

type Problem = (Trouble, Arc<str>);

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({} to {})", self.name, self.place)
    }
}

impl Link {
    pub(super) fn new(
        name: &'static str,
        server: ConnectionInfo,
        place: Arc<str>,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Result<Self, BadUrl> {
        let server = redis::Client::open(server).map_err(|e| BadUrl::Malformed(e.to_string()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            .set_response_timeout(Some(response_timeout));
        let (state, epoch, last_problem) = Default::default();
        Ok(Self { name, place, server, config, state, epoch, last_problem })
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn last_problem(&self) -> Option<Unavailable> {
        self.last_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs one pipeline; one reply per command. No reply says that the whole server is unfit:
    /// that is an error.
    pub(super) async fn run(
        &self,
        operation: &'static str,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, Unavailable> {
        let outcome = match self.attempt(pipeline).await {
            // A connection that idled is often found closed only when it is used.
            Err((Trouble::Away, _, true)) => self.attempt(pipeline).await,
            other => other,
        };
        let outcome = outcome.map_err(|(trouble, problem, _)| {
            Unavailable::new(trouble, self.place.clone(), operation, problem)
        });
        self.remember(outcome.as_ref().err());
        outcome
    }

    /// One attempt; an error says whether the connection was there before.
    async fn attempt(&self, pipeline: &Pipeline) -> Result<Vec<Value>, (Trouble, Arc<str>, bool)> {
        let before = self.epoch();
        let mut numbered = self.connection().await.map_err(|(trouble, problem)| (trouble, problem, false))?;
        let was_there = numbered.epoch == before;
        let replies = numbered.connection.send_packed_commands(pipeline, 0, pipeline.len()).await;
        let replies = match replies {
            Ok(replies) => replies,
            Err(error) => {
                self.forget(numbered.epoch).await;
                let (trouble, problem) = classify(&error);
                return Err((trouble, problem, was_there));
            }
        };
        if let Some((trouble, said)) = replies.iter().find_map(reply::trouble) {
            if said.starts_with("READONLY") || trouble == Trouble::Denied {
                self.forget(numbered.epoch).await;
            }
            return Err((trouble, said.into(), was_there));
        }
        Ok(replies)
    }

    async fn connection(&self) -> Result<Numbered, Problem> {
        let mut state = self.state.lock().await;
        if let Some(numbered) = &state.connection {
            return Ok(numbered.clone());
        }
        if let Some(failure) = &state.failure
            && failure.at.elapsed() < failure.wait
        {
            return Err((failure.trouble, failure.problem.clone()));
        }
        match self.server.get_multiplexed_async_connection_with_config(&self.config).await {
            Ok(connection) => {
                let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
                let numbered = Numbered { epoch, connection };
                *state = State { connection: Some(numbered.clone()), failure: None };
                Ok(numbered)
            }
            Err(error) => {
                let (trouble, problem) = classify(&error);
                let wait = next_wait(state.failure.as_ref());
                state.failure = Some(Failure { trouble, problem: problem.clone(), at: Instant::now(), wait });
                Err((trouble, problem))
            }
        }
    }

    async fn forget(&self, epoch: u64) {
        let mut state = self.state.lock().await;
        if state.connection.as_ref().is_some_and(|numbered| numbered.epoch == epoch) {
            state.connection = None;
        }
    }

    /// Logs only when Redis goes or returns: calls in between would all say the same.
    fn remember(&self, problem: Option<&Unavailable>) {
        let mut last = self.last_problem.lock().unwrap_or_else(PoisonError::into_inner);
        match (last.is_some(), problem) {
            (false, Some(problem)) => tracing::warn!(connection = self.name, "{problem}"),
            (true, None) => tracing::info!(connection = self.name, "Redis at {} is back", self.place),
            (false, None) | (true, Some(_)) => {}
        }
        *last = problem.cloned();
    }
}

/// Doubles, with jitter: many gateways should not all come at once.
fn next_wait(failure: Option<&Failure>) -> Duration {
    let (first, longest) = BACK_OFF;
    let wait = failure.map_or(first, |failure| (failure.wait * 2).min(longest));
    wait.mul_f64(0.75 + 0.25 * fastrand::f64())
}

fn classify(error: &RedisError) -> Problem {
    let trouble = match error.kind() {
        ErrorKind::Io if error.is_timeout() => Trouble::Slow,
        ErrorKind::Io => Trouble::Away,
        ErrorKind::AuthenticationFailed => Trouble::Denied,
        ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Trouble::Denied,
            _ => Trouble::NotReady,
        },
        _ => Trouble::Nonsense,
    };
    (trouble, error.to_string().into())
}
