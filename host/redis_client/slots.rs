//! The slot map of a cluster, and the slot of a command.
//!
//! Source: the Redis Cluster specification. A key's slot is the CRC-16 (XMODEM) of its hash tag, or
//! else of the whole key, modulo 16,384.

use std::collections::BTreeSet;
use std::sync::Arc;

use crc::{CRC_16_XMODEM, Crc};
use redis::{Arg, Cmd, Value};

use super::reply::{elements, text};

/// The checksum of keys.
const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
/// The number of slots of every cluster.
const COUNT: usize = 16_384;
/// Commands without a key, which any node can answer; all other commands of Halley have their key as
/// the first argument, or after a subcommand.
const WITHOUT_KEY: [&str; 7] = ["PING", "ECHO", "ACL", "CLIENT", "CLUSTER", "CONFIG", "INFO"];
/// Commands whose first argument is a subcommand.
const WITH_SUBCOMMAND: [&str; 2] = ["XINFO", "MEMORY"];

/// The address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
#[display("{host}:{port}")]
pub(super) struct NodeAddr {
    pub(super) host: Arc<str>,
    pub(super) port: u16,
}

impl NodeAddr {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Parses the `host:port` of a redirection. An empty host is that of the redirecting node.
    pub(super) fn redirected(address: &str, by: &Self) -> Option<Self> {
        let (host, port) = address.rsplit_once(':')?;
        let host = if host.is_empty() { by.host.clone() } else { host.into() };
        Some(Self { host, port: port.parse().ok()? })
    }
}

/// The slot map as one node reported it, with later corrections.
#[derive(Clone, PartialEq, Eq, derive_more::Debug)]
#[debug("Slots of {nodes:?}, {} unserved", self.unserved())]
pub(super) struct SlotMap {
    nodes: Vec<NodeAddr>,
    /// For each slot an index into `nodes`, plus one; 0 if unserved.
    owners: Vec<u16>,
}

impl SlotMap {
    /// Parses this node's reply to `CLUSTER SLOTS`; `None` if it is something else.
    pub(super) fn read(reply: Value, asked: &NodeAddr) -> Option<Self> {
        let Value::Array(ranges) = reply else { return None };
        let mut slots = Self { nodes: Vec::new(), owners: vec![0; COUNT] };
        for range in ranges {
            let mut parts = elements(range).into_iter();
            let (first, last) = (slot(parts.next())?, slot(parts.next())?);
            // The first node of a range is the primary, the others are replicas.
            let mut primary = elements(parts.next()?).into_iter();
            let host = primary.next().map(text)?.filled();
            // A node may not know its own host: use the one that we connected to.
            let host = host.filter(|host| host != "?").unwrap_or_else(|| asked.host.to_string());
            let Some(Value::Int(port)) = primary.next() else { return None };
            let owner = slots.index(&NodeAddr::new(&host, u16::try_from(port).ok()?));
            slots.owners.get_mut(first..=last)?.fill(owner);
        }
        Some(slots)
    }

    /// The node that serves a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&NodeAddr> {
        let owner = usize::from(*self.owners.get(usize::from(slot))?);
        self.nodes.get(owner.checked_sub(1)?)
    }

    /// Records that a slot has moved.
    pub(super) fn moved(&mut self, slot: u16, to: &NodeAddr) {
        let owner = self.index(to);
        if let Some(entry) = self.owners.get_mut(usize::from(slot)) {
            *entry = owner;
        }
    }

    /// The nodes that served slots which another one serves according to this map.
    pub(super) fn losers(&self, newer: &Self) -> Vec<NodeAddr> {
        let mut losers = BTreeSet::new();
        for (owner, now) in self.owners.iter().zip(&newer.owners) {
            if *owner == 0 || losers.contains(owner) {
                continue;
            }
            let node =
                |slots: &Self, owner: u16| slots.nodes.get(usize::from(owner).checked_sub(1)?).cloned();
            if node(self, *owner) != node(newer, *now) {
                losers.insert(*owner);
            }
        }
        losers.into_iter().filter_map(|owner| self.nodes.get(usize::from(owner) - 1).cloned()).collect()
    }

    /// All nodes with slots.
    pub(super) fn nodes(&self) -> &[NodeAddr] {
        &self.nodes
    }

    /// The number of unserved slots.
    pub(super) fn unserved(&self) -> usize {
        self.owners.iter().filter(|owner| **owner == 0).count()
    }

    fn index(&mut self, node: &NodeAddr) -> u16 {
        let known = self.nodes.iter().position(|known| known == node);
        let index = known.unwrap_or_else(|| {
            self.nodes.push(node.clone());
            self.nodes.len() - 1
        });
        // There are no more nodes than slots.
        index as u16 + 1
    }
}

/// The slot of a command; `None` if any node can answer it.
pub(super) fn slot_of(command: &Cmd) -> Option<u16> {
    let mut words = command.args_iter();
    let name = word(words.next()?);
    let is_one_of = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
    if is_one_of(&WITHOUT_KEY) {
        return None;
    }
    if is_one_of(&WITH_SUBCOMMAND) {
        words.next();
    }
    words.next().map(|key| slot_of_key(word(key)))
}

/// An argument of a command as bytes.
pub(super) fn word(argument: Arg<&[u8]>) -> &[u8] {
    match argument {
        Arg::Simple(bytes) => bytes,
        _ => b"0",
    }
}

fn slot_of_key(key: &[u8]) -> u16 {
    CRC16.checksum(hash_tag(key).unwrap_or(key)) % COUNT as u16
}

/// The part between the first `{` and the next `}`, unless it is empty.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let behind = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
    let tag = &behind[..behind.iter().position(|byte| *byte == b'}')?];
    (!tag.is_empty()).then_some(tag)
}

fn slot(value: Option<Value>) -> Option<usize> {
    match value {
        Some(Value::Int(slot)) => usize::try_from(slot).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_slots_of_the_specification() {
        // As `CLUSTER KEYSLOT` answers.
        for (key, slot) in [("foo", 12182), ("bar", 5061), ("", 0), ("foo{}{bar}", 8363), ("x{foo}y}", 12182)]
        {
            assert_eq!(slot_of_key(key.as_bytes()), slot, "{key}");
        }
        assert_eq!(slot_of_key(b"{unclosed"), CRC16.checksum(b"{unclosed") % 16_384);
        assert_eq!(slot_of(redis::cmd("GET").arg("foo")), Some(12182));
        assert_eq!(slot_of(redis::cmd("XINFO").arg("STREAM").arg("foo")), Some(12182));
        assert_eq!(slot_of(redis::cmd("MEMORY").arg("USAGE").arg("foo")), Some(12182));
        assert_eq!(slot_of(redis::cmd("echo").arg("foo")), None);
        assert_eq!(slot_of(&redis::cmd("PING")), None);
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = |port| Value::Array(vec![host.clone(), Value::Int(port), Value::Nil]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node(port), node(port + 1)])
    }

    #[test]
    fn a_slot_map_is_parsed_and_corrected() {
        let asked = NodeAddr::new("seed", 1);
        let host = |host: &str| Value::BulkString(host.as_bytes().to_vec());
        let ranges =
            [range(0, 99, host("a"), 1), range(200, 299, host("a"), 1), range(300, 16_383, Value::Nil, 2)];
        let mut slots = SlotMap::read(Value::Array(ranges.to_vec()), &asked).expect("reads");
        assert_eq!(slots.nodes(), [NodeAddr::new("a", 1), NodeAddr::new("seed", 2)]);
        assert_eq!(slots.unserved(), 100);
        assert_eq!(slots.owner(99), Some(&NodeAddr::new("a", 1)));
        assert_eq!((slots.owner(100), slots.owner(199)), (None, None));
        slots.moved(100, &NodeAddr::redirected("::1:7", &asked).expect("reads"));
        slots.moved(101, &NodeAddr::redirected(":8", &asked).expect("reads"));
        assert_eq!(slots.owner(100), Some(&NodeAddr::new("::1", 7)));
        assert_eq!(slots.owner(101), Some(&NodeAddr::new("seed", 8)));
    }

    #[test]
    fn nodes_that_lost_slots_are_found_whatever_their_order() {
        let asked = NodeAddr::new("seed", 1);
        let host = |host: &str| Value::BulkString(host.as_bytes().to_vec());
        let read = |ranges: &[Value]| SlotMap::read(Value::Array(ranges.to_vec()), &asked).expect("reads");
        let ranges = [range(0, 99, host("a"), 1), range(100, 16_383, host("b"), 1)];
        let before = read(&ranges);
        let [first, second] = ranges;
        assert_eq!(before.losers(&read(&[second.clone(), first])), []);
        assert_eq!(before.losers(&read(&[range(0, 98, host("a"), 1), second])), [NodeAddr::new("a", 1)]);
        let mut after = before.clone();
        after.moved(100, &NodeAddr::new("a", 1));
        assert_eq!(before.losers(&after), [NodeAddr::new("b", 1)]);
        assert_eq!(after.losers(&before), [NodeAddr::new("a", 1)]);
    }

    #[test]
    fn malformed_replies_are_not_a_slot_map() {
        let asked = NodeAddr::new("seed", 1);
        let text = || Value::BulkString(b"x".to_vec());
        for nonsense in [
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16_384, text(), 1)]),
            Value::Array(vec![range(5, -1, text(), 1)]),
            Value::Array(vec![range(9, 3, text(), 1)]),
            Value::Array(vec![range(0, 1, text(), 70_000)]),
        ] {
            assert_eq!(SlotMap::read(nonsense.clone(), &asked), None, "{nonsense:?}");
        }
        assert_eq!(NodeAddr::redirected("nowhere", &asked), None);
    }
}
