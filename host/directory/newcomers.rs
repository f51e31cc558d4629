//! Reads rooms of which most members are known: lists the ids, and fetches only what is new.
//!
//! Three round trips for all rooms together: the ids (`SSCAN`, more round trips for large rooms), the
//! details of newcomers, and which of their users are online. Listing costs a fifth to a thirteenth of
//! reading everything.
//!
//! Members without details count as newcomers each time: their details may be there now.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use redis::{Cmd, Value};

use super::Unavailable;
use super::batch::bytes;
use super::freshness::{Freshness, LeaseTerm, RoomReading};
use super::known_rooms::KnownRoom;
use super::pages::USERS_AT_ONCE;
use super::room_query::{self, AddressInterner, ConnectionRow};
use crate::membership::{Connection, Member, Membership};
use crate::message::{RoomId, UserId};
use crate::redis_client::{RedisClient, denial, elements, refusal};

/// Ids that are listed with one command: about 5 ms of Redis' time.
const LISTED_AT_ONCE: usize = 10_000;

/// Reads newcomers.
pub(super) struct Newcomers<'a> {
    pub(super) client: &'a RedisClient,
    pub(super) check_online: bool,
    /// Maximum number of members of a room.
    pub(super) max_room_size: usize,
}

/// A room while its ids are listed.
struct Listing {
    room: RoomId,
    known: KnownRoom,
    /// Where the scan continues; `None` at its end.
    cursor: Option<Vec<u8>>,
    /// The term of the first part.
    term: Option<LeaseTerm>,
    ids: Vec<Value>,
    /// Whether it has to be read as a whole instead.
    failed: bool,
}

/// A room of which all ids are listed.
struct Listed {
    membership: Membership,
    newcomers: Vec<Value>,
    freshness: Freshness,
}

impl Newcomers<'_> {
    /// Reads these rooms; `None` for one that has to be read as a whole. Also returns how many details
    /// were fetched.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub(super) async fn read(
        &self,
        rooms: Vec<(RoomId, KnownRoom)>,
    ) -> Result<(Vec<Option<RoomReading>>, usize), Unavailable> {
        let mut listed: Vec<Option<Listed>> = self.list(rooms).await?.into_iter().map(listed).collect();
        let commands: Vec<Cmd> = listed
            .iter()
            .flatten()
            .flat_map(|room| room.newcomers.iter().map(|id| room_query::connection_info(bytes(id))))
            .collect();
        let fetched = commands.len();
        if fetched > 0 {
            let infos = self.client.run_scan("get_connections", commands).await?;
            if let Some(denied) = infos.iter().find_map(denial) {
                return Err(self.client.denied("lookup", format!("{denied} (`connection:info:*`)")));
            }
            let users = add_newcomers(&mut listed, infos);
            if self.check_online {
                self.set_presence(&mut listed, users).await?;
            }
        }
        Ok((listed.into_iter().map(|room| room.map(Listed::reading)).collect(), fetched))
    }

    /// Lists the ids of all rooms.
    async fn list(&self, rooms: Vec<(RoomId, KnownRoom)>) -> Result<Vec<Listing>, Unavailable> {
        let mut listings: Vec<Listing> = rooms.into_iter().map(Listing::new).collect();
        loop {
            let mut open: Vec<&mut Listing> =
                listings.iter_mut().filter(|listing| listing.cursor.is_some() && !listing.failed).collect();
            if open.is_empty() {
                return Ok(listings);
            }
            let scan = |listing: &&mut Listing| {
                let cursor = listing.cursor.as_deref().unwrap_or(b"0");
                room_query::sscan(listing.room.as_str(), cursor, LISTED_AT_ONCE)
            };
            let commands = open.iter().map(scan).collect();
            let replies = self.client.run_tracked("get_room_connections", commands).await?;
            for (listing, (reply, term)) in open.iter_mut().zip(replies) {
                listing.take(reply, term, self.max_room_size);
            }
        }
    }

    /// Asks which of the newcomers' users are online.
    async fn set_presence(
        &self,
        listed: &mut [Option<Listed>],
        users: HashSet<UserId>,
    ) -> Result<(), Unavailable> {
        let users: Vec<UserId> = users.into_iter().collect();
        let commands: Vec<Cmd> = users.chunks(USERS_AT_ONCE).map(room_query::users_online).collect();
        if commands.is_empty() {
            return Ok(());
        }
        let replies = self.client.run_scan("get_users_online", commands).await?;
        if let Some(denied) = replies.iter().find_map(denial) {
            return Err(self.client.denied("lookup", format!("{denied} (`user:online:*`)")));
        }
        let answers = replies.into_iter().flat_map(elements).map(|answer| answer != Value::Nil);
        let online: HashMap<UserId, bool> = users.into_iter().zip(answers).collect();
        for member in listed.iter_mut().flatten().flat_map(|room| &mut room.membership.members) {
            if let Some(known) = member.user.as_ref().and_then(|user| online.get(user)) {
                member.online = *known;
            }
        }
        Ok(())
    }
}

impl Listing {
    fn new((room, known): (RoomId, KnownRoom)) -> Self {
        Self { room, known, cursor: Some(b"0".to_vec()), term: None, ids: Vec::new(), failed: false }
    }

    fn take(&mut self, reply: Value, term: Option<LeaseTerm>, max_room_size: usize) {
        // What is wrong with the room shows when it is read as a whole.
        self.failed = refusal(&reply).is_some() || term.is_none();
        self.term = self.term.take().or(term);
        let (cursor, ids) = room_query::scanned(reply);
        self.ids.extend(ids);
        self.cursor = cursor;
        // With repeats, which are few.
        self.failed |= self.ids.len() > max_room_size;
    }
}

/// Which of the ids are known, and which are new; `None` if the room has to be read as a whole.
fn listed(listing: Listing) -> Option<Listed> {
    let Listing { known, term, ids, failed, .. } = listing;
    let term = term?;
    // A cursor is only valid on the server that returned it.
    if failed || term.is_over() {
        return None;
    }
    let KnownRoom { membership: known, details_since } = known;
    let mut by_id: HashMap<&[u8], Option<&Member>, RandomState> =
        known.members.iter().map(|member| (member.id.as_str().as_bytes(), Some(member))).collect();
    let mut membership = Membership { comets: known.comets.clone(), ..Membership::default() };
    let mut newcomers = Vec::new();
    // Each once: a scan may repeat what it has listed.
    let mut seen: HashSet<Vec<u8>, RandomState> = HashSet::default();
    for id in ids {
        match by_id.get_mut(bytes(&id)) {
            Some(member) => membership.members.extend(member.take().cloned()),
            None if !seen.insert(bytes(&id).to_vec()) => {}
            None => newcomers.push(id),
        }
    }
    let freshness = Freshness { term: Some(term), details_since, ..Freshness::untracked() };
    Some(Listed { membership, newcomers, freshness })
}

/// Adds the newcomers by their details. Returns their users.
fn add_newcomers(listed: &mut [Option<Listed>], infos: Vec<Value>) -> HashSet<UserId> {
    let (mut infos, mut comets, mut users) = (infos.into_iter(), AddressInterner::default(), HashSet::new());
    for room in listed.iter_mut().flatten() {
        for id in std::mem::take(&mut room.newcomers) {
            let info = infos.next().unwrap_or_default();
            match room_query::describe_member(id, info, &mut comets) {
                Some(row) => {
                    users.extend(row.user.clone());
                    room.add(row);
                }
                None => room.membership.stale += 1,
            }
        }
    }
    users
}

impl Listed {
    fn add(&mut self, ConnectionRow { id, comet, user }: ConnectionRow) {
        let comets = &mut self.membership.comets;
        let at = comets.iter().position(|known| *known == comet).unwrap_or_else(|| {
            comets.push(comet);
            comets.len() - 1
        });
        self.membership.members.push(Member { id, user, comet: at as u32, online: true });
    }

    fn reading(self) -> RoomReading {
        let Self { mut membership, mut freshness, .. } = self;
        let mut used = vec![false; membership.comets.len()];
        membership.members.iter().for_each(|member| used[member.comet as usize] = true);
        if !used.iter().all(|used| *used) {
            membership = without_unused_comets(membership);
        }
        freshness.complete = membership.stale == 0;
        RoomReading { membership: Arc::new(membership), freshness }
    }
}

/// The same members; only comets that hold one of them.
fn without_unused_comets(membership: Membership) -> Membership {
    let Membership { comets, members, stale } = membership;
    let connections = members.into_iter().map(|Member { id, user, comet, online }| {
        let comet = comets[comet as usize].clone();
        Connection { id, user, comet, online }
    });
    Membership::new(connections, stale)
}
