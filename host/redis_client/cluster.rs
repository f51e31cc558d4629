//! A Redis Cluster: distributes a call over its nodes and follows redirections.
//!
//! A batch is split by the nodes that serve its keys. Each part is sent in pipelines of its own, all
//! nodes work concurrently, and the replies are returned in the original order. If a slot has moved
//! (`MOVED`) or is moving (`ASK`), only the affected commands follow it. The `redis` crate's cluster
//! connection sends a pipeline to one node only, and repeats all of it if one command is redirected;
//! sent one by one, each member of a room costs a queue entry and a task wake-up.
//!
//! Promises: a call ends within its timeouts. A cluster that currently does not serve a key results
//! in a [`Problem`], never in an empty reply. Commands on one key run in the given order, unless its
//! slot moves meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, ConnectionInfo, Pipeline, ServerErrorKind, Value};

use super::link::PIPELINE_LIMIT;
use super::nodes::{Nodes, as_cluster, unserved};
use super::slots::{Node, Slots, slot_of};
use super::unavailable::{Problem, Trouble};
use super::{BadUrl, Partial, Timeouts, reply, split};

/// Maximum number of redirections or retries of a command in one call; after the first few with a
/// pause. While slots move, two are common.
const REDIRECTIONS: usize = 16;
const USUAL_REDIRECTIONS: usize = 3;
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Nodes,
    timeouts: Timeouts,
    /// A key for health checks.
    sign_of_life: String,
}

/// The commands of a call that have no reply yet.
struct Open {
    commands: Vec<Cmd>,
    replies: Vec<Option<Value>>,
    /// Indexes of the commands without a reply.
    left: Vec<usize>,
    /// Overrides of the slot owner: the target of an `ASK`.
    ask: HashMap<usize, Node>,
}

impl Open {
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
type Group = (Node, bool);

/// A node's reply to one command.
enum Said {
    Answer(Value),
    Moved(Node),
    Ask(Node),
    /// Its keys are being moved.
    Again,
    /// The node cannot serve now.
    Unfit(Problem),
    /// No reply.
    Nothing(Problem),
}

impl Cluster {
    pub(super) fn new(
        seeds: Vec<ConnectionInfo>,
        timeouts: Timeouts,
        sign_of_life: &str,
    ) -> Result<Self, BadUrl> {
        let nodes = Nodes::new(seeds, timeouts.clone())?;
        Ok(Self { nodes, timeouts, sign_of_life: sign_of_life.to_owned() })
    }

    /// Changes whenever other nodes serve the slots.
    pub(super) fn epoch(&self) -> u64 {
        self.nodes.epoch()
    }

    /// Runs commands; one reply per command, in order. A reply that a node cannot serve is an error.
    pub(super) async fn run(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Problem> {
        let (commands, parts) = split::apart(commands);
        let Partial { replies, problem } = self.run_each(commands).await;
        match problem {
            Some(problem) => Err(problem),
            None => Ok(split::join(parts, replies.into_iter().map(Option::unwrap_or_default).collect())),
        }
    }

    /// Runs single-key commands as far as possible: a node that does not serve now affects only its
    /// own.
    pub(super) async fn run_each(&self, commands: Vec<Cmd>) -> Partial {
        let pipelines = commands.len().div_ceil(PIPELINE_LIMIT) as u32;
        let mut open = Open::new(commands);
        let problem = self.in_time(pipelines, self.answer(&mut open)).await.err();
        Partial { replies: open.replies, problem }
    }

    /// Checks that all nodes with slots answer, and that every slot is served.
    pub(super) async fn ping(&self) -> Result<(), Problem> {
        self.in_time(1, async {
            let mut outcome = self.all_serve().await;
            if outcome.is_err() {
                // The slot map may be outdated.
                outcome = self.all_serve().await;
            }
            outcome
        })
        .await
    }

    async fn in_time<T>(
        &self,
        pipelines: u32,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let longest = self.timeouts.connect + self.timeouts.response * pipelines.max(1);
        match tokio::time::timeout(longest, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.nodes.distrust();
                Err(Problem::new(Trouble::Slow, "its nodes did not answer in time"))
            }
        }
    }

    async fn answer(&self, open: &mut Open) -> Result<(), Problem> {
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
        Err(Problem::new(Trouble::ClusterDown, format!("redirected {REDIRECTIONS} times")))
    }

    /// Sends all open commands once. Returns the problem of a node that did not answer; its commands
    /// stay open, and other replies are recorded.
    async fn round(&self, open: &mut Open) -> Result<Option<Problem>, Problem> {
        let slots = self.nodes.slots().await?;
        let groups = self.groups(open, &slots)?;
        open.left.clear();
        open.ask.clear();
        let sent = groups.into_iter().map(|(group, indexes)| self.send(group, indexes, &open.commands));
        let outcomes = join_all(sent).await;
        let (mut moved, mut unfit, mut lost) = (Vec::new(), None, None);
        for (index, outcome) in outcomes.into_iter().flatten() {
            match outcome {
                Said::Answer(value) => {
                    open.replies[index] = Some(value);
                    continue;
                }
                Said::Moved(node) => moved.extend(slot_of(&open.commands[index]).map(|slot| (slot, node))),
                Said::Ask(node) => drop(open.ask.insert(index, node)),
                Said::Again => {}
                Said::Unfit(problem) => unfit = Problem::worse(unfit, problem),
                Said::Nothing(problem) => lost = Problem::worse(lost, problem),
            }
            open.left.push(index);
        }
        // Restore the original order, for commands on one key.
        open.left.sort_unstable();
        self.nodes.learn(moved);
        if unfit.is_some() || lost.is_some() {
            self.nodes.distrust();
        }
        unfit.map_or(Ok(lost), Err)
    }

    /// Groups the open commands by node.
    fn groups(&self, open: &Open, slots: &Slots) -> Result<BTreeMap<Group, Vec<usize>>, Problem> {
        let mut groups: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
        for &index in &open.left {
            let group = match (open.ask.get(&index), slot_of(&open.commands[index])) {
                (Some(node), _) => (node.clone(), true),
                (None, None) => (anyone(slots)?.clone(), false),
                (None, Some(slot)) => match slots.owner(slot) {
                    Some(node) => (node.clone(), false),
                    None => {
                        self.nodes.distrust();
                        return Err(unserved(format_args!("slot {slot}")));
                    }
                },
            };
            groups.entry(group).or_default().push(index);
        }
        Ok(groups)
    }

    /// Sends the commands of one group, and returns the reply to each.
    async fn send(&self, (node, asking): Group, indexes: Vec<usize>, commands: &[Cmd]) -> Vec<(usize, Said)> {
        let mut outcomes = Vec::with_capacity(indexes.len());
        for part in indexes.chunks(PIPELINE_LIMIT) {
            match self.send_part(&node, asking, part, commands).await {
                Ok(replies) => outcomes.extend(part.iter().copied().zip(replies)),
                Err(problem) => {
                    let rest = &indexes[outcomes.len()..];
                    outcomes.extend(rest.iter().map(|&index| (index, Said::Nothing(problem.clone()))));
                    break;
                }
            }
        }
        outcomes
    }

    async fn send_part(
        &self,
        node: &Node,
        asking: bool,
        part: &[usize],
        commands: &[Cmd],
    ) -> Result<Vec<Said>, Problem> {
        let link = self.nodes.link(node)?;
        let mut pipeline = Pipeline::with_capacity(part.len());
        for &index in part {
            if asking {
                pipeline.add_command(redis::cmd("ASKING"));
            }
            pipeline.add_command(commands[index].clone());
        }
        let answer = link.send(&pipeline).await.map_err(|problem| problem.of(node))?;
        // Skip the replies to ASKING.
        let (skip, step) = if asking { (1, 2) } else { (0, 1) };
        let replies = answer.replies.into_iter().skip(skip).step_by(step);
        let outcomes: Vec<Said> = replies.map(|reply| understand(reply, node)).collect();
        if outcomes.len() != part.len() {
            return Err(Problem::new(Trouble::Nonsense, "replies are missing").of(node));
        }
        let denied =
            |said: &Said| matches!(said, Said::Unfit(problem) if problem.trouble.is_about_the_user());
        if outcomes.iter().any(denied) {
            link.forget(answer.epoch).await;
        }
        Ok(outcomes)
    }

    /// Checks that all nodes with slots answer now.
    async fn all_serve(&self) -> Result<(), Problem> {
        let slots = self.nodes.slots().await?;
        if slots.unserved() > 0 {
            self.nodes.distrust();
            return Err(unserved(format_args!("{} of its slots", slots.unserved())));
        }
        let asked = slots.nodes().iter().map(|node| self.serves(node));
        let outcome: Result<(), Problem> = join_all(asked).await.into_iter().collect();
        if outcome.is_err() {
            self.nodes.distrust();
        }
        outcome
    }

    async fn serves(&self, node: &Node) -> Result<(), Problem> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("PING");
        // Any key: a node of a cluster that is down reports it instead of redirecting.
        pipeline.cmd("EXISTS").arg(&self.sign_of_life);
        let link = self.nodes.link(node)?;
        let answer = link.send(&pipeline).await.map_err(|problem| problem.of(node))?;
        for reply in answer.replies {
            if let Said::Unfit(problem) = understand(reply, node) {
                link.forget(answer.epoch).await;
                return Err(problem);
            }
        }
        Ok(())
    }
}

fn anyone(slots: &Slots) -> Result<&Node, Problem> {
    slots.nodes().first().ok_or_else(|| unserved(format_args!("any slot")))
}

fn understand(reply: Value, node: &Node) -> Said {
    let Value::ServerError(error) = &reply else { return Said::Answer(reply) };
    let target = || Node::redirected(error.details()?.split_ascii_whitespace().nth(1)?, node);
    match (error.kind(), target()) {
        (Some(ServerErrorKind::Moved), Some(to)) => Said::Moved(to),
        (Some(ServerErrorKind::Ask), Some(to)) => Said::Ask(to),
        (Some(ServerErrorKind::TryAgain), _) => Said::Again,
        // The command itself is invalid.
        (Some(ServerErrorKind::CrossSlot), _) => Said::Answer(reply),
        _ => match reply::trouble(&reply) {
            Some(problem) => Said::Unfit(as_cluster(problem).of(node)),
            None => Said::Answer(reply),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(line: &str) -> String {
        let reply = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).expect("a reply");
        match understand(reply, &Node::new("here", 1)) {
            Said::Answer(Value::ServerError(error)) => format!("refusal {}", error.code()),
            Said::Answer(_) => "answer".to_owned(),
            Said::Moved(node) => format!("moved to {node}"),
            Said::Ask(node) => format!("ask {node}"),
            Said::Again => "again".to_owned(),
            Said::Unfit(problem) => format!("{:?} {}", problem.trouble, problem.said),
            Said::Nothing(_) => unreachable!("there is a reply"),
        }
    }

    #[test]
    fn replies_of_nodes_are_understood() {
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
