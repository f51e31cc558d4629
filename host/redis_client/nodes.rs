//! The nodes of a cluster: a reconnecting connection to each, and the slot map.
//!
//! The map is loaded on first use and whenever it proved wrong, by one caller for all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex as StdMutex;
use redis::{ConnectionInfo, Pipeline, ServerError, Value};
use tokio::sync::Mutex;

use super::link::Link;
use super::slots::{Node, Slots};
use super::unavailable::{Problem, Trouble};
use super::{BadUrl, Timeouts, reply, target};

/// Minimum interval between reloads of the map.
const MAP_AGE: Duration = Duration::from_millis(100);
/// How many nodes are asked for the map at once.
const ASKED_TOGETHER: usize = 5;

#[derive(Debug)]
pub(super) struct Nodes {
    seeds: Vec<Node>,
    /// Connection settings; only the address differs per node.
    info: ConnectionInfo,
    timeouts: Timeouts,
    /// One connection per used node; those to removed nodes are dropped with the map.
    links: StdMutex<HashMap<Node, Arc<Link>>>,
    known: StdMutex<Known>,
    /// Held while the map is loaded, so that one load serves all waiting callers.
    reading: Mutex<()>,
    /// Number of maps that differed from the previous one.
    epoch: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    slots: Option<Arc<Slots>>,
    /// When the map was last loaded, successfully or not.
    at: Option<Instant>,
    /// Whether the map proved wrong.
    wrong: bool,
}

impl Nodes {
    /// Creates the nodes from those that the URL names.
    pub(super) fn new(seeds: Vec<ConnectionInfo>, timeouts: Timeouts) -> Result<Self, BadUrl> {
        let Some(info) = seeds.first().cloned() else {
            return Err(BadUrl::Cluster("no node is named".to_owned()));
        };
        let named = seeds.iter().filter_map(target::host_and_port);
        let seeds: Vec<Node> = named.map(|(host, port)| Node::new(host, port)).collect();
        let (links, known, reading, epoch) = Default::default();
        Ok(Self { seeds, info, timeouts, links, known, reading, epoch })
    }

    /// Changes whenever other nodes serve the slots.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The connection to a node.
    pub(super) fn link(&self, node: &Node) -> Result<Arc<Link>, Problem> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(node) {
            return Ok(link.clone());
        }
        let info = target::at(&self.info, &node.host, node.port);
        let link = Link::to_server(info, self.timeouts.clone())
            .map_err(|error| Problem::new(Trouble::Nonsense, error.to_string()).of(node))?;
        let link = Arc::new(link);
        links.insert(node.clone(), link.clone());
        Ok(link)
    }

    /// The map, reloaded if it proved wrong.
    pub(super) async fn slots(&self) -> Result<Arc<Slots>, Problem> {
        if let Some(slots) = self.good() {
            return Ok(slots);
        }
        let _one_at_a_time = self.reading.lock().await;
        if let Some(slots) = self.good() {
            return Ok(slots);
        }
        let outcome = self.read().await;
        let mut known = self.known.lock();
        known.at = Some(Instant::now());
        match outcome {
            Ok(slots) => {
                if known.slots.as_deref() != Some(&slots) {
                    self.epoch.fetch_add(1, Ordering::AcqRel);
                }
                self.keep_links(&slots);
                let slots = Arc::new(slots);
                *known = Known { slots: Some(slots.clone()), at: known.at, wrong: false };
                Ok(slots)
            }
            // No node answered: the previous map is the best guess.
            Err(problem) => known.slots.clone().ok_or(problem),
        }
    }

    /// The current map, unless it has to be reloaded.
    fn good(&self) -> Option<Arc<Slots>> {
        let known = self.known.lock();
        let due = known.wrong && known.at.is_none_or(|at| at.elapsed() >= MAP_AGE);
        known.slots.clone().filter(|_| !due)
    }

    /// Asks some nodes for the map. The first one that covers every slot is used, otherwise the most
    /// complete one. If it is outdated, its nodes redirect.
    async fn read(&self) -> Result<Slots, Problem> {
        let mut asked: FuturesUnordered<_> = self.candidates().into_iter().map(|n| self.map_of(n)).collect();
        let (mut best, mut problem): (Option<Slots>, _) = (None, None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(slots) if slots.unserved() == 0 => return Ok(slots),
                Ok(slots) if best.as_ref().is_none_or(|best| slots.unserved() < best.unserved()) => {
                    best = Some(slots);
                }
                Ok(_) => {}
                Err(other) => problem = Problem::worse(problem, other),
            }
        }
        best.ok_or_else(|| problem.unwrap_or_else(|| unserved(format_args!("any slot"))))
    }

    async fn map_of(&self, node: Node) -> Result<Slots, Problem> {
        let link = self.link(&node)?;
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd("CLUSTER").arg("SLOTS");
        let mut answer = link.send(&pipeline).await.map_err(|problem| problem.of(&node))?;
        let reply = answer.replies.pop().unwrap_or_default();
        if let Value::ServerError(error) = &reply {
            let problem = reply::trouble(&reply).map_or_else(|| no_map(error), as_cluster);
            if problem.trouble.is_about_the_user() {
                link.forget(answer.epoch).await;
            }
            return Err(problem.of(&node));
        }
        Slots::read(reply, &node).ok_or_else(|| {
            Problem::new(Trouble::Nonsense, "the reply to CLUSTER SLOTS cannot be read").of(&node)
        })
    }

    /// The nodes to ask for the map: some known ones and some from the URL, in random order.
    fn candidates(&self) -> Vec<Node> {
        let links = self.links.lock();
        let mut nodes: Vec<Node> = links.keys().filter(|node| !self.seeds.contains(node)).cloned().collect();
        drop(links);
        let mut seeds = self.seeds.clone();
        fastrand::shuffle(&mut nodes);
        fastrand::shuffle(&mut seeds);
        nodes.truncate(ASKED_TOGETHER);
        seeds.truncate(ASKED_TOGETHER);
        nodes.extend(seeds);
        nodes
    }

    /// Drops the connections to nodes without slots.
    fn keep_links(&self, slots: &Slots) {
        let mut links = self.links.lock();
        links.retain(|node, _| slots.nodes().contains(node) || self.seeds.contains(node));
    }

    /// Records new owners of slots, and that the map may be outdated.
    pub(super) fn learn(&self, moved: Vec<(u16, Node)>) {
        if moved.is_empty() {
            return;
        }
        let mut known = self.known.lock();
        known.wrong = true;
        if let Some(slots) = &mut known.slots {
            let slots = Arc::make_mut(slots);
            for (slot, node) in &moved {
                slots.moved(*slot, node);
            }
        }
    }

    /// Marks the map as wrong.
    pub(super) fn distrust(&self) {
        self.known.lock().wrong = true;
    }
}

/// Why a node does not return its map.
fn no_map(error: &ServerError) -> Problem {
    let said = reply::said(error);
    let denied = error.code() == "NOPERM";
    Problem::new(if denied { Trouble::Denied } else { Trouble::NoCluster }, said)
}

/// Nobody in the cluster serves this now.
pub(super) fn unserved(what: std::fmt::Arguments<'_>) -> Problem {
    Problem::new(Trouble::ClusterDown, format!("no node serves {what}"))
}

/// What a single server must not say, a cluster may.
pub(super) fn as_cluster(problem: Problem) -> Problem {
    match problem.trouble {
        Trouble::IsCluster => Problem::new(Trouble::ClusterDown, problem.said),
        _ => problem,
    }
}
