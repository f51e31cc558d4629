//! One connection of the shared client, whatever the topology.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::cluster::Cluster;
use super::link::Link;
use super::reply::is_any_denied;
use super::sentinel::Sentinels;
use super::target::Target;
use super::unavailable::{Problem, Trouble, Unavailable};
use super::wellbeing::Wellbeing;
use super::{BadUrl, Partial, Timeouts};

#[derive(Debug)]
pub(super) struct Way {
    place: Arc<str>,
    kind: Kind,
    wellbeing: Wellbeing,
}

#[derive(Debug)]
enum Kind {
    /// A single server, or the primary behind sentinels.
    One(Box<Link>),
    Cluster(Box<Cluster>),
}

impl Way {
    /// Creates it; `sign_of_life` is a key for health checks.
    pub(super) fn new(
        wellbeing: Wellbeing,
        place: Arc<str>,
        target: Target,
        timeouts: Timeouts,
        sign_of_life: &str,
    ) -> Result<Self, BadUrl> {
        let kind = match target {
            Target::Server(server) => Kind::One(Box::new(Link::to_server(server, timeouts)?)),
            Target::Primary(watched) => {
                let sentinels = Sentinels::new(watched, timeouts.connect);
                Kind::One(Box::new(Link::to_primary(sentinels, timeouts)))
            }
            Target::Cluster(seeds) => Kind::Cluster(Box::new(Cluster::new(seeds, timeouts, sign_of_life)?)),
        };
        Ok(Self { place, kind, wellbeing })
    }

    /// Changes whenever another server may answer.
    pub(super) fn epoch(&self) -> u64 {
        match &self.kind {
            Kind::One(link) => link.epoch(),
            Kind::Cluster(cluster) => cluster.epoch(),
        }
    }

    pub(super) fn last_problem(&self) -> Option<Unavailable> {
        self.wellbeing.problem()
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
        match outcome {
            Ok(replies) => {
                self.wellbeing.succeeded(operation, is_any_denied(&replies));
                Ok(replies)
            }
            Err(problem) => Err(self.failed(operation, problem)),
        }
    }

    /// Runs commands as far as possible: returns a reply for each completed command, and the problem
    /// of the others.
    pub(super) async fn run_each(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> (Vec<Option<Value>>, Option<Unavailable>) {
        let Partial { replies, problem } = match &self.kind {
            Kind::One(link) => link.run_each(commands).await,
            Kind::Cluster(cluster) => cluster.run_each(commands).await,
        };
        let problem = problem.map(|problem| self.failed(operation, problem));
        if problem.is_none() {
            self.wellbeing.succeeded(operation, is_any_denied(replies.iter().flatten()));
        }
        (replies, problem)
    }

    /// Checks that the server answers, or all nodes of the cluster that have slots.
    pub(super) async fn ping(&self, operation: &'static str) -> Result<(), Unavailable> {
        let outcome = match &self.kind {
            Kind::One(link) => link.run(vec![redis::cmd("PING")]).await.map(drop),
            Kind::Cluster(cluster) => cluster.ping().await,
        };
        match outcome {
            Ok(()) => {
                self.wellbeing.alive(operation);
                Ok(())
            }
            Err(problem) => Err(self.failed(operation, problem)),
        }
    }

    /// Records that the server refused a required command, in one of its replies.
    pub(super) fn was_denied(&self, operation: &'static str, problem: Unavailable) {
        self.wellbeing.failed(operation, Trouble::Denied, problem);
    }

    fn failed(&self, operation: &'static str, Problem { trouble, said }: Problem) -> Unavailable {
        let problem = Unavailable::new(trouble, self.place.clone(), operation, said);
        self.wellbeing.failed(operation, trouble, problem.clone());
        problem
    }
}
