//! Finds recipients: rooms through the route cache, keys directly, with all look-ups of a batch
//! pipelined.
//!
//! Names of comets, from the directory or a policy, are mapped to addresses here, once; later code
//! compares addresses. The fleet also learns here which comets the directory names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::comets::{Dialect, Fleet, ServerNames};
use crate::decision::{IdKind, Overrides};
use crate::directory::{
    CacheMetrics, CachedAge, Directory, DirectoryReply, Freshness, Lookup, LookupLeader, RoomReading,
    Unavailable,
};
use crate::membership::{Connection, Grouping};
use crate::message::{Audience, CallTarget, CometAddr, Message, NamedBy, RoomId};
use crate::pipeline::cached_routes::{CachedRoutes, Claimed, Leader};
use crate::pipeline::chain::BatchChain;
use crate::pipeline::config::{RoomSource, RoutingConfig};
use crate::pipeline::retry::{Cancelled, HoldContext, hold_behind, retry_until_cancelled};
use crate::policy::{Chain, HookKind};
use crate::router::{DeliveryPlan, Route};
use crate::stalls::StallStage;

/// Finds recipients and caches rooms for a short time.
pub struct Resolver {
    directory: Arc<dyn Directory>,
    fleet: Arc<Fleet>,
    cached: CachedRoutes,
    rooms: RoomSource,
    unknown_keys: IdKind,
}

/// The results of a batch's look-ups.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    routes: HashMap<RoomId, Arc<Route>, RandomState>,
    /// Rooms that cannot be read, and why.
    unreadable: HashMap<RoomId, Arc<str>>,
    connections: HashMap<Arc<str>, Option<Connection>, RandomState>,
}

impl Resolved {
    /// Why the room of a message cannot be read, if it cannot.
    pub(super) fn unreadable(&self, message: &Message) -> Option<&str> {
        self.unreadable.get(message.room()?).map(|why| &**why)
    }
}

impl Resolver {
    /// A resolver over this directory, for this fleet, whose comets speak this dialect.
    pub fn new(
        directory: Arc<dyn Directory>,
        fleet: Arc<Fleet>,
        config: &RoutingConfig,
        dialect: Dialect,
        metrics: CacheMetrics,
    ) -> Self {
        let cached = CachedRoutes::new(Arc::clone(&directory), &config.cache, metrics);
        let unknown_keys = config.push_keys(dialect).identity();
        Self { directory, fleet, cached, rooms: config.rooms, unknown_keys }
    }

    /// What a key is if the directory does not know it.
    pub(super) fn unknown_keys(&self) -> IdKind {
        self.unknown_keys
    }

    /// A comet reported that connections of this room are gone: its route is read again soon.
    pub(super) fn note_outdated(&self, room: &RoomId) {
        self.cached.note_outdated(room);
    }

    /// The cached route of a room for this generation of policies, and how current it is.
    pub fn cached(&self, room: &RoomId, generation: u64) -> Option<(Arc<Route>, CachedAge)> {
        self.cached.peek(room, generation)
    }

    /// Keeps cached routes current for as long as it is polled.
    pub async fn keep_current(&self) {
        self.directory.keep_current().await;
    }

    /// Why cached routes are not exact, although they should be.
    pub fn warning(&self) -> Option<String> {
        self.directory.warning()
    }

    /// The current route of a room, for `GET /v1/routes/{room}`: looked up without the cache,
    /// regrouped by `chain`, and not cached.
    ///
    /// # Errors
    /// When the directory is unreachable, or a policy stalls.
    pub async fn route(&self, room: &RoomId, chain: &mut Chain) -> anyhow::Result<Arc<Route>> {
        let found = self.read(&[Lookup::Room(room.clone())]).await?;
        let membership = match found.into_iter().next() {
            Some(DirectoryReply::Room(reading)) => reading.membership,
            Some(DirectoryReply::Unreadable(why)) => anyhow::bail!("{why}"),
            Some(DirectoryReply::Key(_)) | None => {
                anyhow::bail!("the directory did not answer for room `{room}`")
            }
        };
        let mut grouping = Grouping::new(membership);
        chain.regroup(room, &mut grouping)?;
        Ok(self.regrouped(grouping))
    }

    /// The connections with these ids, or of the users with these ids; one for each, in order.
    ///
    /// # Errors
    /// When the directory is unreachable.
    pub(super) async fn connections(
        &self,
        keys: &[Arc<str>],
    ) -> Result<Vec<Option<Connection>>, Unavailable> {
        let mut connections = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOOKUP_CHUNK) {
            let lookups: Vec<_> = keys.iter().cloned().map(Lookup::Key).collect();
            connections.extend(self.read(&lookups).await?.into_iter().map(DirectoryReply::connection));
        }
        Ok(connections)
    }

    /// Looks up what one message needs, without the cache.
    pub(super) async fn resolve_uncached(
        &self,
        message: &Message,
        chain: &mut Chain,
    ) -> anyhow::Result<Resolved> {
        let mut resolved = Resolved::default();
        for room in self.wanted_rooms(&[message]) {
            let route = self.route(&room, chain).await?;
            resolved.routes.insert(room, route);
        }
        let keys = self.wanted_keys(&[message]);
        let connections = self.connections(&keys).await?;
        resolved.connections.extend(keys.into_iter().zip(connections));
        Ok(resolved)
    }

    /// Queries the directory once, maps comets to addresses, and tells the fleet about them.
    async fn read(&self, lookups: &[Lookup]) -> Result<Vec<DirectoryReply>, Unavailable> {
        let mut found = self.directory.lookup(lookups).await?;
        let names = self.fleet.names();
        for found in &mut found {
            match found {
                DirectoryReply::Room(RoomReading { membership, .. }) => {
                    map_addresses(&names, |address_of| {
                        Arc::make_mut(membership).map_addresses(address_of);
                    });
                }
                DirectoryReply::Key(Some(connection)) => {
                    if let Some(address) = names.get(&connection.comet) {
                        connection.comet = address.clone();
                    }
                }
                DirectoryReply::Key(None) | DirectoryReply::Unreadable(_) => {}
            }
        }
        self.fleet.named_by_directory(found.iter().flat_map(comets_of));
        Ok(found)
    }

    /// The route of a room after regrouping. Policies may have named comets by server name.
    fn regrouped(&self, mut grouping: Grouping) -> Arc<Route> {
        map_addresses(&self.fleet.names(), |address_of| grouping.map_addresses(address_of));
        Arc::new(Route::new(&grouping))
    }

    /// Looks up what these messages need, and retries until the directory answers. `adds_comets`:
    /// whether plugins want additional comets called; then it must be known whether these are the
    /// gateway's own.
    pub(super) async fn resolve(
        &self,
        messages: &[&Message],
        adds_comets: bool,
        chain: &BatchChain,
        hold: HoldContext<'_>,
    ) -> Result<Resolved, Cancelled> {
        let mut resolved = Resolved::default();
        let needs_comets = |message: &&Message| self.is_for_every_comet(message) || self.is_refused(message);
        if !self.fleet.is_informed() && (adds_comets || messages.iter().any(needs_comets)) {
            retry_until_cancelled(hold, StallStage::Resolve, || self.fleet.share()).await?;
        }
        let mut keys = self.wanted_keys(messages);
        let mut rooms = self.wanted_rooms(messages);
        let need = self.cached.need(&rooms).await;
        // A room that another worker failed to resolve is looked up again.
        while !rooms.is_empty() || !keys.is_empty() {
            let generation = chain.set().generation().0;
            let by = LookupLeader { topic: Arc::clone(hold.topic), partition: hold.partition };
            let Claimed { hits, owned, awaited, deferred } =
                self.cached.claim(std::mem::take(&mut rooms), generation, &by, need);
            resolved.routes.extend(hits);
            self.look_up(owned, std::mem::take(&mut keys), chain, hold, &mut resolved).await?;
            // Only now, with no claims of its own, may this worker wait for others.
            for (room, waiter) in awaited {
                let leader = waiter.leader().clone();
                let cause = || format!("room `{room}` is being looked up for {leader}: waiting for that");
                match hold_behind(hold, StallStage::Resolve, USUAL, cause, waiter.wait()).await? {
                    Some(route) => drop(resolved.routes.insert(room, route)),
                    None => rooms.push(room),
                }
            }
            if let Some(pause) = deferred.iter().map(|(_, pause)| *pause).max() {
                let cause =
                    || "a large room changes faster than it can be read: waiting for its turn".to_owned();
                hold_behind(hold, StallStage::Resolve, USUAL, cause, tokio::time::sleep(pause)).await?;
                rooms.extend(deferred.into_iter().map(|(room, _)| room));
            }
        }
        Ok(resolved)
    }

    /// The calls and the absent recipients of one message.
    pub(super) fn plan<'c>(
        &self,
        message: &Message,
        resolved: &Resolved,
        everyone: impl FnOnce() -> &'c [CometAddr],
        address_of: impl FnOnce(&str) -> CometAddr,
        overrides: &Overrides,
    ) -> (DeliveryPlan, Option<Arc<Route>>) {
        let overrides = &*self.with_mapped_addresses(overrides);
        match &message.audience {
            Audience::Everyone { speed } => {
                let target = CallTarget::Everyone { speed: *speed };
                (DeliveryPlan::everywhere(everyone(), &target, overrides), None)
            }
            Audience::Room(room) if self.rooms == RoomSource::EveryComet => {
                (DeliveryPlan::everywhere(everyone(), &CallTarget::Room(room.clone()), overrides), None)
            }
            Audience::Room(room) => {
                let route = resolved.routes.get(room).cloned().unwrap_or_default();
                (DeliveryPlan::room(room, &route, overrides), Some(route))
            }
            Audience::Keys { server: Some(server), keys } => {
                (DeliveryPlan::server(&address_of(server), keys, overrides), None)
            }
            Audience::Keys { server: None, keys } => {
                let connection = |key: &Arc<str>| resolved.connections.get(key).cloned().flatten();
                let found = keys.iter().map(|key| (Arc::clone(key), connection(key))).collect();
                (DeliveryPlan::keys(found, self.unknown_keys, overrides), None)
            }
        }
    }

    fn with_mapped_addresses<'a>(&self, overrides: &'a Overrides) -> Cow<'a, Overrides> {
        let names = self.fleet.names();
        if names.is_empty() || (overrides.also.is_empty() && !overrides.restricts()) {
            return Cow::Borrowed(overrides);
        }
        let mut overrides = overrides.clone();
        overrides.map_addresses(|comet| names.get(comet).cloned());
        Cow::Owned(overrides)
    }

    /// Whether the comet that a record names could not be called with what is known now.
    fn is_refused(&self, message: &Message) -> bool {
        let Audience::Keys { server: Some(server), .. } = &message.audience else { return false };
        self.fleet.why_unusable(&self.fleet.address_of(server), NamedBy::Record).is_some()
    }

    fn is_for_every_comet(&self, message: &Message) -> bool {
        match &message.audience {
            Audience::Everyone { .. } => true,
            Audience::Room(_) => self.rooms == RoomSource::EveryComet,
            Audience::Keys { .. } => false,
        }
    }

    fn wanted_rooms(&self, messages: &[&Message]) -> Vec<RoomId> {
        if self.rooms == RoomSource::EveryComet {
            return Vec::new();
        }
        let mut rooms: Vec<_> = messages.iter().filter_map(|message| message.room().cloned()).collect();
        rooms.sort_unstable();
        rooms.dedup();
        rooms
    }

    fn wanted_keys(&self, messages: &[&Message]) -> Vec<Arc<str>> {
        let mut wanted = Vec::new();
        for message in messages {
            if let Audience::Keys { server: None, keys } = &message.audience {
                wanted.extend(keys.iter().cloned());
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    async fn look_up(
        &self,
        owned: Vec<Leader>,
        keys: Vec<Arc<str>>,
        chain: &BatchChain,
        hold: HoldContext<'_>,
        resolved: &mut Resolved,
    ) -> Result<(), Cancelled> {
        let rooms = owned.iter().map(|(room, _)| Lookup::Room(room.clone()));
        let lookups: Vec<_> = rooms.chain(keys.iter().cloned().map(Lookup::Key)).collect();
        if lookups.is_empty() {
            return Ok(());
        }
        let mut found = self.ask(&lookups, hold).await?.into_iter();
        for (room, permit) in owned {
            let RoomReading { membership, freshness } = match found.next() {
                Some(DirectoryReply::Room(reading)) => reading,
                Some(DirectoryReply::Unreadable(why)) => {
                    // Nothing is published: workers that wait for the room query the directory,
                    // which remembers that the room is unreadable.
                    resolved.unreadable.insert(room, why);
                    continue;
                }
                Some(DirectoryReply::Key(_)) | None => {
                    RoomReading { membership: Arc::default(), freshness: Freshness::untracked() }
                }
            };
            let weight = membership.members.len();
            let route = self.regroup(&room, Grouping::new(membership), chain, hold).await?;
            permit.publish(Arc::clone(&route), weight, freshness);
            resolved.routes.insert(room, route);
        }
        resolved.connections.extend(keys.into_iter().zip(found.map(DirectoryReply::connection)));
        Ok(())
    }

    /// Queries the directory until it has answered everything: many look-ups at once, and fewer
    /// after a failure, since many large rooms together can exceed the reply timeout.
    async fn ask(&self, lookups: &[Lookup], hold: HoldContext<'_>) -> Result<Vec<DirectoryReply>, Cancelled> {
        let mut found = Vec::with_capacity(lookups.len());
        let part = AtomicUsize::new(lookups.len().min(LOOKUP_CHUNK));
        while found.len() < lookups.len() {
            let rest = &lookups[found.len()..];
            let attempt = || async {
                let size = part.load(Relaxed).min(rest.len());
                let answer = self.read(&rest[..size]).await;
                if answer.is_err() {
                    part.store((size / 2).max(1), Relaxed);
                }
                answer
            };
            found.extend(retry_until_cancelled(hold, StallStage::Resolve, attempt).await?);
        }
        Ok(found)
    }

    async fn regroup(
        &self,
        room: &RoomId,
        grouping: Grouping,
        chain: &BatchChain,
        hold: HoldContext<'_>,
    ) -> Result<Arc<Route>, Cancelled> {
        if !chain.set().has(HookKind::Grouping) {
            return Ok(self.regrouped(grouping));
        }
        let regroup = |chain: &mut Chain| {
            let mut regrouped = grouping.clone();
            chain.regroup(room, &mut regrouped)?;
            Ok(self.regrouped(regrouped))
        };
        chain.call(hold, regroup).await
    }
}

/// Applies the mapping of server names, if there is one.
fn map_addresses(names: &ServerNames, act: impl FnOnce(&dyn Fn(&CometAddr) -> Option<CometAddr>)) {
    if !names.is_empty() {
        act(&|comet| names.get(comet).cloned());
    }
}

/// How long another worker may take for a room before what waits for it is held.
const USUAL: Duration = Duration::from_secs(1);

/// Look-ups per round trip. A batch rarely has more, but messages with thousands of keys do, and
/// their commands and replies would all be in memory together.
const LOOKUP_CHUNK: usize = 2_000;

/// The comets that a result of the directory names.
fn comets_of(found: &DirectoryReply) -> &[CometAddr] {
    match found {
        DirectoryReply::Room(reading) => &reading.membership.comets,
        DirectoryReply::Key(connection) => {
            connection.as_ref().map_or(&[], |found| std::slice::from_ref(&found.comet))
        }
        DirectoryReply::Unreadable(_) => &[],
    }
}
