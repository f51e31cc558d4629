//! Reads one large room in pages, each short for Redis and its other clients.
//!
//! A round trip scans the next members (`SSCAN`), fetches `connection:info` of those scanned before,
//! and queries which of the users found so far are online. `SSCAN` returns every member that stays in
//! the room throughout, some of them twice.
//!
//! A member whose `connection:info` exceeds the limit on replies counts as stale and is not requested
//! again, so it does not affect the others.
//!
//! A room is [`DirectoryReply::Unreadable`] if Redis cannot read it in time although it answers
//! otherwise, or if it has too many members: it must not hold up other messages. A Redis that does not
//! answer at all is [`Unavailable`].

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use redis::{Cmd, Value};

use super::batch::bytes;
use super::room_query::{self, AddressInterner, ConnectionRow};
use super::{DirectoryReply, RoomReading, Unavailable};
use crate::membership::{Connection, Membership};
use crate::message::{RoomId, UserId};
use crate::redis_client::{RedisClient, Refusal, elements, excess, refusal};
use crate::telemetry::LogThrottle;

/// Users per `MGET`: enough to be cheap, few enough not to hold up Redis' other clients.
pub(super) const USERS_AT_ONCE: usize = 1_000;
/// Initial page size, in members. With the other commands of a round trip, a page fits into one
/// pipeline.
const PAGE: usize = 1_800;
/// Each further attempt uses pages of a fifth of the size.
const ATTEMPTS: u32 = 3;
/// How often oversized members, which are then left out, may cost the connection.
const MOST_LARGE: usize = 10;

/// Throttles log lines about oversized members.
static LARGE: LogThrottle = LogThrottle::new(5, Duration::from_secs(10));

/// Reads rooms in pages.
pub(super) struct Pages<'a> {
    pub(super) client: &'a RedisClient,
    pub(super) check_online: bool,
    /// Maximum number of members of a room.
    pub(super) max_room_size: usize,
}

/// Why an attempt failed.
enum ScanError {
    /// Retrying does not help.
    Unreadable(String),
    /// Redis did not answer in time, or another server answers now.
    Interrupted(String),
    Unavailable(Unavailable),
}

impl From<Unavailable> for ScanError {
    fn from(unavailable: Unavailable) -> Self {
        if unavailable.is_slow() {
            Self::Interrupted(unavailable.problem().to_owned())
        } else {
            Self::Unavailable(unavailable)
        }
    }
}

impl Pages<'_> {
    /// Reads a room, or finds that it cannot be read.
    ///
    /// # Errors
    /// If Redis does not answer at all.
    pub(super) async fn read(&self, room: &RoomId) -> Result<DirectoryReply, Unavailable> {
        let mut why = String::new();
        let (mut attempt, mut large) = (0, HashSet::new());
        while attempt < ATTEMPTS {
            let known = large.len();
            let outcome = self.attempt(room, PAGE / 5_usize.pow(attempt), &mut large).await;
            // An attempt that found further large keys made progress and does not count.
            attempt += u32::from(large.len() == known || known > MOST_LARGE);
            match outcome {
                Ok(reading) => return Ok(DirectoryReply::Room(reading)),
                Err(ScanError::Unreadable(why)) => return Ok(DirectoryReply::Unreadable(why.into())),
                Err(ScanError::Unavailable(unavailable)) => return Err(unavailable),
                Err(ScanError::Interrupted(problem)) => {
                    // Is Redis at fault, or the room?
                    self.client.answers().await?;
                    why = problem;
                }
            }
        }
        let why =
            format!("room `{room}` could not be read in {ATTEMPTS} attempts, while Redis answers: {why}");
        Ok(DirectoryReply::Unreadable(why.into()))
    }

    async fn attempt(
        &self,
        room: &RoomId,
        page: usize,
        large: &mut HashSet<Vec<u8>>,
    ) -> Result<RoomReading, ScanError> {
        let mut room_query = PagedScan::new(self, room, large);
        let (mut epoch, mut term) = (None, None);
        loop {
            let (step, commands) = room_query.next(page);
            if commands.is_empty() {
                let mut reading = RoomReading::untracked(room_query.membership());
                reading.freshness.term = term;
                return Ok(reading);
            }
            let (replies, terms): (Vec<_>, Vec<_>) =
                self.client.run_tracked("get_room_connections", commands).await?.into_iter().unzip();
            if epoch.is_none() {
                // Changes after the first part are reported.
                term = terms.into_iter().next().flatten();
            }
            let scans_on = step.scans || room_query.cursor.is_some();
            room_query.take(&step, replies)?;
            // A cursor is only valid on the server that returned it.
            let now = self.client.scan_epoch();
            if *epoch.get_or_insert(now) != now && scans_on {
                return Err(ScanError::Interrupted("the connection to Redis was lost".into()));
            }
            epoch = Some(now);
        }
    }
}

/// One attempt.
struct PagedScan<'a> {
    pages: &'a Pages<'a>,
    room: &'a RoomId,
    /// Members whose `connection:info` is oversized.
    large: &'a mut HashSet<Vec<u8>>,
    /// Where the scan continues; `None` at its end.
    cursor: Option<Vec<u8>>,
    seen: HashSet<Vec<u8>>,
    /// Members whose `connection:info` has not been fetched.
    ids: VecDeque<Value>,
    comets: AddressInterner,
    connections: Vec<ConnectionRow>,
    stale: usize,
    asked: HashSet<UserId>,
    /// Users whose presence is unknown.
    users: VecDeque<UserId>,
    not_online: HashSet<UserId>,
}

/// The content of one round trip.
struct PageRequest {
    scans: bool,
    ids: Vec<Value>,
    users: Vec<UserId>,
}

impl<'a> PagedScan<'a> {
    fn new(pages: &'a Pages<'a>, room: &'a RoomId, large: &'a mut HashSet<Vec<u8>>) -> Self {
        Self {
            pages,
            room,
            large,
            cursor: Some(b"0".to_vec()),
            seen: HashSet::new(),
            ids: VecDeque::new(),
            comets: AddressInterner::default(),
            connections: Vec::new(),
            stale: 0,
            asked: HashSet::new(),
            users: VecDeque::new(),
            not_online: HashSet::new(),
        }
    }

    /// The next round trip; no commands when everything is known.
    fn next(&mut self, page: usize) -> (PageRequest, Vec<Cmd>) {
        let ids: Vec<_> = self.ids.drain(..page.min(self.ids.len())).collect();
        let users: Vec<_> = self.users.drain(..page.min(self.users.len())).collect();
        let scan = self.cursor.as_deref().filter(|_| self.ids.is_empty());
        let mut commands = Vec::with_capacity(ids.len() + 3);
        commands.extend(scan.map(|cursor| room_query::sscan(self.room.as_str(), cursor, page)));
        commands.extend(ids.iter().map(|id| room_query::connection_info(bytes(id))));
        commands.extend(users.chunks(USERS_AT_ONCE).map(room_query::users_online));
        (PageRequest { scans: scan.is_some(), ids, users }, commands)
    }

    fn take(&mut self, step: &PageRequest, replies: Vec<Value>) -> Result<(), ScanError> {
        let mut replies = replies.into_iter();
        if step.scans {
            self.scanned(replies.next().unwrap_or_default())?;
        }
        for id in &step.ids {
            self.described(id, replies.next().unwrap_or_default())?;
        }
        let answers = replies.flat_map(elements).map(|answer| answer == Value::Nil);
        for (user, absent) in step.users.iter().zip(answers) {
            if absent {
                self.not_online.insert(user.clone());
            }
        }
        Ok(())
    }

    fn scanned(&mut self, reply: Value) -> Result<(), ScanError> {
        if let Some(excess) = excess(&reply) {
            let key = room_query::room_key(self.room.as_str());
            let why = format!(
                "the ids of members in `{key}` take {excess}: take them out, or raise [redis] max_reply"
            );
            return Err(ScanError::Interrupted(why));
        }
        if let Some(why) = self.refused(&reply)? {
            // A key of the wrong type: the room is empty.
            tracing::debug!(room = %self.room, why, "the room is not a set");
            self.cursor = None;
            return Ok(());
        }
        let (cursor, ids) = room_query::scanned(reply);
        for id in ids {
            if !self.seen.insert(bytes(&id).to_vec()) {
                continue;
            }
            if self.large.contains(bytes(&id)) {
                self.stale += 1;
            } else {
                self.ids.push_back(id);
            }
        }
        let most = self.pages.max_room_size;
        if self.seen.len() > most {
            let why =
                format!("room `{}` has more than {most} members; see `[routing] max_room_size`", self.room);
            return Err(ScanError::Unreadable(why));
        }
        self.cursor = cursor;
        Ok(())
    }

    fn described(&mut self, id: &Value, reply: Value) -> Result<(), ScanError> {
        if let Some(excess) = excess(&reply) {
            self.large.insert(bytes(id).to_vec());
            let (room, id) = (self.room, String::from_utf8_lossy(bytes(id)));
            if let Some(held_back) = LARGE.admit() {
                tracing::warn!(
                    held_back,
                    "`connection:info:{id}`, a member of room `{room}`, takes {excess} and is skipped; delete it, or raise [redis] max_reply"
                );
            }
        }
        self.refused(&reply)?;
        let Some(connection) = room_query::describe_member(id.clone(), reply, &mut self.comets) else {
            self.stale += 1;
            return Ok(());
        };
        if let Some(user) = connection.user.as_ref().filter(|_| self.pages.check_online)
            && self.asked.insert(user.clone())
        {
            self.users.push_back(user.clone());
        }
        self.connections.push(connection);
        Ok(())
    }

    /// Why a key of another type cannot be read; an error if access is denied.
    fn refused(&self, reply: &Value) -> Result<Option<&'static str>, ScanError> {
        match refusal(reply) {
            None => Ok(None),
            Some(Refusal::WrongType) => Ok(Some("wrong type")),
            Some(Refusal::Denied(said) | Refusal::Other(said)) => {
                let room = self.room;
                let denied =
                    self.pages.client.denied("get_room_connections", format!("{said} (room `{room}`)"));
                Err(ScanError::Unavailable(denied))
            }
        }
    }

    fn membership(self) -> Membership {
        let not_online = self.not_online;
        let connections = self.connections.into_iter().map(|ConnectionRow { id, comet, user }| {
            let online = user.as_ref().is_none_or(|user| !not_online.contains(user));
            Connection { id, user, comet, online }
        });
        Membership::new(connections, self.stale)
    }
}
