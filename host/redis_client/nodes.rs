//! The nodes of a cluster: a reconnecting connection to each, and the slot map.
//!
//! The map is loaded on first use and whenever it proved wrong, by one caller for all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex as StdMutex;
use redis::{ConnectionInfo, Pipeline, ServerError, Value};
use tokio::sync::Mutex;

use super::connection::ManagedConnection;
use super::error::{ServerFailure, ServerFailureKind};
use super::slots::{NodeAddr, SlotMap};
use super::topology::{self, UrlProblem};
use super::tracking::ForgetCause;
use super::{BadUrl, ConnectionLimits, reply};

/// Minimum interval between reloads of the map.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(100);
/// How many nodes are asked for the map at once.
const MAX_QUERIED: usize = 5;

#[derive(Debug)]
pub(super) struct ClusterNodes {
    seeds: Vec<NodeAddr>,
    /// Connection settings; only the address differs per node.
    info: ConnectionInfo,
    timeouts: ConnectionLimits,
    /// One connection per used node; those to removed nodes are dropped with the map.
    connections: StdMutex<HashMap<NodeAddr, Arc<ManagedConnection>>>,
    cached: StdMutex<CachedSlots>,
    /// Held while the map is loaded, so that one load serves all waiting callers.
    refresh_lock: Mutex<()>,
    /// Number of maps that differed from the previous one.
    epoch: AtomicU64,
}

#[derive(Debug, Default)]
struct CachedSlots {
    slots: Option<Arc<SlotMap>>,
    /// When the map was last loaded, successfully or not.
    at: Option<Instant>,
    /// Whether the map proved wrong.
    stale: bool,
}

impl ClusterNodes {
    /// Creates the nodes from those that the URL names.
    pub(super) fn new(seeds: Vec<ConnectionInfo>, timeouts: ConnectionLimits) -> Result<Self, BadUrl> {
        let Some(info) = seeds.first().cloned() else {
            return Err(BadUrl::Cluster(UrlProblem::NoNode));
        };
        let named = seeds.iter().filter_map(topology::host_and_port);
        let seeds: Vec<NodeAddr> = named.map(|(host, port)| NodeAddr::new(host, port)).collect();
        let (connections, cached, refresh_lock, epoch) = Default::default();
        Ok(Self { seeds, info, timeouts, connections, cached, refresh_lock, epoch })
    }

    /// Changes whenever other nodes serve the slots.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The connection to a node.
    pub(super) fn connection(&self, node: &NodeAddr) -> Result<Arc<ManagedConnection>, ServerFailure> {
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(node) {
            return Ok(connection.clone());
        }
        let info = topology::at(&self.info, &node.host, node.port);
        let connection = ManagedConnection::to_server(info, self.timeouts.clone())
            .map_err(|error| ServerFailure::new(ServerFailureKind::Malformed, error.to_string()).of(node))?;
        let connection = Arc::new(connection);
        connections.insert(node.clone(), connection.clone());
        Ok(connection)
    }

    /// The map, reloaded if it proved wrong.
    pub(super) async fn slots(&self) -> Result<Arc<SlotMap>, ServerFailure> {
        if let Some(slots) = self.fresh_slots() {
            return Ok(slots);
        }
        let _one_at_a_time = self.refresh_lock.lock().await;
        if let Some(slots) = self.fresh_slots() {
            return Ok(slots);
        }
        let outcome = self.read().await;
        let mut cached = self.cached.lock();
        cached.at = Some(Instant::now());
        match outcome {
            Ok(slots) => {
                if cached.slots.as_deref() != Some(&slots) {
                    self.epoch.fetch_add(1, Ordering::AcqRel);
                }
                let losers = cached.slots.as_ref().map(|before| before.losers(&slots)).unwrap_or_default();
                self.forget_reads(&losers);
                self.retain_connections(&slots);
                let slots = Arc::new(slots);
                *cached = CachedSlots { slots: Some(slots.clone()), at: cached.at, stale: false };
                Ok(slots)
            }
            // No node answered: the previous map is the best guess.
            Err(problem) => cached.slots.clone().ok_or(problem),
        }
    }

    /// The current map, unless it has to be reloaded.
    fn fresh_slots(&self) -> Option<Arc<SlotMap>> {
        let cached = self.cached.lock();
        let due = cached.stale && cached.at.is_none_or(|at| at.elapsed() >= MIN_REFRESH_INTERVAL);
        cached.slots.clone().filter(|_| !due)
    }

    /// Asks some nodes for the map. The first one that covers every slot is used, otherwise the most
    /// complete one. If it is outdated, its nodes redirect.
    async fn read(&self) -> Result<SlotMap, ServerFailure> {
        let mut asked: FuturesUnordered<_> =
            self.candidates().into_iter().map(|n| self.fetch_slots(n)).collect();
        let (mut best, mut problem): (Option<SlotMap>, _) = (None, None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(slots) if slots.unserved() == 0 => return Ok(slots),
                Ok(slots) if best.as_ref().is_none_or(|best| slots.unserved() < best.unserved()) => {
                    best = Some(slots);
                }
                Ok(_) => {}
                Err(other) => problem = ServerFailure::more_specific(problem, other),
            }
        }
        best.ok_or_else(|| problem.unwrap_or_else(|| unserved(format_args!("any slot"))))
    }

    async fn fetch_slots(&self, node: NodeAddr) -> Result<SlotMap, ServerFailure> {
        let connection = self.connection(&node)?;
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd("CLUSTER").arg("SLOTS");
        let mut answer = connection.send(&pipeline).await.map_err(|problem| problem.of(&node))?;
        let reply = answer.replies.pop().unwrap_or_default();
        if let Value::ServerError(error) = &reply {
            let problem = reply::failure(&reply).map_or_else(|| slots_failure(error), as_cluster);
            if problem.failure.is_about_the_user() {
                connection.invalidate(answer.epoch).await;
            }
            return Err(problem.of(&node));
        }
        SlotMap::read(reply, &node).ok_or_else(|| {
            ServerFailure::new(ServerFailureKind::Malformed, "the reply to CLUSTER SLOTS cannot be read")
                .of(&node)
        })
    }

    /// The nodes to ask for the map: some known ones and some from the URL, in random order.
    fn candidates(&self) -> Vec<NodeAddr> {
        let connections = self.connections.lock();
        let mut nodes: Vec<NodeAddr> =
            connections.keys().filter(|node| !self.seeds.contains(node)).cloned().collect();
        drop(connections);
        let mut seeds = self.seeds.clone();
        fastrand::shuffle(&mut nodes);
        fastrand::shuffle(&mut seeds);
        nodes.truncate(MAX_QUERIED);
        seeds.truncate(MAX_QUERIED);
        nodes.extend(seeds);
        nodes
    }

    /// Drops the connections to nodes without slots.
    fn retain_connections(&self, slots: &SlotMap) {
        let mut connections = self.connections.lock();
        connections.retain(|node, _| slots.nodes().contains(node) || self.seeds.contains(node));
    }

    /// Records new owners of slots, and that the map may be outdated.
    pub(super) fn apply_moved(&self, moved: Vec<(u16, NodeAddr)>) {
        if moved.is_empty() {
            return;
        }
        let mut cached = self.cached.lock();
        cached.stale = true;
        if let Some(slots) = &mut cached.slots {
            let before = Arc::clone(slots);
            let slots = Arc::make_mut(slots);
            for (slot, node) in &moved {
                slots.moved(*slot, node);
            }
            self.forget_reads(&before.losers(slots));
        }
    }

    /// What was read from these nodes does not count any more: others report the changes of some of it.
    fn forget_reads(&self, nodes: &[NodeAddr]) {
        let connections = self.connections.lock();
        for node in nodes {
            if let Some(connection) = connections.get(node) {
                connection.forget_reads(ForgetCause::SlotsMoved);
            }
        }
    }

    /// Renews the leases of all connections; false if one was lost.
    pub(super) async fn renew_leases(&self) -> bool {
        let connections: Vec<_> = self.connections.lock().values().cloned().collect();
        let renewed = join_all(connections.iter().map(|connection| connection.renew_lease())).await;
        renewed.into_iter().all(|renewed| renewed)
    }

    /// Asks one node whether slots have moved: nobody redirects who is not asked.
    pub(super) async fn check_slots(&self) {
        let Some(known) = self.cached.lock().slots.clone() else { return };
        let Some(node) = fastrand::choice(known.nodes()).cloned() else { return };
        let has_moved = match self.fetch_slots(node).await {
            Ok(slots) => !known.losers(&slots).is_empty() || slots.unserved() != known.unserved(),
            Err(_) => true,
        };
        if has_moved {
            self.invalidate_slots();
            // A problem is that of the next call.
            drop(self.slots().await);
        }
    }

    /// Marks the map as wrong.
    pub(super) fn invalidate_slots(&self) {
        self.cached.lock().stale = true;
    }
}

/// Why a node does not return its map.
fn slots_failure(error: &ServerError) -> ServerFailure {
    let message = reply::message(error);
    let denied = error.code() == "NOPERM";
    ServerFailure::new(
        if denied { ServerFailureKind::Denied } else { ServerFailureKind::NotACluster },
        message,
    )
}

/// The problem that no node serves this now.
pub(super) fn unserved(what: std::fmt::Arguments<'_>) -> ServerFailure {
    ServerFailure::new(ServerFailureKind::ClusterDown, format!("no node serves {what}"))
}

/// Errors that are a problem for a single server but normal in a cluster.
pub(super) fn as_cluster(problem: ServerFailure) -> ServerFailure {
    match problem.failure {
        ServerFailureKind::IsCluster => ServerFailure::new(ServerFailureKind::ClusterDown, problem.message),
        _ => problem,
    }
}
