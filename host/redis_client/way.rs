//! One of the shared client's ways to Redis, whatever kind of Redis that is.
//!
//! It remembers what the last call met, and says so once when Redis goes or returns.

use std::sync::{Arc, Mutex, PoisonError};

use redis::{Cmd, Value};

use super::cluster::Cluster;
use super::link::Link;
use super::sentinel::Sentinels;
use super::target::Target;
use super::unavailable::{Problem, Unavailable};
use super::{BadUrl, Timeouts};

#[derive(Debug)]
pub(super) struct Way {
    name: &'static str,
    place: Arc<str>,
    kind: Kind,
    /// What the last call met; also tells when to log that Redis went or returned.
    last_problem: Mutex<Option<Unavailable>>,
}

#[derive(Debug)]
enum Kind {
    /// One server, or the primary that sentinels watch.
    One(Link),
    Cluster(Cluster),
}

impl Way {
    /// Prepares it; `sign_of_life` is a key that may be asked for.
    pub(super) fn new(
        name: &'static str,
        place: Arc<str>,
        target: Target,
        timeouts: Timeouts,
        sign_of_life: &str,
    ) -> Result<Self, BadUrl> {
        let kind = match target {
            Target::Server(server) => Kind::One(Link::to_server(server, timeouts)?),
            Target::Primary(watched) => {
                Kind::One(Link::to_primary(Sentinels::new(watched, timeouts.connect), timeouts))
            }
            Target::Cluster(seeds) => Kind::Cluster(Cluster::new(seeds, timeouts, sign_of_life)?),
        };
        Ok(Self { name, place, kind, last_problem: Mutex::default() })
    }

    /// A number that changes whenever another server may be the one that answers.
    pub(super) fn epoch(&self) -> u64 {
        match &self.kind {
            Kind::One(link) => link.epoch(),
            Kind::Cluster(cluster) => cluster.epoch(),
        }
    }

    pub(super) fn last_problem(&self) -> Option<Unavailable> {
        self.last_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs commands; one reply per command, in order.
    pub(super) async fn run(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        let outcome = match &self.kind {
            Kind::One(link) => link.run(commands).await,
            Kind::Cluster(cluster) => cluster.run(commands).await,
        };
        self.remember(operation, outcome)
    }

    /// Asks for a sign of life: the server, or everyone in the cluster who serves slots.
    pub(super) async fn ping(&self, operation: &'static str) -> Result<(), Unavailable> {
        let outcome = match &self.kind {
            Kind::One(link) => link.run(vec![redis::cmd("PING")]).await.map(drop),
            Kind::Cluster(cluster) => cluster.ping().await,
        };
        self.remember(operation, outcome)
    }

    /// Logs only when Redis goes or returns: calls in between would all say the same.
    fn remember<T>(&self, operation: &'static str, outcome: Result<T, Problem>) -> Result<T, Unavailable> {
        let outcome = outcome.map_err(|Problem { trouble, said }| {
            Unavailable::new(trouble, self.place.clone(), operation, said)
        });
        let problem = outcome.as_ref().err();
        let mut last = self.last_problem.lock().unwrap_or_else(PoisonError::into_inner);
        match (last.is_some(), problem) {
            (false, Some(problem)) => tracing::warn!(connection = self.name, "{problem}"),
            (true, None) => tracing::info!(connection = self.name, "Redis at {} is back", self.place),
            (false, None) | (true, Some(_)) => {}
        }
        *last = problem.cloned();
        outcome
    }
}
