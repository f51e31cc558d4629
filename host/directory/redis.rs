//! The directory in Redis, as comets write it.
//!
//! All look-ups of a batch are sent in one pipeline. A second round trip queries which of the users are
//! online, and where the connections of user keys live. How rooms can be read is probed, again after
//! every reconnect, and whenever the server starts to refuse it. A room that is too large for one
//! command is read in pages, and remembered as large.

use std::collections::HashSet;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{Cmd, Value};

use super::batch::{bytes, commands, room_replies, sort_refused};
use super::pages::{Pages, USERS_AT_ONCE};
use super::room_hints::{ReadStrategy, RoomHints};
use super::room_query::{self, AddressInterner, ConnectionRow, RoomMembers, RoomQuery};
use super::{Directory, DirectoryReply, Lookup, Metrics, Unavailable};
use crate::membership::{Connection, Membership};
use crate::message::{RoomId, UserId};
use crate::redis_client::{RedisClient, Refusal, elements, is_too_large, refusal, text};
use crate::telemetry::LogThrottle;

/// The directory in Redis.
#[derive(Debug)]
pub struct RedisDirectory {
    client: RedisClient,
    check_online: bool,
    pub(super) metrics: Metrics,
    /// How rooms are read, and the epoch of the connection on which this was probed.
    known: Mutex<Option<(u64, RoomQuery)>>,
    wrong_type_throttle: LogThrottle,
    max_room_size: usize,
    pub(super) room_hints: Mutex<RoomHints>,
    unreadable_throttle: LogThrottle,
}

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

impl RedisDirectory {
    /// Reads through this client. With `check_online`, connections whose user has no `user:online`
    /// key are reported as offline; otherwise all are online. A room with more than `max_room_size`
    /// members is not read.
    pub fn new(client: RedisClient, check_online: bool, max_room_size: usize, metrics: Metrics) -> Self {
        Self {
            client,
            check_online,
            metrics,
            known: Mutex::new(None),
            wrong_type_throttle: LogThrottle::per_record(),
            max_room_size,
            room_hints: Mutex::default(),
            unreadable_throttle: LogThrottle::per_record(),
        }
    }

    /// How rooms are read from the currently connected server.
    async fn room_query(&self) -> Result<RoomQuery, Unavailable> {
        let epoch = self.client.scan_epoch();
        let known = self.known.lock().clone();
        if let Some((at, room_query)) = known
            && at == epoch
        {
            return Ok(room_query);
        }
        // No room has an empty id, so this reads nothing.
        let replies = self.client.run_scan("probe", vec![room_query::sort_ro("")]).await?;
        let room_query = match replies.first().and_then(refusal) {
            None | Some(Refusal::WrongType) => RoomQuery::SortRo,
            Some(Refusal::Denied(reason) | Refusal::Other(reason)) => RoomQuery::SscanHmget(reason),
        };
        self.set_room_query(room_query.clone());
        Ok(room_query)
    }

    fn set_room_query(&self, room_query: RoomQuery) {
        let mut known = self.known.lock();
        let news = known.as_ref().is_none_or(|(_, before)| *before != room_query);
        if news {
            tracing::info!("reading rooms in Redis at {} with {room_query}", self.client.endpoint());
        }
        *known = Some((self.client.scan_epoch(), room_query));
    }

    /// The first round trip: rooms with their members; keys as connections and as users.
    async fn first(&self, lookups: &[Lookup]) -> Result<Vec<FirstReply>, Unavailable> {
        let has_rooms = lookups.iter().any(|lookup| matches!(lookup, Lookup::Room(_)));
        if !has_rooms {
            let replies =
                self.client.run_small("get_connections", commands(lookups, room_query::sort_ro)).await?;
            return self.parse_first(lookups, replies, None);
        }
        if self.room_query().await? == RoomQuery::SortRo {
            let commands = commands(lookups, room_query::sort_ro);
            let replies = self.client.run_scan("get_room_connections", commands).await?;
            let Some(reason) = sort_refused(lookups, &replies) else {
                return self.parse_first(lookups, replies, None);
            };
            // The server was replaced, or its ACL changed.
            self.set_room_query(RoomQuery::SscanHmget(reason));
        }
        let commands = commands(lookups, room_query::first_members);
        let replies = self.client.run_scan("get_room_connections", commands).await?;
        let infos = self.infos(lookups, &replies).await?;
        self.parse_first(lookups, replies, Some(infos))
    }

    /// Without `SORT_RO`: `connection:info` of every member of every room, in order.
    async fn infos(&self, lookups: &[Lookup], replies: &[Value]) -> Result<Vec<Value>, Unavailable> {
        let mut commands = Vec::new();
        for reply in room_replies(lookups, replies) {
            let ids = room_query::all_members(reply);
            commands.extend(ids.iter().map(|id| room_query::connection_info(bytes(id))));
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.client.run_scan("get_connections", commands).await
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
    fn unless_refused(&self, value: Value, key: impl Fn() -> String) -> Result<Value, Unavailable> {
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

    /// The second round trip: who is offline, and where the users' connections live.
    async fn second(&self, firsts: &[FirstReply]) -> Result<SecondReply, Unavailable> {
        let users = if self.check_online { users(firsts) } else { Vec::new() };
        let mut commands: Vec<Cmd> = users.chunks(USERS_AT_ONCE).map(room_query::users_online).collect();
        let questions = commands.len();
        for first in firsts {
            if let FirstReply::User { connection, .. } = first {
                commands.push(room_query::connection_info(connection.as_bytes()));
            }
        }
        let operation = if questions > 0 { "get_users_online" } else { "get_connections" };
        let has_rooms = firsts.iter().any(|first| matches!(first, FirstReply::Room(_)));
        let mut replies = match (commands.is_empty(), has_rooms) {
            (true, _) => Vec::new(),
            (false, true) => self.client.run_scan(operation, commands).await?,
            (false, false) => self.client.run_small(operation, commands).await?,
        };
        let infos = replies.split_off(questions.min(replies.len()));
        Ok(SecondReply { not_online: self.not_online(users, replies)?, infos: infos.into_iter() })
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
                DirectoryReply::Room(Membership::new(connections, members.stale))
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

    /// Looks up a batch in one pipeline, and the remaining data in a second one.
    async fn lookup_batch(&self, lookups: &[Lookup]) -> Result<Vec<Option<DirectoryReply>>, Unavailable> {
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        let firsts = self.first(lookups).await.inspect_err(|unavailable| {
            if unavailable.is_slow() {
                // One of the rooms may be the cause.
                self.room_hints.lock().mark_large(lookups);
            }
        })?;
        let mut second = self.second(&firsts).await?;
        Ok(firsts.into_iter().map(|first| self.found(first, &mut second)).collect())
    }

    /// Reads a large room in pages.
    async fn lookup_paged(&self, room: &RoomId) -> Result<DirectoryReply, Unavailable> {
        let Self { client, check_online, max_room_size, .. } = self;
        let pages = Pages { client, check_online: *check_online, max_room_size: *max_room_size };
        let found = pages.read(room).await?;
        let mut small = false;
        match &found {
            DirectoryReply::Room(membership) => {
                let members = membership.members.len() + membership.stale;
                small = members < room_query::MOST / 2;
                self.metrics.stale_members.inc_by(membership.stale as u64);
                self.metrics.room_connections.observe(membership.members.len() as f64);
            }
            DirectoryReply::Unreadable(why) => {
                self.metrics.unreadable_rooms.inc();
                if let Some(held_back) = self.unreadable_throttle.admit() {
                    tracing::error!(held_back, "{why}; messages for it become dead letters");
                }
            }
            DirectoryReply::Key(_) => {}
        }
        self.room_hints.lock().record_read(room, &found, small, Instant::now());
        Ok(found)
    }

    /// Looks up known problem rooms separately from the rest.
    async fn lookup_with_hints(
        &self,
        lookups: &[Lookup],
    ) -> Result<Vec<Option<DirectoryReply>>, Unavailable> {
        let mut found: Vec<Option<DirectoryReply>> = Vec::with_capacity(lookups.len());
        let (mut usual, mut indexes) = (Vec::new(), Vec::new());
        {
            let (room_hints, now) = (self.room_hints.lock(), Instant::now());
            for (endpoint, lookup) in lookups.iter().enumerate() {
                found.push(match room_hints.strategy(lookup, now) {
                    ReadStrategy::Skipped(why) => Some(DirectoryReply::Unreadable(why)),
                    ReadStrategy::Pages => None,
                    ReadStrategy::Batched => {
                        usual.push(lookup.clone());
                        indexes.push(endpoint);
                        None
                    }
                });
            }
        }
        for (index, answer) in indexes.into_iter().zip(self.lookup_batch(&usual).await?) {
            found[index] = answer;
        }
        Ok(found)
    }
}

#[async_trait]
impl Directory for RedisDirectory {
    async fn lookup(&self, lookups: &[Lookup]) -> Result<Vec<DirectoryReply>, Unavailable> {
        let nothing_known = self.room_hints.lock().is_empty();
        let found = if nothing_known {
            self.lookup_batch(lookups).await?
        } else {
            self.lookup_with_hints(lookups).await?
        };
        let mut all = Vec::with_capacity(lookups.len());
        for (lookup, found) in lookups.iter().zip(found) {
            all.push(match (found, lookup) {
                (Some(found), _) => found,
                (None, Lookup::Key(_)) => DirectoryReply::Key(None),
                (None, Lookup::Room(room)) => {
                    self.room_hints.lock().mark_large([lookup]);
                    self.lookup_paged(room).await?
                }
            });
        }
        Ok(all)
    }

    async fn check(&self) -> Result<String, Unavailable> {
        self.client.ping().await?;
        let how = self.room_query().await?.to_string();
        // No room, connection or user has an empty name.
        let room = vec![room_query::sscan("", b"0", 1)];
        self.client.check_permission(room, "room:connections:*").await?;
        self.client.check_permission(vec![room_query::connection_info(b"")], "connection:info:*").await?;
        let users = vec![room_query::user_online(""), room_query::users_online(&[UserId::from("")])];
        self.client.check_permission(users, "user:online:*").await?;
        Ok(how)
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
