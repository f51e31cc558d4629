//! Fuzzing: look-ups with arbitrary replies.

use std::collections::HashSet;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use redis::Value;

use super::batch::{room_replies, sort_refused};
use super::replies::{ReplyReader, SecondReply, users};
use super::{DirectoryReply, Lookup, Metrics};
use crate::membership::Connection;
use crate::redis_client::elements;
use crate::redis_client::fuzzing::{client, replies, texts};

/// Checks that any replies lead to one result per look-up, and only to names in the replies.
pub(crate) fn check(input: &mut Unstructured<'_>) -> Result<()> {
    let lookups = lookups(input)?;
    let (first, second) = (replies(input, 3)?, replies(input, 2)?);
    let infos = if input.arbitrary()? { Some(replies(input, 2)?) } else { None };
    let mut known = HashSet::new();
    [Some(&first), Some(&second), infos.as_ref()]
        .into_iter()
        .flatten()
        .flatten()
        .for_each(|reply| texts(reply, &mut known));
    known.extend(lookups.iter().filter_map(|lookup| match lookup {
        Lookup::Key(key) => Some(key.to_string()),
        Lookup::Room(_) => None,
    }));

    let _ = sort_refused(&lookups, &first);
    // In a scan's reply, the members are a nested list.
    let size = |reply: Value| {
        let parts = elements(reply);
        parts.len() + parts.into_iter().map(|part| elements(part).len()).sum::<usize>()
    };
    let most = room_replies(&lookups, &first).cloned().map(size).sum::<usize>();
    let Some(found) = answers(&lookups, first, second, infos) else { return Ok(()) };
    assert_eq!(found.len(), lookups.len(), "one answer for each look-up");
    let mut members = 0;
    for (lookup, found) in lookups.iter().zip(found) {
        match (lookup, found) {
            (Lookup::Room(_), DirectoryReply::Room(reading)) => {
                let room = Arc::unwrap_or_clone(reading.membership);
                members += room.members.len() + room.stale;
                for member in room.members {
                    let comet = room.comets[member.comet as usize].clone();
                    let (id, user, online) = (member.id, member.user, member.online);
                    check_connection(&Connection { id, user, comet, online }, &known);
                }
            }
            (Lookup::Key(_), DirectoryReply::Key(found)) => {
                found.iter().for_each(|found| check_connection(found, &known))
            }
            (lookup, found) => panic!("{found:?} for {lookup:?}"),
        }
    }
    assert!(members <= most, "{members} members from replies with {most} elements");
    Ok(())
}

/// The results of a look-up with these replies; `None` if it fails.
fn answers(
    lookups: &[Lookup],
    first: Vec<Value>,
    second: Vec<Value>,
    infos: Option<Vec<Value>>,
) -> Option<Vec<DirectoryReply>> {
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let directory = ReplyReader::new(client(), metrics);
    let firsts = directory.parse_first(lookups, first, infos).ok()?;
    let not_online = directory.not_online(users(&firsts), second.clone()).ok()?;
    let mut second = SecondReply { not_online, infos: second.into_iter() };
    firsts.into_iter().map(|first| directory.found(first, &mut second)).collect()
}

fn check_connection(found: &Connection, known: &HashSet<String>) {
    let names =
        [Some(found.id.as_str()), Some(found.comet.as_str()), found.user.as_ref().map(|user| user.as_str())];
    for name in names.into_iter().flatten() {
        assert!(!name.is_empty() && known.contains(name), "nobody named {name:?}: {found:?}");
    }
}

fn lookups(input: &mut Unstructured<'_>) -> Result<Vec<Lookup>> {
    let mut lookups = Vec::new();
    for _ in 0..input.int_in_range(1..=4)? {
        let name = input.arbitrary::<&str>()?;
        // Rooms and keys have no empty names: decoding rejects them.
        let name = if name.is_empty() { "x" } else { name };
        lookups.push(if input.arbitrary()? {
            Lookup::Room(name.into())
        } else {
            Lookup::Key(Arc::from(name))
        });
    }
    Ok(lookups)
}
