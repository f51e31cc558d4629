//! Commands of one batch of look-ups, and the mapping of replies to look-ups.

use redis::{Cmd, Value};

use super::Lookup;
use super::room_query;
use crate::redis_client::denial;

/// One command for a room, two for a key.
pub(super) fn commands(lookups: &[Lookup], room: fn(&str) -> Cmd) -> Vec<Cmd> {
    let mut commands = Vec::with_capacity(lookups.len());
    for lookup in lookups {
        match lookup {
            Lookup::Room(id) => commands.push(room(id.as_str())),
            Lookup::Key(key) => {
                commands.push(room_query::connection_info(key.as_bytes()));
                commands.push(room_query::user_online(key));
            }
        }
    }
    commands
}

/// The replies for rooms among the replies to [`commands`].
pub(super) fn room_replies<'a>(
    lookups: &'a [Lookup],
    replies: &'a [Value],
) -> impl Iterator<Item = &'a Value> {
    let mut replies = replies.iter();
    lookups.iter().filter_map(move |lookup| match lookup {
        Lookup::Room(_) => replies.next(),
        Lookup::Key(_) => {
            replies.next();
            replies.next();
            None
        }
    })
}

/// The server's message if it refuses `SORT_RO` itself, for any key.
pub(super) fn sort_refused(lookups: &[Lookup], replies: &[Value]) -> Option<String> {
    room_replies(lookups, replies).find_map(denial)
}

/// A member's id as bytes.
pub(super) fn bytes(value: &Value) -> &[u8] {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.as_bytes(),
        _ => b"",
    }
}
