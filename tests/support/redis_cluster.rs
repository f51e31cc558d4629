//! A real Redis Cluster: some primaries, with or without one replica each.
//!
//! Also included by the unit tests of `host/redis_client`.

use std::process::Command;

use redis::{Cmd, FromRedisValue, RedisResult};

use super::redis_nodes::{Entries, RedisNode, command, free_port, joining, soon};

/// A running cluster; it ends with this value.
pub struct RedisCluster {
    nodes: Vec<RedisNode>,
}

impl RedisCluster {
    /// Starts three primaries.
    pub async fn start() -> Self {
        // There is no failover: a slow node on a busy machine must not be declared dead.
        Self::start_with(3, 0, "10000", &[]).await
    }

    /// Starts three primaries with one replica each, which takes over within seconds.
    pub async fn start_with_replicas() -> Self {
        Self::start_with(3, 1, "1000", &[]).await
    }

    /// Starts this many primaries, each with this many replicas, with additional arguments.
    pub async fn start_with(primaries: usize, replicas: usize, timeout: &str, args: &[&str]) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..primaries * (1 + replicas) {
            let bus = free_port().to_string();
            let cluster =
                ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", timeout];
            let haste = ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"];
            let mut node = RedisNode::new(&[&cluster[..], &haste, args].concat());
            node.start().await;
            nodes.push(node);
        }
        let cluster = Self { nodes };
        cluster.create(replicas);
        cluster.wait_until_ready(primaries * (1 + replicas)).await;
        cluster
    }

    fn create(&self, replicas: usize) {
        let addresses: Vec<String> = self.nodes.iter().map(RedisNode::address).collect();
        let mut cli = Command::new("redis-cli");
        cli.args(["--cluster", "create"]).args(addresses);
        cli.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let output = cli.output().expect("tests need redis-cli in the PATH");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    async fn wait_until_ready(&self, nodes: usize) {
        for node in &self.nodes {
            soon(format_args!("cluster node {}", node.address()), async || {
                let facts = node.facts(&["CLUSTER", "INFO"]).await;
                let replication = node.facts(&["INFO", "replication"]).await;
                let synchronised = replication.get("master_link_status").is_none_or(|status| status == "up");
                let known = facts.get("cluster_known_nodes").is_some_and(|known| *known == nodes.to_string());
                let ok = facts.get("cluster_state").is_some_and(|state| state == "ok");
                (synchronised && known && ok).then_some(())
            })
            .await;
        }
    }

    /// For `[redis] url`, with all nodes.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(RedisNode::address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    /// The nodes; the initial primaries come first.
    pub fn nodes(&self) -> &[RedisNode] {
        &self.nodes
    }

    /// One of the nodes.
    pub fn node(&mut self, index: usize) -> &mut RedisNode {
        &mut self.nodes[index]
    }

    /// The index of the node that serves this key's slot.
    pub async fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key).await;
        soon(format_args!("an owner of slot {slot}"), async || self.owner_of(slot).await).await
    }

    /// The slot of a key.
    pub async fn slot(&self, key: &str) -> u16 {
        let node = self.nodes.iter().find(|node| node.is_running()).expect("some node runs");
        node.tell(&["CLUSTER", "KEYSLOT", key]).await
    }

    /// The index of the node that claims this slot.
    pub async fn owner_of(&self, slot: u16) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
            let text = node.ask::<String>(&["CLUSTER", "NODES"]).await.unwrap_or_default();
            let Some(own) = text.lines().find(|line| line.contains("myself")) else { continue };
            if own.contains("master") && own.split(' ').skip(8).any(|range| holds(range, slot)) {
                return Some(index);
            }
        }
        None
    }

    /// Starts moving a slot: both nodes serve their part of it from now on.
    pub async fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let slot = slot.to_string();
        target.tell::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(source).await]).await;
        source.tell::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(target).await]).await;
    }

    /// Moves up to this many of the slot's keys; returns how many were moved.
    pub async fn move_keys(&self, slot: u16, from: usize, to: usize, count: usize) -> usize {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let question = ["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), &count.to_string()];
        let keys: Vec<Vec<u8>> = source.tell(&question).await;
        if keys.is_empty() {
            return 0;
        }
        let mut migrate =
            command(&["MIGRATE", "127.0.0.1", &target.port().to_string(), "", "0", "5000", "KEYS"]);
        migrate.arg(&keys);
        source.run::<()>(&migrate).await.expect("keys migrate");
        keys.len()
    }

    /// Assigns the slot to the new node. Only these two nodes are informed; the others learn it by gossip.
    pub async fn end_move(&self, slot: u16, from: usize, to: usize) {
        let new = id(&self.nodes[to]).await;
        for node in [to, from] {
            self.nodes[node].tell::<()>(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &new]).await;
        }
    }

    /// Moves a slot key by key.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to).await;
        while self.move_keys(slot, from, to, 10).await > 0 {}
        self.end_move(slot, from, to).await;
    }

    /// Kills the node that serves this key's slot, and returns its index.
    pub async fn kill_owner(&mut self, key: &str) -> usize {
        let owner = self.owner(key).await;
        self.nodes[owner].kill();
        owner
    }

    /// Runs a command on the node that serves its key; follows redirections, and waits while the key
    /// is moving or unserved.
    pub async fn run<T: FromRedisValue>(&self, command: Cmd) -> T {
        soon(format_args!("an answer of the cluster to {command:?}"), async || {
            match self.follow(&command).await {
                Ok(value) => Some(value),
                Err(error) if error.is_io_error() || error.code().is_some_and(is_passing) => None,
                Err(error) => panic!("{}: {error}", self.url()),
            }
        })
        .await
    }

    async fn follow<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let mut at = self.nodes.iter().find(|node| node.is_running()).expect("some node runs");
        for _ in 0..8 {
            let error = match at.run::<T>(command).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let asking = error.code() == Some("ASK");
            let to = error.redirect_node().map(|(address, _)| address.to_owned());
            let Some(to) = to.and_then(|to| self.nodes.iter().find(|node| node.address() == to)) else {
                return Err(error);
            };
            at = to;
            if asking {
                let mut both = redis::pipe();
                both.cmd("ASKING").ignore().add_command(command.clone());
                return at.run_all::<(T,)>(&both).await.map(|(value,)| value);
            }
        }
        at.run(command).await
    }

    /// A comet accepts a connection of a user to a room; the user is online.
    pub async fn join(&self, room: &str, connection: &str, user: &str, comet: impl std::fmt::Display) {
        self.join_many(room, &[(connection.to_owned(), user.to_owned(), comet.to_string())]).await;
    }

    /// The same for many connections (id, user, comet), one after another.
    pub async fn join_many(&self, room: &str, connections: &[(String, String, String)]) {
        for (connection, user, comet) in connections {
            for command in joining(room, connection, user, comet) {
                self.run::<redis::Value>(command).await;
            }
        }
    }

    /// A user is offline.
    pub async fn offline(&self, user: &str) {
        self.run::<()>(Cmd::del(format!("user:online:{user}"))).await;
    }

    /// The entries of a stream as (field, value) pairs, oldest first; the inbox is one.
    pub async fn stream(&self, key: &str) -> Vec<Vec<(String, Vec<u8>)>> {
        let entries: Entries = self.run(command(&["XRANGE", key, "-", "+"])).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }
}

async fn id(node: &RedisNode) -> String {
    node.tell(&["CLUSTER", "MYID"]).await
}

/// Whether a range of `CLUSTER NODES` holds a slot: `7`, `0-99`, but not `[7->-...]`.
fn holds(range: &str, slot: u16) -> bool {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
}

fn is_passing(code: &str) -> bool {
    matches!(code, "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "LOADING" | "MASTERDOWN")
}
