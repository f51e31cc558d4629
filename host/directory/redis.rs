//! The directory in Redis, as comets write it.
//!
//! All look-ups of a batch are sent in one pipeline. A second round trip queries which of the users are
//! online, and where the connections of user keys live. How rooms can be read is probed, again after
//! every reconnect, and whenever the server starts to refuse it. A room that is too large for one
//! command is read in pages, and remembered as large.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{Cmd, Value};

use super::batch::{bytes, commands, room_replies, sort_refused};
use super::freshness::{ForgetCause, LeaseTerm, RoomChanges, RoomReading};
use super::known_rooms::{KnownRoom, KnownRooms};
use super::newcomers::Newcomers;
use super::pages::{Pages, USERS_AT_ONCE};
use super::replies::{FirstReply, ReplyReader, SecondReply, users};
use super::room_hints::{ReadStrategy, RoomHints};
use super::room_query::{self, RoomQuery};
use super::{CacheConfig, Directory, DirectoryReply, Lookup, Metrics, Unavailable};
use crate::message::{RoomId, UserId};
use crate::redis_client::{KeyObserver, RedisClient, Refusal, TrackedValues, refusal};
use crate::telemetry::LogThrottle;

/// The directory in Redis.
#[derive(Debug)]
pub struct RedisDirectory {
    client: RedisClient,
    check_online: bool,
    pub(super) metrics: Metrics,
    /// How rooms are read, and the epoch of the connection on which this was probed.
    known: Mutex<Option<(u64, RoomQuery)>>,
    pub(super) replies: ReplyReader,
    max_room_size: usize,
    pub(super) room_hints: Mutex<RoomHints>,
    unreadable_throttle: LogThrottle,
    /// The members of rooms whose changes are reported.
    known_rooms: Mutex<KnownRooms>,
}

impl RedisDirectory {
    /// Reads through this client. With `check_online`, connections whose user has no `user:online`
    /// key are reported as offline; otherwise all are online. A room with more than `max_room_size`
    /// members is not read.
    pub fn new(client: RedisClient, check_online: bool, max_room_size: usize, metrics: Metrics) -> Self {
        Self {
            replies: ReplyReader::new(client.clone(), metrics.clone()),
            client,
            check_online,
            metrics,
            known: Mutex::new(None),
            max_room_size,
            room_hints: Mutex::default(),
            unreadable_throttle: LogThrottle::per_record(),
            known_rooms: Mutex::default(),
        }
    }

    /// Remembers the members of rooms within these limits: when a room changes, only newcomers are
    /// fetched.
    pub fn remembering(mut self, limits: &CacheConfig) -> Self {
        self.known_rooms = Mutex::new(KnownRooms::new(limits));
        self
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
            tracing::info!("redis at {}: {room_query}", self.client.endpoint());
        }
        *known = Some((self.client.scan_epoch(), room_query));
    }

    /// The first round trip: rooms with their members; keys as connections and as users.
    async fn first(&self, lookups: &[Lookup]) -> Result<(Vec<FirstReply>, Terms), Unavailable> {
        let has_rooms = lookups.iter().any(|lookup| matches!(lookup, Lookup::Room(_)));
        if !has_rooms {
            let replies =
                self.client.run_small("get_connections", commands(lookups, room_query::sort_ro)).await?;
            return Ok((self.replies.parse_first(lookups, replies, None)?, Terms::new()));
        }
        if self.room_query().await? == RoomQuery::SortRo {
            let commands = commands(lookups, room_query::sort_ro);
            let (replies, terms) = split(self.client.run_tracked("get_room_connections", commands).await?);
            let Some(reason) = sort_refused(lookups, &replies) else {
                return Ok((self.replies.parse_first(lookups, replies, None)?, terms));
            };
            // The server was replaced, or its ACL changed.
            self.set_room_query(RoomQuery::SscanHmget(reason));
        }
        let commands = commands(lookups, room_query::first_members);
        let (replies, terms) = split(self.client.run_tracked("get_room_connections", commands).await?);
        let infos = self.infos(lookups, &replies).await?;
        Ok((self.replies.parse_first(lookups, replies, Some(infos))?, terms))
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
        Ok(SecondReply { not_online: self.replies.not_online(users, replies)?, infos: infos.into_iter() })
    }

    /// Looks up a batch in one pipeline, and the remaining data in a second one.
    async fn lookup_batch(&self, lookups: &[Lookup]) -> Result<Vec<Option<DirectoryReply>>, Unavailable> {
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let (firsts, terms) = self.first(lookups).await.inspect_err(|unavailable| {
            if unavailable.is_slow() {
                // One of the rooms may be the cause.
                self.room_hints.lock().mark_large(lookups);
            }
        })?;
        let mut second = self.second(&firsts).await?;
        let mut found: Vec<_> =
            firsts.into_iter().map(|first| self.replies.found(first, &mut second)).collect();
        // One command for a room, two for a key.
        let mut terms = terms.into_iter();
        for (lookup, found) in lookups.iter().zip(&mut found) {
            let term = terms.next().flatten();
            match (lookup, found) {
                (Lookup::Key(_), _) => drop(terms.next()),
                (Lookup::Room(_), Some(DirectoryReply::Room(reading))) => {
                    self.mark_fresh(reading, term, started);
                }
                (Lookup::Room(_), _) => {}
            }
        }
        self.share_cost(lookups, &mut found, started);
        Ok(found)
    }

    /// Records under which term a reading counts, and that all of it was read since this time.
    fn mark_fresh(&self, reading: &mut RoomReading, term: Option<LeaseTerm>, started: Instant) {
        let RoomReading { membership, freshness } = reading;
        let is_empty = membership.members.is_empty() && membership.stale == 0;
        // Another node may create a room that does not exist, while its slot moves there.
        freshness.term = term.filter(|_| !is_empty || !self.client.is_cluster());
        freshness.details_since = started;
        freshness.complete = membership.stale == 0;
    }

    /// Divides the time that reading rooms took among them by their size, and remembers their members.
    fn share_cost(&self, lookups: &[Lookup], found: &mut [Option<DirectoryReply>], started: Instant) {
        let mut readings: Vec<(&RoomId, &mut RoomReading)> = Vec::new();
        for (lookup, found) in lookups.iter().zip(found) {
            if let (Lookup::Room(room), Some(DirectoryReply::Room(reading))) = (lookup, found) {
                readings.push((room, reading));
            }
        }
        let size = |reading: &RoomReading| reading.membership.members.len() + reading.membership.stale;
        let all: usize = readings.iter().map(|(_, reading)| size(reading)).sum();
        let took = started.elapsed();
        let mut known_rooms = self.known_rooms.lock();
        for (room, reading) in readings {
            reading.freshness.cost = took.mul_f64(size(reading) as f64 / all.max(1) as f64);
            known_rooms.remember(room, reading);
        }
    }

    /// Reads rooms of which most members are known; `None` for one that has to be read as a whole.
    async fn lookup_newcomers(
        &self,
        rooms: Vec<(RoomId, KnownRoom)>,
    ) -> Result<Vec<Option<DirectoryReply>>, Unavailable> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let Self { client, check_online, max_room_size, .. } = self;
        let newcomers = Newcomers { client, check_online: *check_online, max_room_size: *max_room_size };
        let lookups: Vec<_> = rooms.iter().map(|(room, _)| Lookup::Room(room.clone())).collect();
        let (readings, fetched) = newcomers.read(rooms).await?;
        self.metrics.newcomers.inc_by(fetched as u64);
        let mut found: Vec<_> =
            readings.into_iter().map(|reading| reading.map(DirectoryReply::Room)).collect();
        self.share_cost(&lookups, &mut found, started);
        Ok(found)
    }

    /// Reads a large room in pages.
    async fn lookup_paged(&self, room: &RoomId) -> Result<DirectoryReply, Unavailable> {
        let Self { client, check_online, max_room_size, .. } = self;
        let pages = Pages { client, check_online: *check_online, max_room_size: *max_room_size };
        let started = Instant::now();
        let mut found = pages.read(room).await?;
        if let DirectoryReply::Room(reading) = &mut found {
            let term = reading.freshness.term.take();
            self.mark_fresh(reading, term, started);
        }
        let mut found = [Some(found)];
        self.share_cost(&[Lookup::Room(room.clone())], &mut found, started);
        let [Some(found)] = found else { unreachable!("it is still there") };
        let mut small = false;
        match &found {
            DirectoryReply::Room(RoomReading { membership, .. }) => {
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

    /// Looks up problem rooms, and rooms whose members are known, separately from the rest.
    async fn lookup_apart(&self, lookups: &[Lookup]) -> Result<Vec<Option<DirectoryReply>>, Unavailable> {
        let mut found: Vec<Option<DirectoryReply>> = Vec::with_capacity(lookups.len());
        let (mut usual, mut usual_at, mut known, mut known_at) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        {
            let (room_hints, known_rooms, now) =
                (self.room_hints.lock(), self.known_rooms.lock(), Instant::now());
            for (at, lookup) in lookups.iter().enumerate() {
                let known_room = match lookup {
                    Lookup::Room(room) => known_rooms.get(room, now).map(|known| (room.clone(), known)),
                    Lookup::Key(_) => None,
                };
                found.push(match (room_hints.strategy(lookup, now), known_room) {
                    (ReadStrategy::Skipped(why), _) => Some(DirectoryReply::Unreadable(why)),
                    (_, Some(known_room)) => {
                        known.push(known_room);
                        known_at.push(at);
                        None
                    }
                    (ReadStrategy::Pages, None) => None,
                    (ReadStrategy::Batched, None) => {
                        usual.push(lookup.clone());
                        usual_at.push(at);
                        None
                    }
                });
            }
        }
        let (answers, newcomers) = tokio::try_join!(self.lookup_batch(&usual), self.lookup_newcomers(known))?;
        let mut again = (Vec::new(), Vec::new());
        for (at, answer) in known_at.into_iter().zip(newcomers) {
            if answer.is_none() {
                again.0.push(lookups[at].clone());
                again.1.push(at);
            }
            found[at] = answer;
        }
        let again = again.1.into_iter().zip(self.lookup_batch(&again.0).await?);
        for (at, answer) in usual_at.into_iter().zip(answers).chain(again) {
            found[at] = answer;
        }
        Ok(found)
    }
}

#[async_trait]
impl Directory for RedisDirectory {
    async fn lookup(&self, lookups: &[Lookup]) -> Result<Vec<DirectoryReply>, Unavailable> {
        let nothing_known = self.room_hints.lock().is_empty() && self.known_rooms.lock().is_empty();
        let found = if nothing_known {
            self.lookup_batch(lookups).await?
        } else {
            self.lookup_apart(lookups).await?
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

    fn subscribe(&self, changes: Arc<dyn RoomChanges>) {
        self.client.observe(Arc::new(RoomObserver(changes)));
    }

    async fn confirm_changes(&self) -> bool {
        self.client.confirm_leases().await
    }

    async fn keep_current(&self) {
        self.client.keep_leases().await;
    }

    fn forget(&self, room: &RoomId) {
        self.known_rooms.lock().forget(room);
    }

    fn warning(&self) -> Option<String> {
        self.client.tracking_problem()
    }
}

/// The terms under which the replies to a batch's commands were read; empty if none is tracked.
type Terms = Vec<Option<LeaseTerm>>;

fn split(replies: TrackedValues) -> (Vec<Value>, Terms) {
    replies.into_iter().unzip()
}

/// Rooms by their keys.
struct RoomObserver(Arc<dyn RoomChanges>);

impl KeyObserver for RoomObserver {
    fn key_changed(&self, key: &[u8]) {
        // No room that was looked up has another name.
        if let Some(room) =
            std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(room_query::ROOM_KEYS))
        {
            self.0.room_changed(&RoomId::from(room));
        }
    }

    fn terms_ended(&self, cause: ForgetCause) {
        self.0.terms_ended(cause);
    }
}
