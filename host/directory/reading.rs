//! How rooms are read from this server: the commands, and how their replies are understood.
//!
//! `SORT_RO` gives a room's members with the comet and the user of each in one command, but
//! needs Redis 7 and an ACL that allows reading every key. `SSCAN`, then one `HMGET` per
//! member, works everywhere and takes a round trip more.
//!
//! Either way a command gives [`MOST`] members or a few more, so that Redis does nothing for long:
//! it serves nobody else meanwhile. A larger room is read in pages.

use std::collections::HashMap;

use redis::{Cmd, Value};

use crate::message::{CometAddr, ConnectionId, UserId};
use crate::redis_client::{Texts, elements, text};

/// The most members of a room that is read with one command: about 5 ms of Redis' time.
pub(super) const MOST: usize = 5_000;

/// The longest `comet_id` that is one: a server name or an address.
const LONGEST_COMET: usize = 1024;

/// One of the ways to read a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// `SORT_RO` with `GET` patterns.
    SortRo,
    /// `SSCAN`, then `HMGET`; with the reason why not `SORT_RO`.
    Members(String),
}

impl std::fmt::Display for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SortRo => f.write_str("SORT_RO"),
            Self::Members(reason) => write!(f, "SSCAN + HMGET (the server refuses SORT_RO: {reason})"),
        }
    }
}

/// A connection as the directory describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) id: ConnectionId,
    pub(super) comet: CometAddr,
    pub(super) user: Option<UserId>,
}

/// A room's members as read.
#[derive(Debug, Default)]
pub(super) struct RoomMembers {
    pub(super) connections: Vec<Described>,
    /// Members that lead to no connection.
    pub(super) stale: usize,
}

impl RoomMembers {
    /// Takes a member's id, its `comet_id` and its `user_id`.
    fn add(&mut self, comets: &mut Comets, id: Texts, comet: Texts, user: Texts) {
        match describe(comets, id, comet, user) {
            Some(connection) => self.connections.push(connection),
            None => self.stale += 1,
        }
    }
}

/// The addresses of one batch, so that the members of a comet share one string.
#[derive(Debug, Default)]
pub(super) struct Comets(HashMap<String, CometAddr>);

impl Comets {
    fn shared(&mut self, address: String) -> CometAddr {
        if let Some(known) = self.0.get(&address) {
            return known.clone();
        }
        let comet = CometAddr::from(address.as_str());
        self.0.insert(address, comet.clone());
        comet
    }
}

/// `None` when it is stale: no id, no comet, or a name that is not UTF-8.
fn describe(comets: &mut Comets, id: Texts, comet: Texts, user: Texts) -> Option<Described> {
    if user == Texts::NotUtf8 {
        return None;
    }
    let (id, comet) = (id.filled()?, comet.filled()?);
    if comet.len() > LONGEST_COMET {
        return None;
    }
    Some(Described { id: id.into(), comet: comets.shared(comet), user: user.filled().map(UserId::from) })
}

/// A room in one command, up to one member more than [`MOST`]. Only the member takes the
/// pattern's `*`, so a `*` in the room's own id means itself.
pub(super) fn sort_ro(room: &str) -> Cmd {
    let mut command = redis::cmd("SORT_RO");
    command.arg(room_key(room)).arg("BY").arg("nosort").arg("LIMIT").arg(0).arg(MOST + 1);
    for pattern in ["#", "connection:info:*->comet_id", "connection:info:*->user_id"] {
        command.arg("GET").arg(pattern);
    }
    command
}

/// The ids of a room's members from the beginning: all of them, unless they are more than
/// [`MOST`].
pub(super) fn first_members(room: &str) -> Cmd {
    sscan(room, b"0", MOST)
}

/// About so many ids of a room's members, from this cursor on.
pub(super) fn sscan(room: &str, cursor: &[u8], count: usize) -> Cmd {
    let mut command = redis::cmd("SSCAN");
    command.arg(room_key(room)).arg(cursor).arg("COUNT").arg(count);
    command
}

/// The reply to [`sscan`]: where it goes on, `None` at the end, and the ids.
pub(super) fn scanned(reply: Value) -> (Option<Vec<u8>>, Vec<Value>) {
    let mut parts = elements(reply).into_iter();
    let cursor = match parts.next() {
        Some(Value::BulkString(cursor)) if cursor != b"0" => Some(cursor),
        _ => None,
    };
    (cursor, parts.next().map(elements).unwrap_or_default())
}

/// The ids in the reply to [`first_members`]; none when they are not all.
pub(super) fn all_members(reply: &Value) -> &[Value] {
    match reply {
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(cursor), Value::Array(ids)] if cursor == b"0" => ids,
            _ => &[],
        },
        _ => &[],
    }
}

/// Comet and user of a connection. Takes bytes, since a member may be anything.
pub(super) fn connection_info(id: &[u8]) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg([b"connection:info:", id].concat()).arg("comet_id").arg("user_id");
    command
}

/// The connection of a user.
pub(super) fn user_online(user: &str) -> Cmd {
    let mut command = redis::cmd("GET");
    command.arg(format!("user:online:{user}"));
    command
}

/// Which of these users are online: a list as long as theirs, nil for those who are not.
pub(super) fn users_online(users: &[UserId]) -> Cmd {
    let mut command = redis::cmd("MGET");
    for user in users {
        command.arg(format!("user:online:{user}"));
    }
    command
}

pub(super) fn room_key(room: &str) -> String {
    format!("room:connections:{room}")
}

/// The reply to [`sort_ro`]: id, comet, user, id, comet, user, ...; `None` when there are more
/// than [`MOST`].
pub(super) fn sorted_members(reply: Value, comets: &mut Comets) -> Option<RoomMembers> {
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

/// The reply to [`connection_info`] for this member of a room.
pub(super) fn describe_member(id: Value, info: Value, comets: &mut Comets) -> Option<Described> {
    let (comet, user) = comet_and_user(info);
    describe(comets, text(id), comet, user)
}

/// The replies to [`connection_info`] for these members, in their order.
pub(super) fn described_members(
    ids: Vec<Value>,
    infos: impl Iterator<Item = Value>,
    comets: &mut Comets,
) -> RoomMembers {
    let mut members = RoomMembers::default();
    for (id, info) in ids.into_iter().zip(infos) {
        let (comet, user) = comet_and_user(info);
        members.add(comets, text(id), comet, user);
    }
    members
}

/// The reply to [`connection_info`] for this id.
pub(super) fn described(id: &str, info: Value, comets: &mut Comets) -> Option<Described> {
    let (comet, user) = comet_and_user(info);
    describe(comets, Texts::Text(id.to_owned()), comet, user)
}

fn comet_and_user(info: Value) -> (Texts, Texts) {
    let mut fields = elements(info).into_iter().map(text);
    let comet = fields.next().unwrap_or(Texts::Absent);
    (comet, fields.next().unwrap_or(Texts::Absent))
}
