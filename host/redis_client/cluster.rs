//! A Redis Cluster: distributes a call over its nodes and follows redirections.
//!
//! A batch is split by the nodes that serve its keys. Each part is sent in pipelines of its own, all
//! nodes work concurrently, and the replies are returned in the original order. If a slot has moved
//! (`MOVED`) or is moving (`ASK`), only the affected commands follow it. The `redis` crate's cluster
//! connection sends a pipeline to one node only, and repeats all of it if one command is redirected;
//! sent one by one, each member of a room costs a queue entry and a task wake-up.
//!
//! Promises: a call ends within its timeouts. A cluster that currently does not serve a key results
//! in a [`ServerFailure`], never in an empty reply. Commands on one key run in the given order, unless its
//! slot moves meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, ConnectionInfo, Pipeline, ServerErrorKind, Value};

use super::connection::PIPELINE_LIMIT;
use super::error::{ServerFailure, ServerFailureKind};
use super::lease::LeaseTerm;
use super::nodes::{ClusterNodes, as_cluster, unserved};
use super::slots::{NodeAddr, SlotMap, slot_of};
use super::{BadUrl, ConnectionLimits, PartialReplies, TrackedValue, TrackedValues, fan_out, reply};

/// Maximum number of redirections or retries of a command in one call; after the first few with a
/// pause. While slots move, two are common.
const REDIRECTIONS: usize = 16;
const USUAL_REDIRECTIONS: usize = 3;
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Cluster {
    nodes: ClusterNodes,
    timeouts: ConnectionLimits,
    /// A key for health checks.
    health_key: String,
}

/// The commands of a call that have no reply yet.
struct PendingCommands {
    commands: Vec<Cmd>,
    replies: Vec<Option<TrackedValue>>,
    /// Indexes of the commands without a reply.
    left: Vec<usize>,
    /// Overrides of the slot owner: the target of an `ASK`.
    ask: HashMap<usize, NodeAddr>,
}

impl PendingCommands {
    fn new(commands: Vec<Cmd>) -> Self {
        Self {
            replies: commands.iter().map(|_| None).collect(),
            left: (0..commands.len()).collect(),
            commands,
            ask: HashMap::new(),
        }
    }
}

/// The node for a group of commands, and whether to send `ASKING` first.
type NodeGroup = (NodeAddr, bool);

/// A node's reply to one command.
enum NodeReply {
    Reply(Value, Option<LeaseTerm>),
    Moved(NodeAddr),
    Ask(NodeAddr),
    /// Its keys are being moved.
    TryAgain,
    /// The node cannot serve now.
    CannotServe(ServerFailure),
    /// No reply.
    NoReply(ServerFailure),
}

impl Cluster {
    pub(super) fn new(
        seeds: Vec<ConnectionInfo>,
        timeouts: ConnectionLimits,
        health_key: &str,
    ) -> Result<Self, BadUrl> {
        let nodes = ClusterNodes::new(seeds, timeouts.clone())?;
        Ok(Self { nodes, timeouts, health_key: health_key.to_owned() })
    }

    /// Changes whenever other nodes serve the slots.
    pub(super) fn epoch(&self) -> u64 {
        self.nodes.epoch()
    }

    /// Runs commands; one reply per command, in order. A reply that a node cannot serve is an error.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, ServerFailure> {
        Ok(self.run_tracked(commands).await?.into_iter().map(|(reply, _)| reply).collect())
    }

    /// The same, with the term under which each reply was read.
    pub(super) async fn run_tracked(&self, commands: Vec<Cmd>) -> Result<TrackedValues, ServerFailure> {
        let (commands, parts) = fan_out::split_commands(commands);
        let (replies, problem) = self.run_all(commands).await;
        match problem {
            Some(problem) => Err(problem),
            None => Ok(fan_out::join_replies(parts, replies.into_iter().map(Option::unwrap_or_default))),
        }
    }

    /// Runs single-key commands as far as possible: a node that does not serve now affects only its
    /// own.
    pub(super) async fn run_each(&self, commands: Vec<Cmd>) -> PartialReplies {
        let (replies, problem) = self.run_all(commands).await;
        let replies = replies.into_iter().map(|reply| reply.map(|(reply, _)| reply)).collect();
        PartialReplies { replies, problem }
    }

    /// Runs a command on one of the nodes with slots; `None` if there are fewer.
    pub(super) async fn run_on_node(
        &self,
        node: usize,
        command: Cmd,
    ) -> Result<Option<Value>, ServerFailure> {
        let run = async {
            let slots = self.nodes.slots().await?;
            let Some(node) = slots.nodes().get(node) else { return Ok(None) };
            let replies = self.nodes.connection(node)?.run(vec![command]).await;
            let mut replies = replies.map_err(|problem| problem.of(node))?;
            Ok(replies.pop())
        };
        self.with_deadline(1, run).await
    }

    /// Renews the leases of all connections, and checks whether slots have moved.
    pub(super) async fn renew_leases(&self) {
        tokio::join!(self.nodes.renew_leases(), self.nodes.check_slots());
    }

    /// Renews the leases of all connections; false if one was lost.
    pub(super) async fn confirm_leases(&self) -> bool {
        self.nodes.renew_leases().await
    }

    async fn run_all(&self, commands: Vec<Cmd>) -> (Vec<Option<TrackedValue>>, Option<ServerFailure>) {
        let pipelines = commands.len().div_ceil(PIPELINE_LIMIT) as u32;
        let mut open = PendingCommands::new(commands);
        let problem = self.with_deadline(pipelines, self.answer(&mut open)).await.err();
        (open.replies, problem)
    }

    /// Checks that all nodes with slots answer, and that every slot is served.
    pub(super) async fn ping(&self) -> Result<(), ServerFailure> {
        self.with_deadline(1, async {
            let mut outcome = self.check_all_nodes().await;
            if outcome.is_err() {
                // The slot map may be outdated.
                outcome = self.check_all_nodes().await;
            }
            outcome
        })
        .await
    }

    async fn with_deadline<T>(
        &self,
        pipelines: u32,
        work: impl Future<Output = Result<T, ServerFailure>>,
    ) -> Result<T, ServerFailure> {
        let longest = self.timeouts.connect + self.timeouts.response * pipelines.max(1);
        match tokio::time::timeout(longest, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.nodes.invalidate_slots();
                Err(ServerFailure::new(ServerFailureKind::TimedOut, "its nodes did not answer in time"))
            }
        }
    }

    async fn answer(&self, open: &mut PendingCommands) -> Result<(), ServerFailure> {
        let mut lost_before = false;
        for round in 0..REDIRECTIONS {
            if open.left.is_empty() {
                return Ok(());
            }
            if round > USUAL_REDIRECTIONS {
                tokio::time::sleep(PAUSE).await;
            }
            match self.round(open).await? {
                None => {}
                // Retry once with a new map: another node may have taken over.
                Some(_) if !lost_before => lost_before = true,
                Some(problem) => return Err(problem),
            }
        }
        Err(ServerFailure::new(ServerFailureKind::ClusterDown, format!("redirected {REDIRECTIONS} times")))
    }

    /// Sends all open commands once. Returns the problem of a node that did not answer; its commands
    /// stay open, and other replies are recorded.
    async fn round(&self, open: &mut PendingCommands) -> Result<Option<ServerFailure>, ServerFailure> {
        let slots = self.nodes.slots().await?;
        let groups = self.groups(open, &slots)?;
        open.left.clear();
        open.ask.clear();
        let sent = groups.into_iter().map(|(group, indexes)| self.send(group, indexes, &open.commands));
        let outcomes = join_all(sent).await;
        let (mut moved, mut unfit, mut lost) = (Vec::new(), None, None);
        for (index, outcome) in outcomes.into_iter().flatten() {
            match outcome {
                NodeReply::Reply(value, term) => {
                    open.replies[index] = Some((value, term));
                    continue;
                }
                NodeReply::Moved(node) => {
                    moved.extend(slot_of(&open.commands[index]).map(|slot| (slot, node)))
                }
                NodeReply::Ask(node) => drop(open.ask.insert(index, node)),
                NodeReply::TryAgain => {}
                NodeReply::CannotServe(problem) => unfit = ServerFailure::more_specific(unfit, problem),
                NodeReply::NoReply(problem) => lost = ServerFailure::more_specific(lost, problem),
            }
            open.left.push(index);
        }
        // Restore the original order, for commands on one key.
        open.left.sort_unstable();
        self.nodes.apply_moved(moved);
        if unfit.is_some() || lost.is_some() {
            self.nodes.invalidate_slots();
        }
        unfit.map_or(Ok(lost), Err)
    }

    /// Groups the open commands by node.
    fn groups(
        &self,
        open: &PendingCommands,
        slots: &SlotMap,
    ) -> Result<BTreeMap<NodeGroup, Vec<usize>>, ServerFailure> {
        let mut groups: BTreeMap<NodeGroup, Vec<usize>> = BTreeMap::new();
        for &index in &open.left {
            let group = match (open.ask.get(&index), slot_of(&open.commands[index])) {
                (Some(node), _) => (node.clone(), true),
                (None, None) => (any_node(slots)?.clone(), false),
                (None, Some(slot)) => match slots.owner(slot) {
                    Some(node) => (node.clone(), false),
                    None => {
                        self.nodes.invalidate_slots();
                        return Err(unserved(format_args!("slot {slot}")));
                    }
                },
            };
            groups.entry(group).or_default().push(index);
        }
        Ok(groups)
    }

    /// Sends the commands of one group, and returns the reply to each.
    async fn send(
        &self,
        (node, asking): NodeGroup,
        indexes: Vec<usize>,
        commands: &[Cmd],
    ) -> Vec<(usize, NodeReply)> {
        let mut outcomes = Vec::with_capacity(indexes.len());
        for part in indexes.chunks(PIPELINE_LIMIT) {
            match self.send_part(&node, asking, part, commands).await {
                Ok(replies) => outcomes.extend(part.iter().copied().zip(replies)),
                Err(problem) => {
                    let rest = &indexes[outcomes.len()..];
                    outcomes.extend(rest.iter().map(|&index| (index, NodeReply::NoReply(problem.clone()))));
                    break;
                }
            }
        }
        outcomes
    }

    async fn send_part(
        &self,
        node: &NodeAddr,
        asking: bool,
        part: &[usize],
        commands: &[Cmd],
    ) -> Result<Vec<NodeReply>, ServerFailure> {
        let connection = self.nodes.connection(node)?;
        let mut pipeline = Pipeline::with_capacity(part.len());
        for &index in part {
            if asking {
                pipeline.add_command(redis::cmd("ASKING"));
            }
            pipeline.add_command(commands[index].clone());
        }
        let answer = connection.send(&pipeline).await.map_err(|problem| problem.of(node))?;
        // Skip the replies to ASKING.
        let (skip, step) = if asking { (1, 2) } else { (0, 1) };
        let replies = answer.replies.into_iter().skip(skip).step_by(step);
        // A key that is being moved is not tracked: the next one to change it is another node.
        let term = answer.term.filter(|_| !asking);
        let outcomes: Vec<NodeReply> = replies.map(|reply| classify(reply, node, term.as_ref())).collect();
        if outcomes.len() != part.len() {
            return Err(ServerFailure::new(ServerFailureKind::Malformed, "replies are missing").of(node));
        }
        let denied = |message: &NodeReply| matches!(message, NodeReply::CannotServe(problem) if problem.failure.is_about_the_user());
        if outcomes.iter().any(denied) {
            connection.invalidate(answer.epoch).await;
        }
        Ok(outcomes)
    }

    /// Checks that all nodes with slots answer now.
    async fn check_all_nodes(&self) -> Result<(), ServerFailure> {
        let slots = self.nodes.slots().await?;
        if slots.unserved() > 0 {
            self.nodes.invalidate_slots();
            return Err(unserved(format_args!("{} of its slots", slots.unserved())));
        }
        let asked = slots.nodes().iter().map(|node| self.check_node(node));
        let outcome: Result<(), ServerFailure> = join_all(asked).await.into_iter().collect();
        if outcome.is_err() {
            self.nodes.invalidate_slots();
        }
        outcome
    }

    async fn check_node(&self, node: &NodeAddr) -> Result<(), ServerFailure> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("PING");
        // Any key: a node of a cluster that is down reports it instead of redirecting.
        pipeline.cmd("EXISTS").arg(&self.health_key);
        let connection = self.nodes.connection(node)?;
        let answer = connection.send(&pipeline).await.map_err(|problem| problem.of(node))?;
        for reply in answer.replies {
            if let NodeReply::CannotServe(problem) = classify(reply, node, None) {
                connection.invalidate(answer.epoch).await;
                return Err(problem);
            }
        }
        Ok(())
    }
}

fn any_node(slots: &SlotMap) -> Result<&NodeAddr, ServerFailure> {
    slots.nodes().first().ok_or_else(|| unserved(format_args!("any slot")))
}

fn classify(reply: Value, node: &NodeAddr, term: Option<&LeaseTerm>) -> NodeReply {
    let Value::ServerError(error) = &reply else { return NodeReply::Reply(reply, term.cloned()) };
    let target = || NodeAddr::redirected(error.details()?.split_ascii_whitespace().nth(1)?, node);
    match (error.kind(), target()) {
        (Some(ServerErrorKind::Moved), Some(to)) => NodeReply::Moved(to),
        (Some(ServerErrorKind::Ask), Some(to)) => NodeReply::Ask(to),
        (Some(ServerErrorKind::TryAgain), _) => NodeReply::TryAgain,
        // The command itself is invalid.
        (Some(ServerErrorKind::CrossSlot), _) => NodeReply::Reply(reply, None),
        _ => match reply::failure(&reply) {
            Some(problem) => NodeReply::CannotServe(as_cluster(problem).of(node)),
            None => NodeReply::Reply(reply, None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(line: &str) -> String {
        let reply = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).expect("a reply");
        match classify(reply, &NodeAddr::new("here", 1), None) {
            NodeReply::Reply(Value::ServerError(error), _) => format!("refusal {}", error.code()),
            NodeReply::Reply(..) => "answer".to_owned(),
            NodeReply::Moved(node) => format!("moved to {node}"),
            NodeReply::Ask(node) => format!("ask {node}"),
            NodeReply::TryAgain => "again".to_owned(),
            NodeReply::CannotServe(problem) => format!("{:?} {}", problem.failure, problem.message),
            NodeReply::NoReply(_) => unreachable!("there is a reply"),
        }
    }

    #[test]
    fn replies_of_nodes_are_classified() {
        for (line, meaning) in [
            ("+OK", "answer"),
            ("-WRONGTYPE of another kind", "refusal WRONGTYPE"),
            ("-CROSSSLOT of several keys", "refusal CROSSSLOT"),
            ("-MOVED 3999 there:2", "moved to there:2"),
            ("-MOVED 3999 :2", "moved to here:2"),
            ("-ASK 3999 ::1:2", "ask ::1:2"),
            ("-TRYAGAIN of several keys", "again"),
            ("-CLUSTERDOWN it is", "ClusterDown here:1: CLUSTERDOWN it is"),
            ("-MOVED nonsense", "ClusterDown here:1: MOVED nonsense"),
            ("-LOADING it is", "NotReady here:1: LOADING it is"),
        ] {
            assert_eq!(classified(line), meaning, "{line}");
        }
    }
}
