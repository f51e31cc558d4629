//! The rooms of a batch: which routes are cached, which this worker has to look up, and which it waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::directory::{
    CacheConfig, CacheLookup, CacheMetrics, CachedAge, Directory, Exactness, FillPermit, FillWaiter,
    LookupLeader, Need, RouteCache,
};
use crate::message::RoomId;
use crate::router::Route;

/// Cached routes, and how exact they are.
pub(super) struct CachedRoutes {
    directory: Arc<dyn Directory>,
    routes: RouteCache<Arc<Route>>,
    exact: Exactness,
}

/// The rooms of a batch.
#[derive(Default)]
pub(super) struct Claimed {
    pub(super) hits: Vec<(RoomId, Arc<Route>)>,
    pub(super) owned: Vec<Leader>,
    pub(super) awaited: Vec<Follower>,
    /// With the time after which they may be claimed again.
    pub(super) deferred: Vec<(RoomId, Duration)>,
}

/// A room that this worker resolves.
pub(super) type Leader = (RoomId, FillPermit<Arc<Route>>);
/// A room that another worker is resolving.
type Follower = (RoomId, FillWaiter<Arc<Route>>);

impl CachedRoutes {
    /// Routes of rooms in this directory.
    pub(super) fn new(directory: Arc<dyn Directory>, config: &CacheConfig, metrics: CacheMetrics) -> Self {
        let routes = RouteCache::new(config, metrics);
        if config.is_exact() {
            directory.subscribe(Arc::new(routes.clone()));
        }
        Self { directory, routes, exact: config.exact }
    }

    /// A comet reported that connections of this room are gone: all of it is read again soon.
    pub(super) fn note_outdated(&self, room: &RoomId) {
        if self.routes.note_outdated(room) {
            self.directory.forget(room);
        }
    }

    /// The cached route of a room, and how current it is.
    pub(super) fn peek(&self, room: &RoomId, generation: u64) -> Option<(Arc<Route>, CachedAge)> {
        self.routes.peek(room, generation)
    }

    /// What a batch that begins now accepts from the cache. With `exact = "strict"`, waits until every
    /// change before now has been reported, if any of its rooms depends on that.
    pub(super) async fn need(&self, rooms: &[RoomId]) -> Need {
        if self.exact != Exactness::Strict || !self.routes.depend_on_reports(rooms) {
            return Need::Cached;
        }
        let now = Instant::now();
        Need::Since(now, self.directory.confirm_changes().await)
    }

    /// Takes cached routes; splits the rest into rooms that this worker resolves, rooms that another one
    /// is resolving already, and rooms that may only be read later.
    pub(super) fn claim(
        &self,
        rooms: Vec<RoomId>,
        generation: u64,
        by: &LookupLeader,
        need: Need,
    ) -> Claimed {
        let mut claimed = Claimed::default();
        for room in rooms {
            match self.routes.lookup(&room, generation, by, need) {
                CacheLookup::Hit(route) => claimed.hits.push((room, route)),
                CacheLookup::Leader(permit) => claimed.owned.push((room, permit)),
                CacheLookup::Follower(waiter) => claimed.awaited.push((room, waiter)),
                CacheLookup::Deferred(pause) => claimed.deferred.push((room, pause)),
            }
        }
        claimed
    }
}
