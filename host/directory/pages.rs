//! Reads one large room in pages, each short for Redis and its other clients.
//!
//! A round trip scans the next members (`SSCAN`), fetches `connection:info` of those scanned before,
//! and queries which of the users found so far are online. `SSCAN` returns every member that stays in
//! the room throughout, some of them twice.
//!
//! A member whose `connection:info` is larger than a reply may be is stale, and costs the others
//! nothing: it is not asked for again.
//!
//! A room that Redis does not manage to read in time although it answers otherwise, or that has
//! more members than may be, is [`Found::Unreadable`]: it must not hold up what has nothing to do
//! with it. A Redis that answers nothing is [`Unavailable`].

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use redis::{Cmd, Value};

use super::batch::bytes;
use super::reading::{self, Comets, Described};
use super::{Found, Unavailable};
use crate::membership::{Connection, Membership};
use crate::message::{RoomId, UserId};
use crate::redis_client::{RedisClient, Refusal, elements, excess, refusal};
use crate::telemetry::LogThrottle;

/// How many users one `MGET` asks for: long enough to be cheap, short enough not to hold up
/// Redis' other clients.
pub(super) const USERS_AT_ONCE: usize = 1_000;
/// Members of one page, at first. With the other commands of a round trip they fit into one
/// pipeline.
const PAGE: usize = 1_800;
/// Each further attempt uses pages of a fifth of the size.
const ATTEMPTS: u32 = 3;
/// How often the connection may be lost to members that are too large, which are left out then.
const MOST_LARGE: usize = 10;

/// Lines about members that are too large.
static LARGE: LogThrottle = LogThrottle::new(5, Duration::from_secs(10));

/// Reads rooms in pages.
pub(super) struct Pages<'a> {
    pub(super) client: &'a RedisClient,
    pub(super) check_online: bool,
    /// Maximum number of members of a room.
    pub(super) max_room: usize,
}

/// Why an attempt failed.
enum Ended {
    /// Retrying does not help.
    Unreadable(String),
    /// Redis did not answer in time, or another server answers now.
    Interrupted(String),
    Unavailable(Unavailable),
}

impl From<Unavailable> for Ended {
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
    /// If Redis answers nothing.
    pub(super) async fn read(&self, room: &RoomId) -> Result<Found, Unavailable> {
        let mut why = String::new();
        let (mut attempt, mut large) = (0, HashSet::new());
        while attempt < ATTEMPTS {
            let known = large.len();
            let outcome = self.attempt(room, PAGE / 5_usize.pow(attempt), &mut large).await;
            // One that found out whom not to ask for was not in vain.
            attempt += u32::from(large.len() == known || known > MOST_LARGE);
            match outcome {
                Ok(membership) => return Ok(Found::Room(membership)),
                Err(Ended::Unreadable(why)) => return Ok(Found::Unreadable(why.into())),
                Err(Ended::Unavailable(unavailable)) => return Err(unavailable),
                Err(Ended::Interrupted(problem)) => {
                    // Is Redis at fault, or the room?
                    self.client.answers().await?;
                    why = problem;
                }
            }
        }
        let why =
            format!("room `{room}` could not be read in {ATTEMPTS} attempts, while Redis answers: {why}");
        Ok(Found::Unreadable(why.into()))
    }

    async fn attempt(
        &self,
        room: &RoomId,
        page: usize,
        large: &mut HashSet<Vec<u8>>,
    ) -> Result<Membership, Ended> {
        let mut reading = Reading::new(self, room, large);
        let mut epoch = None;
        loop {
            let (step, commands) = reading.next(page);
            if commands.is_empty() {
                return Ok(reading.membership());
            }
            let replies = self.client.run_scan("get_room_connections", commands).await?;
            let scans_on = step.scans || reading.cursor.is_some();
            reading.take(&step, replies)?;
            // A cursor means something to the server alone that gave it.
            let now = self.client.scan_epoch();
            if *epoch.get_or_insert(now) != now && scans_on {
                return Err(Ended::Interrupted("the connection to Redis was lost".into()));
            }
            epoch = Some(now);
        }
    }
}

/// One attempt.
struct Reading<'a> {
    pages: &'a Pages<'a>,
    room: &'a RoomId,
    /// Members whose `connection:info` is too large.
    large: &'a mut HashSet<Vec<u8>>,
    /// Where the scan goes on; `None` at its end.
    cursor: Option<Vec<u8>>,
    seen: HashSet<Vec<u8>>,
    /// Members whose `connection:info` has not been fetched.
    ids: VecDeque<Value>,
    comets: Comets,
    connections: Vec<Described>,
    stale: usize,
    asked: HashSet<UserId>,
    /// Users whose presence is unknown.
    users: VecDeque<UserId>,
    not_online: HashSet<UserId>,
}

/// The content of one round trip.
struct Step {
    scans: bool,
    ids: Vec<Value>,
    users: Vec<UserId>,
}

impl<'a> Reading<'a> {
    fn new(pages: &'a Pages<'a>, room: &'a RoomId, large: &'a mut HashSet<Vec<u8>>) -> Self {
        Self {
            pages,
            room,
            large,
            cursor: Some(b"0".to_vec()),
            seen: HashSet::new(),
            ids: VecDeque::new(),
            comets: Comets::default(),
            connections: Vec::new(),
            stale: 0,
            asked: HashSet::new(),
            users: VecDeque::new(),
            not_online: HashSet::new(),
        }
    }

    /// The next round trip; no commands when everything is known.
    fn next(&mut self, page: usize) -> (Step, Vec<Cmd>) {
        let ids: Vec<_> = self.ids.drain(..page.min(self.ids.len())).collect();
        let users: Vec<_> = self.users.drain(..page.min(self.users.len())).collect();
        let scan = self.cursor.as_deref().filter(|_| self.ids.is_empty());
        let mut commands = Vec::with_capacity(ids.len() + 3);
        commands.extend(scan.map(|cursor| reading::sscan(self.room.as_str(), cursor, page)));
        commands.extend(ids.iter().map(|id| reading::connection_info(bytes(id))));
        commands.extend(users.chunks(USERS_AT_ONCE).map(reading::users_online));
        (Step { scans: scan.is_some(), ids, users }, commands)
    }

    fn take(&mut self, step: &Step, replies: Vec<Value>) -> Result<(), Ended> {
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

    fn scanned(&mut self, reply: Value) -> Result<(), Ended> {
        if let Some(excess) = excess(&reply) {
            let key = reading::room_key(self.room.as_str());
            let why = format!(
                "the ids of members in `{key}` take {excess}: take them out, or raise [redis] max_reply"
            );
            return Err(Ended::Interrupted(why));
        }
        if let Some(why) = self.refused(&reply)? {
            // A key of the wrong type: the room is empty.
            tracing::debug!(room = %self.room, why, "the room is not a set");
            self.cursor = None;
            return Ok(());
        }
        let (cursor, ids) = reading::scanned(reply);
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
        let most = self.pages.max_room;
        if self.seen.len() > most {
            let why = format!("room `{}` has more than {most} members; see `[routing] max_room`", self.room);
            return Err(Ended::Unreadable(why));
        }
        self.cursor = cursor;
        Ok(())
    }

    fn described(&mut self, id: &Value, reply: Value) -> Result<(), Ended> {
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
        let Some(connection) = reading::describe_member(id.clone(), reply, &mut self.comets) else {
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
    fn refused(&self, reply: &Value) -> Result<Option<&'static str>, Ended> {
        match refusal(reply) {
            None => Ok(None),
            Some(Refusal::WrongType) => Ok(Some("wrong type")),
            Some(Refusal::Denied(said) | Refusal::Other(said)) => {
                let room = self.room;
                let denied =
                    self.pages.client.denied("get_room_connections", format!("{said} (room `{room}`)"));
                Err(Ended::Unavailable(denied))
            }
        }
    }

    fn membership(self) -> Membership {
        let not_online = self.not_online;
        let connections = self.connections.into_iter().map(|Described { id, comet, user }| {
            let online = user.as_ref().is_none_or(|user| !not_online.contains(user));
            Connection { id, user, comet, online }
        });
        Membership::new(connections, self.stale)
    }
}
