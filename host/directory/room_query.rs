//! How rooms are read from the server: commands and parsing of replies.
//!
//! `SORT_RO` returns a room's members with comet and user in one command, but requires Redis 7 and an
//! ACL that allows reading every key. `SSCAN` followed by one `HMGET` per member works everywhere and
//! takes another round trip.
//!
//! Either command returns about [`MOST`] members at most, because it blocks Redis' other clients.
//! Larger rooms are read in pages.

use std::collections::HashMap;

use redis::{Cmd, Value};

use crate::message::{CometAddr, ConnectionId, UserId};
use crate::redis_client::{TextReply, elements, text};

/// Maximum number of members that are read with one command: about 5 ms of Redis' time.
pub(super) const MOST: usize = 5_000;

/// The prefix of the keys that list the members of rooms.
pub const ROOM_KEYS: &str = "room:connections:";

/// Maximum length of a valid `comet_id`: a server name or an address.
const LONGEST_COMET: usize = 1024;

/// A way to read rooms.
#[derive(Debug, Clone, PartialEq, Eq, derive_more::Display)]
pub(super) enum RoomQuery {
    /// `SORT_RO` with `GET` patterns.
    #[display("rooms are read with SORT_RO, one command each")]
    SortRo,
    /// `SSCAN`, then `HMGET`; with the reason why `SORT_RO` is not used.
    #[display(
        "rooms are read with SSCAN + HMGET, which takes a round trip more (the server refuses SORT_RO: {_0})"
    )]
    SscanHmget(String),
}

/// A connection as stored in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConnectionRow {
    pub(super) id: ConnectionId,
    pub(super) comet: CometAddr,
    pub(super) user: Option<UserId>,
}

/// The members of a room.
#[derive(Debug, Default)]
pub(super) struct RoomMembers {
    pub(super) connections: Vec<ConnectionRow>,
    /// Members without a connection.
    pub(super) stale: usize,
}

impl RoomMembers {
    /// Adds a member by its id, `comet_id` and `user_id`.
    fn add(&mut self, comets: &mut AddressInterner, id: TextReply, comet: TextReply, user: TextReply) {
        match describe(comets, id, comet, user) {
            Some(connection) => self.connections.push(connection),
            None => self.stale += 1,
        }
    }
}

/// Interned addresses of one batch: members on one comet share a string.
#[derive(Debug, Default)]
pub(super) struct AddressInterner(HashMap<String, CometAddr>);

impl AddressInterner {
    fn shared(&mut self, address: String) -> CometAddr {
        if let Some(known) = self.0.get(&address) {
            return known.clone();
        }
        let comet = CometAddr::from(address.as_str());
        self.0.insert(address, comet.clone());
        comet
    }
}

/// `None` if it is stale: no id, no comet, or invalid UTF-8.
fn describe(
    comets: &mut AddressInterner,
    id: TextReply,
    comet: TextReply,
    user: TextReply,
) -> Option<ConnectionRow> {
    if user == TextReply::NotUtf8 {
        return None;
    }
    let (id, comet) = (id.filled()?, comet.filled()?);
    if comet.len() > LONGEST_COMET {
        return None;
    }
    Some(ConnectionRow { id: id.into(), comet: comets.shared(comet), user: user.filled().map(UserId::from) })
}

/// Reads a room with one command, up to one member more than [`MOST`]. Only the member replaces the
/// pattern's `*`, so a `*` in the room's id is literal.
pub(super) fn sort_ro(room: &str) -> Cmd {
    let mut command = redis::cmd("SORT_RO");
    command.arg(room_key(room)).arg("BY").arg("nosort").arg("LIMIT").arg(0).arg(MOST + 1);
    for pattern in ["#", "connection:info:*->comet_id", "connection:info:*->user_id"] {
        command.arg("GET").arg(pattern);
    }
    command
}

/// The ids of a room's members: all of them, unless there are more than [`MOST`].
pub(super) fn first_members(room: &str) -> Cmd {
    sscan(room, b"0", MOST)
}

/// About `count` ids of a room's members, from this cursor.
pub(super) fn sscan(room: &str, cursor: &[u8], count: usize) -> Cmd {
    redis::cmd("SSCAN").arg(room_key(room)).arg(cursor).arg("COUNT").arg(count).take()
}

/// The reply to [`sscan`]: the next cursor (`None` at the end) and the ids.
pub(super) fn scanned(reply: Value) -> (Option<Vec<u8>>, Vec<Value>) {
    let mut parts = elements(reply).into_iter();
    let cursor = match parts.next() {
        Some(Value::BulkString(cursor)) if cursor != b"0" => Some(cursor),
        _ => None,
    };
    (cursor, parts.next().map(elements).unwrap_or_default())
}

/// The ids in the reply to [`first_members`]; empty if incomplete.
pub(super) fn all_members(reply: &Value) -> &[Value] {
    match reply {
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(cursor), Value::Array(ids)] if cursor == b"0" => ids,
            _ => &[],
        },
        _ => &[],
    }
}

/// Reads a connection's comet and user. Takes bytes, because a member may contain anything.
pub(super) fn connection_info(id: &[u8]) -> Cmd {
    redis::cmd("HMGET").arg([b"connection:info:", id].concat()).arg("comet_id").arg("user_id").take()
}

/// Reads a user's connection.
pub(super) fn user_online(user: &str) -> Cmd {
    redis::cmd("GET").arg(format!("user:online:{user}")).take()
}

/// Reads which users are online: one element per user, nil if offline.
pub(super) fn users_online(users: &[UserId]) -> Cmd {
    let mut command = redis::cmd("MGET");
    for user in users {
        command.arg(format!("user:online:{user}"));
    }
    command
}

pub(super) fn room_key(room: &str) -> String {
    format!("{ROOM_KEYS}{room}")
}

/// Parses the reply to [`sort_ro`]: id, comet, user, id, comet, user, ...; `None` if there are more
/// than [`MOST`] members.
pub(super) fn sorted_members(reply: Value, comets: &mut AddressInterner) -> Option<RoomMembers> {
    let values = elements(reply);
    if values.len() > 3 * MOST {
        return None;
    }
    let mut members = RoomMembers::default();
    let mut values = values.into_iter().map(text);
    while let (Some(id), Some(comet), Some(user)) = (values.next(), values.next(), values.next()) {
        members.add(comets, id, comet, user);
    }
    Some(members)
}

/// Parses the reply to [`connection_info`] for this member of a room.
pub(super) fn describe_member(id: Value, info: Value, comets: &mut AddressInterner) -> Option<ConnectionRow> {
    let (comet, user) = comet_and_user(info);
    describe(comets, text(id), comet, user)
}

/// Parses the replies to [`connection_info`] for these members, in their order.
pub(super) fn described_members(
    ids: Vec<Value>,
    infos: impl Iterator<Item = Value>,
    comets: &mut AddressInterner,
) -> RoomMembers {
    let mut members = RoomMembers::default();
    for (id, info) in ids.into_iter().zip(infos) {
        let (comet, user) = comet_and_user(info);
        members.add(comets, text(id), comet, user);
    }
    members
}

/// Parses the reply to [`connection_info`] for this id.
pub(super) fn described(id: &str, info: Value, comets: &mut AddressInterner) -> Option<ConnectionRow> {
    let (comet, user) = comet_and_user(info);
    describe(comets, TextReply::Text(id.to_owned()), comet, user)
}

fn comet_and_user(info: Value) -> (TextReply, TextReply) {
    let mut fields = elements(info).into_iter().map(text);
    let comet = fields.next().unwrap_or(TextReply::Absent);
    (comet, fields.next().unwrap_or(TextReply::Absent))
}
