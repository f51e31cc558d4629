//! What the replies to a batch of look-ups mean.

use std::collections::HashSet;

use redis::Value;

use super::room_query::{self, AddressInterner, ConnectionRow, RoomMembers};
use super::{DirectoryReply, Lookup, Metrics, RoomReading, Unavailable};
use crate::membership::{Connection, Membership};
use crate::message::UserId;
use crate::redis_client::{RedisClient, Refusal, elements, is_too_large, refusal, text};
use crate::telemetry::LogThrottle;

/// The result of the first round trip for one look-up.
pub(super) enum FirstReply {
    Room(RoomMembers),
    /// The room is too large for one command.
    Large,
    Connection(Option<ConnectionRow>),
    /// The key is a user's, and this is the user's connection.
    User {
        user: UserId,
        connection: String,
    },
}

/// Reads replies, and counts what is wrong with them.
#[derive(Debug)]
pub(super) struct ReplyReader {
    client: RedisClient,
    metrics: Metrics,
    wrong_type_throttle: LogThrottle,
}

impl ReplyReader {
    pub(super) fn new(client: RedisClient, metrics: Metrics) -> Self {
        Self { client, metrics, wrong_type_throttle: LogThrottle::per_record() }
    }

    /// Parses the replies of the first round trip, one result per look-up.
    pub(super) fn parse_first(
        &self,
        lookups: &[Lookup],
        replies: Vec<Value>,
        infos: Option<Vec<Value>>,
    ) -> Result<Vec<FirstReply>, Unavailable> {
        let mut comets = AddressInterner::default();
        let mut replies = replies.into_iter();
        let mut infos = infos.map(Vec::into_iter);
        let mut firsts = Vec::with_capacity(lookups.len());
        for lookup in lookups {
            let mut next = || replies.next().unwrap_or_default();
            firsts.push(match lookup {
                Lookup::Room(room) => {
                    let reply = next();
                    if is_too_large(&reply) {
                        firsts.push(FirstReply::Large);
                        continue;
                    }
                    let reply = self.unless_refused(reply, || format!("room:connections:{room}"))?;
                    let members = match &mut infos {
                        None => room_query::sorted_members(reply, &mut comets),
                        Some(infos) => match room_query::scanned(reply) {
                            (Some(_), _) => None,
                            (None, ids) => {
                                let infos = infos.by_ref().take(ids.len());
                                Some(room_query::described_members(ids, infos, &mut comets))
                            }
                        },
                    };
                    members.map_or(FirstReply::Large, FirstReply::Room)
                }
                Lookup::Key(key) => {
                    let info = self.unless_refused(next(), || format!("connection:info:{key}"))?;
                    let online = self.unless_refused(next(), || format!("user:online:{key}"))?;
                    match room_query::described(key, info, &mut comets) {
                        Some(connection) => FirstReply::Connection(Some(connection)),
                        None => as_user(key, online),
                    }
                }
            });
        }
        Ok(firsts)
    }

    /// The value, or nil for a key of the wrong type: one bad key must not fail the others.
    pub(super) fn unless_refused(
        &self,
        value: Value,
        key: impl Fn() -> String,
    ) -> Result<Value, Unavailable> {
        match refusal(&value) {
            None => Ok(value),
            Some(Refusal::WrongType) => {
                self.metrics.wrong_type_keys.inc();
                if let Some(held_back) = self.wrong_type_throttle.admit() {
                    let (key, endpoint) = (key(), self.client.endpoint());
                    tracing::warn!(
                        held_back,
                        "skipping `{key}` in Redis at {endpoint}: it has the wrong type or is far too large; delete it"
                    );
                }
                Ok(Value::Nil)
            }
            Some(Refusal::Denied(said) | Refusal::Other(said)) => {
                Err(self.client.denied("lookup", format!("{said} (`{}`)", key())))
            }
        }
    }

    pub(super) fn not_online(
        &self,
        users: Vec<UserId>,
        replies: Vec<Value>,
    ) -> Result<HashSet<UserId>, Unavailable> {
        let mut answers = Vec::with_capacity(users.len());
        for reply in replies {
            answers.extend(elements(self.unless_refused(reply, || "user:online:*".to_owned())?));
        }
        let absent = users.into_iter().zip(answers).filter(|(_, answer)| *answer == Value::Nil);
        Ok(absent.map(|(user, _)| user).collect())
    }

    /// Combines both round trips; `None` for a room that is too large for one command.
    pub(super) fn found(&self, first: FirstReply, second: &mut SecondReply) -> Option<DirectoryReply> {
        Some(match first {
            FirstReply::Large => return None,
            FirstReply::Room(members) => {
                self.metrics.stale_members.inc_by(members.stale as u64);
                self.metrics.room_connections.observe(members.connections.len() as f64);
                let connections = members.connections.into_iter().map(|found| second.checked(found));
                DirectoryReply::Room(RoomReading::untracked(Membership::new(connections, members.stale)))
            }
            FirstReply::Connection(found) => DirectoryReply::Key(found.map(|found| second.checked(found))),
            FirstReply::User { user, connection } => {
                let info = second.infos.next().unwrap_or_default();
                let found = room_query::described(&connection, info, &mut AddressInterner::default());
                // A connection that now belongs to another user must not get this user's messages.
                let own = found.filter(|found| found.user.as_ref().is_none_or(|owner| *owner == user));
                if own.is_none() {
                    self.metrics.stale_members.inc();
                }
                let Some(ConnectionRow { id, comet, .. }) = own else {
                    return Some(DirectoryReply::Key(None));
                };
                DirectoryReply::Key(Some(Connection { id, user: Some(user), comet, online: true }))
            }
        })
    }
}

/// The result of the second round trip.
pub(super) struct SecondReply {
    pub(super) not_online: HashSet<UserId>,
    /// One for each [`FirstReply::User`], in order.
    pub(super) infos: std::vec::IntoIter<Value>,
}

impl SecondReply {
    fn checked(&self, found: ConnectionRow) -> Connection {
        let ConnectionRow { id, comet, user } = found;
        let online = user.as_ref().is_none_or(|user| !self.not_online.contains(user));
        Connection { id, user, comet, online }
    }
}

/// A key that is not a connection may be a user: an online user has a connection.
fn as_user(key: &str, online: Value) -> FirstReply {
    match text(online).filled() {
        Some(connection) => FirstReply::User { user: key.into(), connection },
        None => FirstReply::Connection(None),
    }
}

/// All users whose presence has to be checked, without duplicates.
pub(super) fn users(firsts: &[FirstReply]) -> Vec<UserId> {
    let mut users = HashSet::new();
    for first in firsts {
        match first {
            FirstReply::Room(members) => {
                users.extend(members.connections.iter().filter_map(|c| c.user.clone()))
            }
            FirstReply::Connection(found) => users.extend(found.iter().filter_map(|c| c.user.clone())),
            FirstReply::User { .. } | FirstReply::Large => {}
        }
    }
    users.into_iter().collect()
}
