//! One connection of the shared client, whatever the topology.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::cluster::Cluster;
use super::connection::ManagedConnection;
use super::error::{ServerFailure, ServerFailureKind, Unavailable};
use super::health::ConnectionHealth;
use super::reply::is_any_denied;
use super::sentinel::Sentinels;
use super::topology::Topology;
use super::{BadUrl, ConnectionLimits, PartialReplies, TrackedValues};

#[derive(Debug)]
pub(super) struct Transport {
    endpoint: Arc<str>,
    kind: Backend,
    health: ConnectionHealth,
}

#[derive(Debug)]
enum Backend {
    /// A single server, or the primary behind sentinels.
    Single(Box<ManagedConnection>),
    Cluster(Box<Cluster>),
}

impl Transport {
    /// Creates it; `health_key` is a key for health checks.
    pub(super) fn new(
        health: ConnectionHealth,
        endpoint: Arc<str>,
        topology: Topology,
        timeouts: ConnectionLimits,
        health_key: &str,
    ) -> Result<Self, BadUrl> {
        let kind = match topology {
            Topology::Server(server) => {
                Backend::Single(Box::new(ManagedConnection::to_server(server, timeouts)?))
            }
            Topology::Primary(monitored) => {
                let sentinels = Sentinels::new(monitored, timeouts.connect);
                Backend::Single(Box::new(ManagedConnection::to_primary(sentinels, timeouts)))
            }
            Topology::Cluster(seeds) => {
                Backend::Cluster(Box::new(Cluster::new(seeds, timeouts, health_key)?))
            }
        };
        Ok(Self { endpoint, kind, health })
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.kind, Backend::Cluster(_))
    }

    /// Changes whenever another server may answer.
    pub(super) fn epoch(&self) -> u64 {
        match &self.kind {
            Backend::Single(connection) => connection.epoch(),
            Backend::Cluster(cluster) => cluster.epoch(),
        }
    }

    pub(super) fn last_problem(&self) -> Option<Unavailable> {
        self.health.problem()
    }

    /// Runs commands; one reply per command, in order.
    pub(super) async fn run(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        let outcome = match &self.kind {
            Backend::Single(connection) => connection.run(commands).await,
            Backend::Cluster(cluster) => cluster.run(commands).await,
        };
        match outcome {
            Ok(replies) => {
                self.health.record_success(operation, is_any_denied(&replies));
                Ok(replies)
            }
            Err(problem) => Err(self.record_failure(operation, problem)),
        }
    }

    /// The same, with the term under which each reply was read.
    pub(super) async fn run_tracked(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<TrackedValues, Unavailable> {
        let outcome = match &self.kind {
            Backend::Single(connection) => connection.run_tracked(commands).await,
            Backend::Cluster(cluster) => cluster.run_tracked(commands).await,
        };
        match outcome {
            Ok(replies) => {
                self.health.record_success(operation, is_any_denied(replies.iter().map(|(reply, _)| reply)));
                Ok(replies)
            }
            Err(problem) => Err(self.record_failure(operation, problem)),
        }
    }

    /// Renews the leases of the connections, and checks whether other servers have taken over.
    pub(super) async fn renew_leases(&self) {
        match &self.kind {
            Backend::Single(connection) => drop(connection.renew_lease().await),
            Backend::Cluster(cluster) => cluster.renew_leases().await,
        }
    }

    /// Renews the leases of the connections; false if one was lost.
    pub(super) async fn confirm_leases(&self) -> bool {
        match &self.kind {
            Backend::Single(connection) => connection.renew_lease().await,
            Backend::Cluster(cluster) => cluster.confirm_leases().await,
        }
    }

    /// Runs commands as far as possible: returns a reply for each completed command, and the problem
    /// of the others.
    pub(super) async fn run_each(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> (Vec<Option<Value>>, Option<Unavailable>) {
        let PartialReplies { replies, problem } = match &self.kind {
            Backend::Single(connection) => connection.run_each(commands).await,
            Backend::Cluster(cluster) => cluster.run_each(commands).await,
        };
        let problem = problem.map(|problem| self.record_failure(operation, problem));
        if problem.is_none() {
            self.health.record_success(operation, is_any_denied(replies.iter().flatten()));
        }
        (replies, problem)
    }

    /// Runs a command on one of the nodes; `None` if there are fewer. A single server is node 0.
    pub(super) async fn run_on_node(
        &self,
        operation: &'static str,
        node: usize,
        command: Cmd,
    ) -> Result<Option<Value>, Unavailable> {
        let outcome = match &self.kind {
            Backend::Single(_) if node > 0 => return Ok(None),
            Backend::Single(connection) => connection.run(vec![command]).await.map(|mut all| all.pop()),
            Backend::Cluster(cluster) => cluster.run_on_node(node, command).await,
        };
        outcome.map_err(|problem| self.record_failure(operation, problem))
    }

    /// Checks that the server answers, or all nodes of the cluster that have slots.
    pub(super) async fn ping(&self, operation: &'static str) -> Result<(), Unavailable> {
        let outcome = match &self.kind {
            Backend::Single(connection) => connection.run(vec![redis::cmd("PING")]).await.map(drop),
            Backend::Cluster(cluster) => cluster.ping().await,
        };
        match outcome {
            Ok(()) => {
                self.health.record_ping(operation);
                Ok(())
            }
            Err(problem) => Err(self.record_failure(operation, problem)),
        }
    }

    /// Records that the server refused a required command, in one of its replies.
    pub(super) fn record_denial(&self, operation: &'static str, problem: Unavailable) {
        self.health.record_failure(operation, ServerFailureKind::Denied, problem);
    }

    fn record_failure(
        &self,
        operation: &'static str,
        ServerFailure { failure, message }: ServerFailure,
    ) -> Unavailable {
        let problem = Unavailable::new(failure, self.endpoint.clone(), operation, message);
        self.health.record_failure(operation, failure, problem.clone());
        problem
    }
}
