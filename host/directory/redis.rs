//! The directory in Redis, laid out as in DESIGN section 3.
//!
//! All look-ups of a batch travel in one pipeline. A second round trip queries which of the users are
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
use super::reading::{self, Comets, Described, Reading, RoomMembers};
use super::rooms::{Care, Rooms};
use super::{Directory, Found, Lookup, Metrics, Unavailable};
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
    known: Mutex<Option<(u64, Reading)>>,
    wrong_type_line: LogThrottle,
    max_room: usize,
    pub(super) rooms: Mutex<Rooms>,
    given_up_line: LogThrottle,
}

/// The result of the first round trip for one look-up.
pub(super) enum First {
    Room(RoomMembers),
    /// The room is too large for one command.
    Large,
    Connection(Option<Described>),
    /// The key is a user's, and this is the user's connection.
    User {
        user: UserId,
        connection: String,
    },
}

impl RedisDirectory {
    /// Reads through this client. With `check_online`, connections whose user has no `user:online`
    /// key are reported as offline; otherwise all are online. A room with more than `max_room`
    /// members is not read.
    pub fn new(client: RedisClient, check_online: bool, max_room: usize, metrics: Metrics) -> Self {
        Self {
            client,
            check_online,
            metrics,
            known: Mutex::new(None),
            wrong_type_line: LogThrottle::per_record(),
            max_room,
            rooms: Mutex::default(),
            given_up_line: LogThrottle::per_record(),
        }
    }

    /// How rooms are read from the currently connected server.
    async fn reading(&self) -> Result<Reading, Unavailable> {
        let epoch = self.client.scan_epoch();
        let known = self.known.lock().clone();
        if let Some((at, reading)) = known
            && at == epoch
        {
            return Ok(reading);
        }
        // No room has an empty id, so this reads nothing.
        let replies = self.client.run_scan("probe", vec![reading::sort_ro("")]).await?;
        let reading = match replies.first().and_then(refusal) {
            None | Some(Refusal::WrongType) => Reading::SortRo,
            Some(Refusal::Denied(reason) | Refusal::Other(reason)) => Reading::Members(reason),
        };
        self.learn(reading.clone());
        Ok(reading)
    }

    fn learn(&self, reading: Reading) {
        let mut known = self.known.lock();
        let news = known.as_ref().is_none_or(|(_, before)| *before != reading);
        if news {
            tracing::info!("reading rooms in Redis at {} with {reading}", self.client.place());
        }
        *known = Some((self.client.scan_epoch(), reading));
    }

    /// The first round trip: rooms with their members; keys as connections and as users.
    async fn first(&self, lookups: &[Lookup]) -> Result<Vec<First>, Unavailable> {
        let has_rooms = lookups.iter().any(|lookup| matches!(lookup, Lookup::Room(_)));
        if !has_rooms {
            let replies =
                self.client.run_small("get_connections", commands(lookups, reading::sort_ro)).await?;
            return self.understand(lookups, replies, None);
        }
        if self.reading().await? == Reading::SortRo {
            let commands = commands(lookups, reading::sort_ro);
            let replies = self.client.run_scan("get_room_connections", commands).await?;
            let Some(reason) = sort_refused(lookups, &replies) else {
                return self.understand(lookups, replies, None);
            };
            // The server was replaced, or its ACL changed.
            self.learn(Reading::Members(reason));
        }
        let commands = commands(lookups, reading::first_members);
        let replies = self.client.run_scan("get_room_connections", commands).await?;
        let infos = self.infos(lookups, &replies).await?;
        self.understand(lookups, replies, Some(infos))
    }

    /// Without `SORT_RO`: `connection:info` of every member of every room, in order.
    async fn infos(&self, lookups: &[Lookup], replies: &[Value]) -> Result<Vec<Value>, Unavailable> {
        let mut commands = Vec::new();
        for reply in room_replies(lookups, replies) {
            let ids = reading::all_members(reply);
            commands.extend(ids.iter().map(|id| reading::connection_info(bytes(id))));
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.client.run_scan("get_connections", commands).await
    }

    /// Parses the replies of the first round trip, one result per look-up.
    pub(super) fn understand(
        &self,
        lookups: &[Lookup],
        replies: Vec<Value>,
        infos: Option<Vec<Value>>,
    ) -> Result<Vec<First>, Unavailable> {
        let mut comets = Comets::default();
        let mut replies = replies.into_iter();
        let mut infos = infos.map(Vec::into_iter);
        let mut firsts = Vec::with_capacity(lookups.len());
        for lookup in lookups {
            let mut next = || replies.next().unwrap_or_default();
            firsts.push(match lookup {
                Lookup::Room(room) => {
                    let reply = next();
                    if is_too_large(&reply) {
                        firsts.push(First::Large);
                        continue;
                    }
                    let reply = self.unless_refused(reply, || format!("room:connections:{room}"))?;
                    let members = match &mut infos {
                        None => reading::sorted_members(reply, &mut comets),
                        Some(infos) => match reading::scanned(reply) {
                            (Some(_), _) => None,
                            (None, ids) => {
                                let infos = infos.by_ref().take(ids.len());
                                Some(reading::described_members(ids, infos, &mut comets))
                            }
                        },
                    };
                    members.map_or(First::Large, First::Room)
                }
                Lookup::Key(key) => {
                    let info = self.unless_refused(next(), || format!("connection:info:{key}"))?;
                    let online = self.unless_refused(next(), || format!("user:online:{key}"))?;
                    match reading::described(key, info, &mut comets) {
                        Some(connection) => First::Connection(Some(connection)),
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
                if let Some(held_back) = self.wrong_type_line.admit() {
                    let (key, place) = (key(), self.client.place());
                    tracing::warn!(
                        held_back,
                        "skipping `{key}` in Redis at {place}: it has the wrong type or is far too large; delete it"
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
    async fn second(&self, firsts: &[First]) -> Result<Second, Unavailable> {
        let users = if self.check_online { users(firsts) } else { Vec::new() };
        let mut commands: Vec<Cmd> = users.chunks(USERS_AT_ONCE).map(reading::users_online).collect();
        let questions = commands.len();
        for first in firsts {
            if let First::User { connection, .. } = first {
                commands.push(reading::connection_info(connection.as_bytes()));
            }
        }
        let operation = if questions > 0 { "get_users_online" } else { "get_connections" };
        let has_rooms = firsts.iter().any(|first| matches!(first, First::Room(_)));
        let mut replies = match (commands.is_empty(), has_rooms) {
            (true, _) => Vec::new(),
            (false, true) => self.client.run_scan(operation, commands).await?,
            (false, false) => self.client.run_small(operation, commands).await?,
        };
        let infos = replies.split_off(questions.min(replies.len()));
        Ok(Second { not_online: self.not_online(users, replies)?, infos: infos.into_iter() })
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
    pub(super) fn found(&self, first: First, second: &mut Second) -> Option<Found> {
        Some(match first {
            First::Large => return None,
            First::Room(members) => {
                self.metrics.stale_members.inc_by(members.stale as u64);
                self.metrics.room_connections.observe(members.connections.len() as f64);
                let connections = members.connections.into_iter().map(|found| second.checked(found));
                Found::Room(Membership::new(connections, members.stale))
            }
            First::Connection(found) => Found::Key(found.map(|found| second.checked(found))),
            First::User { user, connection } => {
                let info = second.infos.next().unwrap_or_default();
                let found = reading::described(&connection, info, &mut Comets::default());
                // A connection that now belongs to another user must not get this user's messages.
                let own = found.filter(|found| found.user.as_ref().is_none_or(|owner| *owner == user));
                if own.is_none() {
                    self.metrics.stale_members.inc();
                }
                let Some(Described { id, comet, .. }) = own else { return Some(Found::Key(None)) };
                Found::Key(Some(Connection { id, user: Some(user), comet, online: true }))
            }
        })
    }

    /// Looks up a batch in one pipeline, and the remaining data in a second one.
    async fn together(&self, lookups: &[Lookup]) -> Result<Vec<Option<Found>>, Unavailable> {
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        let firsts = self.first(lookups).await.inspect_err(|unavailable| {
            if unavailable.is_slow() {
                // One of them may be the reason.
                self.rooms.lock().are_large(lookups);
            }
        })?;
        let mut second = self.second(&firsts).await?;
        Ok(firsts.into_iter().map(|first| self.found(first, &mut second)).collect())
    }

    /// Reads a large room in pages.
    async fn in_pages(&self, room: &RoomId) -> Result<Found, Unavailable> {
        let Self { client, check_online, max_room, .. } = self;
        let pages = Pages { client, check_online: *check_online, max_room: *max_room };
        let found = pages.read(room).await?;
        let mut small = false;
        match &found {
            Found::Room(membership) => {
                let members = membership.members.len() + membership.stale;
                small = members < reading::MOST / 2;
                self.metrics.stale_members.inc_by(membership.stale as u64);
                self.metrics.room_connections.observe(membership.members.len() as f64);
            }
            Found::Unreadable(why) => {
                self.metrics.unreadable_rooms.inc();
                if let Some(held_back) = self.given_up_line.admit() {
                    tracing::error!(held_back, "{why}; messages for it become dead letters");
                }
            }
            Found::Key(_) => {}
        }
        self.rooms.lock().was_read(room, &found, small, Instant::now());
        Ok(found)
    }

    /// Looks up what needs care apart from the rest.
    async fn with_care(&self, lookups: &[Lookup]) -> Result<Vec<Option<Found>>, Unavailable> {
        let mut found: Vec<Option<Found>> = Vec::with_capacity(lookups.len());
        let (mut usual, mut indexes) = (Vec::new(), Vec::new());
        {
            let (rooms, now) = (self.rooms.lock(), Instant::now());
            for (place, lookup) in lookups.iter().enumerate() {
                found.push(match rooms.care(lookup, now) {
                    Care::GivenUp(why) => Some(Found::Unreadable(why)),
                    Care::Pages => None,
                    Care::Usual => {
                        usual.push(lookup.clone());
                        indexes.push(place);
                        None
                    }
                });
            }
        }
        for (index, answer) in indexes.into_iter().zip(self.together(&usual).await?) {
            found[index] = answer;
        }
        Ok(found)
    }
}

#[async_trait]
impl Directory for RedisDirectory {
    async fn lookup(&self, lookups: &[Lookup]) -> Result<Vec<Found>, Unavailable> {
        let nothing_known = self.rooms.lock().is_empty();
        let found =
            if nothing_known { self.together(lookups).await? } else { self.with_care(lookups).await? };
        let mut all = Vec::with_capacity(lookups.len());
        for (lookup, found) in lookups.iter().zip(found) {
            all.push(match (found, lookup) {
                (Some(found), _) => found,
                (None, Lookup::Key(_)) => Found::Key(None),
                (None, Lookup::Room(room)) => {
                    self.rooms.lock().are_large([lookup]);
                    self.in_pages(room).await?
                }
            });
        }
        Ok(all)
    }

    async fn check(&self) -> Result<String, Unavailable> {
        self.client.ping().await?;
        let how = self.reading().await?.to_string();
        // No room, connection or user has an empty name.
        let room = vec![reading::sscan("", b"0", 1)];
        self.client.may(room, "room:connections:*").await?;
        self.client.may(vec![reading::connection_info(b"")], "connection:info:*").await?;
        let users = vec![reading::user_online(""), reading::users_online(&[UserId::from("")])];
        self.client.may(users, "user:online:*").await?;
        Ok(how)
    }
}

/// The result of the second round trip.
pub(super) struct Second {
    pub(super) not_online: HashSet<UserId>,
    /// One for each [`First::User`], in order.
    pub(super) infos: std::vec::IntoIter<Value>,
}

impl Second {
    fn checked(&self, found: Described) -> Connection {
        let Described { id, comet, user } = found;
        let online = user.as_ref().is_none_or(|user| !self.not_online.contains(user));
        Connection { id, user, comet, online }
    }
}

/// A key that is not a connection may be a user: an online user has a connection.
fn as_user(key: &str, online: Value) -> First {
    match text(online).filled() {
        Some(connection) => First::User { user: key.into(), connection },
        None => First::Connection(None),
    }
}

/// All users whose presence has to be checked, without duplicates.
pub(super) fn users(firsts: &[First]) -> Vec<UserId> {
    let mut users = HashSet::new();
    for first in firsts {
        match first {
            First::Room(members) => users.extend(members.connections.iter().filter_map(|c| c.user.clone())),
            First::Connection(found) => users.extend(found.iter().filter_map(|c| c.user.clone())),
            First::User { .. } | First::Large => {}
        }
    }
    users.into_iter().collect()
}
