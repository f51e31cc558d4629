//! Splits commands that a cluster cannot answer in one piece, and joins the replies.
//!
//! The keys of an `MGET` may live on different nodes: it becomes one `MGET` per key, which still
//! returns nil for a key of the wrong type.

use redis::{Cmd, Value};

use super::slots::word;
use super::{TrackedValue, TrackedValues};

/// Splits commands into single-key ones. Also returns the input of [`join_replies`]: for each command the
/// number of its parts, or `None` if it was not split.
pub(super) fn split_commands(given: Vec<Cmd>) -> (Vec<Cmd>, Vec<Option<usize>>) {
    let (mut commands, mut parts) = (Vec::with_capacity(given.len()), Vec::with_capacity(given.len()));
    for command in given {
        let keys = keys_of_mget(&command);
        parts.push(keys.as_ref().map(Vec::len));
        match keys {
            Some(keys) => commands.extend(keys.into_iter().map(|key| redis::cmd("MGET").arg(key).take())),
            None => commands.push(command),
        }
    }
    (commands, parts)
}

/// The replies to the original commands, from the replies to their parts. The parts of a command have no
/// term in common.
pub(super) fn join_replies(
    parts: Vec<Option<usize>>,
    replies: impl IntoIterator<Item = TrackedValue>,
) -> TrackedValues {
    let mut replies = replies.into_iter();
    let mut joined = Vec::with_capacity(parts.len());
    for count in parts {
        joined.push(match count {
            None => replies.next().unwrap_or_default(),
            Some(count) => (one(replies.by_ref().take(count).map(|(reply, _)| reply)), None),
        });
    }
    joined
}

/// The keys of an `MGET` with several keys.
fn keys_of_mget(command: &Cmd) -> Option<Vec<Vec<u8>>> {
    let mut words = command.args_iter().map(word);
    let is_mget = words.next()?.eq_ignore_ascii_case(b"MGET");
    (is_mget && words.len() > 1).then(|| words.map(<[u8]>::to_vec).collect())
}

/// Joins several lists, or returns the first refusal.
fn one(replies: impl Iterator<Item = Value>) -> Value {
    let (mut values, mut refused) = (Vec::new(), None);
    for reply in replies {
        match reply {
            Value::Array(part) => values.extend(part),
            other => refused = refused.or(Some(other)),
        }
    }
    refused.unwrap_or(Value::Array(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(commands: &[Cmd]) -> Vec<Vec<u8>> {
        commands.iter().map(Cmd::get_packed_command).collect()
    }

    fn joined_values(parts: Vec<Option<usize>>, replies: Vec<Value>) -> Vec<Value> {
        let replies = replies.into_iter().map(|reply| (reply, None));
        join_replies(parts, replies).into_iter().map(|(reply, _)| reply).collect()
    }

    #[test]
    fn an_mget_is_split_and_its_replies_are_joined() {
        let get = redis::cmd("GET").arg("a").take();
        let mget = redis::cmd("mget").arg("a").arg("b").arg("c").take();
        let (commands, parts) = split_commands(vec![get.clone(), mget, get.clone()]);
        let single = |key: &str| redis::cmd("MGET").arg(key).take();
        let expected = [get.clone(), single("a"), single("b"), single("c"), get];
        assert_eq!(words(&commands), words(&expected));

        let list = |number| Value::Array(vec![Value::Int(number)]);
        let replies = vec![Value::Int(0), list(1), Value::Array(vec![Value::Nil]), list(3), Value::Int(4)];
        let joined: Vec<Value> = joined_values(parts, replies);
        let middle = Value::Array(vec![Value::Int(1), Value::Nil, Value::Int(3)]);
        assert_eq!(joined, [Value::Int(0), middle, Value::Int(4)]);
    }

    #[test]
    fn a_refused_part_refuses_the_whole() {
        let refusal = Value::Int(7);
        let replies = vec![Value::Array(vec![]), refusal.clone(), Value::Array(vec![])];
        assert_eq!(joined_values(vec![Some(3)], replies), [refusal]);
    }
}
