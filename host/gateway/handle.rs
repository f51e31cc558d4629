//! The admin listener's view of a running gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::comets::Fleet;
use crate::consumer;
use crate::directory::CachedAge;
use crate::gateway::archiver::ArchiverStatus;
use crate::gateway::erasure::{EraseError, Erased, Erasure};
use crate::history::RoomHistoryReader;
use crate::inbox::{InboxReader, PageQuery};
use crate::memory_guard;
use crate::message::{ConnectionId, RoomId, UserId};
use crate::pipeline::{Pipeline, Pusher};
use crate::policy::{self, Policies};
use crate::replay::{ReplayError, Replayed, Replayer};
use crate::router::Route;
use crate::stalls::Stall;
use crate::telemetry::{Gauge, Registry, metrics};

metrics! {
    /// What `/readyz` says, as metrics. Set at each scrape.
    #[derive(Clone, Debug, Default)]
    pub(super) struct ReadinessMetrics {
        /// Whether the gateway delivers (1): `/readyz` says why not.
        ready: Gauge = "halley_ready";
        /// Whether Redis answers and permits what is needed (1).
        redis_up: Gauge = "halley_redis_up";
    }
}

/// A view of a running gateway, for the admin API. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) registry: Arc<Registry>,
    pub(super) readiness: ReadinessMetrics,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) inbox: Arc<dyn InboxReader>,
    pub(super) history: Option<RoomHistoryReader>,
    pub(super) erasure: Erasure,
    pub(super) kafka: consumer::Health,
    pub(super) memory: memory_guard::MemoryReport,
    pub(super) directory: watch::Receiver<Option<String>>,
    pub(super) archiver: Option<ArchiverStatus>,
    /// What replays on return warn of.
    pub(super) replay: Option<watch::Receiver<Option<String>>>,
    /// What others warn of: listeners, of their files.
    pub(super) others: Arc<Mutex<Vec<WarningSource>>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

/// Says what needs attention, if anything. Must not block.
pub(super) type WarningSource = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Maximum number of stalls that `/readyz` lists.
const STALLS_NAMED: usize = 16;

/// The result of an operator's change: the active generation, or why nothing changed.
pub type OperatorResult = Result<policy::Generation, policy::PolicyError>;

impl Handle {
    /// Why the gateway is not delivering; empty if it is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.stopping.load(Ordering::Acquire) {
            problems.push("stopping: finishing what is in flight".to_owned());
        }
        problems.extend(self.kafka.problem());
        problems.extend(self.memory.problem());
        problems.extend(self.directory.borrow().clone());
        let stalls = self.stalls();
        problems.extend(stalls.iter().take(STALLS_NAMED).map(ToString::to_string));
        if let Some(more) = stalls.len().checked_sub(STALLS_NAMED).filter(|more| *more > 0) {
            problems.push(format!("{more} more partitions are held; GET /v1/stalls lists them"));
        }
        problems
    }

    /// Operations that have been retried for more than five seconds, and the records that they hold.
    pub fn stalls(&self) -> Vec<Stall> {
        self.pipeline.stalls.list()
    }

    /// Problems that need attention although the gateway delivers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.pipeline.policies.status().warnings();
        warnings.extend(self.kafka.warning());
        warnings.extend(self.pipeline.fleet.warnings());
        warnings.extend(self.pipeline.resolver.warning());
        warnings.extend(self.pipeline.tracer.warning());
        warnings.extend(self.replay.iter().filter_map(|warning| warning.borrow().clone()));
        warnings.extend(self.archiver.iter().flat_map(ArchiverStatus::warnings));
        warnings.extend(self.others.lock().iter().filter_map(|source| source()));
        warnings
    }

    /// Adds to the warnings whatever this says from now on. It must not block.
    pub fn add_warning(&self, source: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.others.lock().push(Box::new(source));
    }

    /// How often the polling thread has polled: a number that stands still means that it hangs.
    pub fn polls(&self) -> u64 {
        self.kafka.polls()
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn metrics(&self) -> Result<String, std::fmt::Error> {
        self.readiness.ready.set(i64::from(self.problems().is_empty()));
        self.readiness.redis_up.set(i64::from(self.directory.borrow().is_none()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The policies. Changes to them go through [`Handle::apply`].
    pub fn policies(&self) -> &Policies {
        &self.pipeline.policies
    }

    /// The comets.
    pub fn fleet(&self) -> &Fleet {
        &self.pipeline.fleet
    }

    /// The inboxes of absent users.
    pub fn inbox(&self) -> &dyn InboxReader {
        &*self.inbox
    }

    /// The histories of rooms; `None` without Redis.
    pub fn history(&self) -> Option<&RoomHistoryReader> {
        self.history.as_ref()
    }

    /// Erases what is stored for a user.
    ///
    /// # Errors
    /// If something could not be erased; erasing again continues.
    pub async fn erase(&self, user: &UserId) -> Result<Erased, EraseError> {
        self.erasure.erase(&*self.inbox, user).await
    }

    /// Pushes a page of a user's inbox through the user's comet.
    ///
    /// # Errors
    /// If the user is not connected, or the inbox cannot be read now.
    pub async fn replay(
        &self,
        user: &UserId,
        connection: Option<&ConnectionId>,
        query: &PageQuery,
    ) -> Result<Replayed, ReplayError> {
        let pusher = Pusher { resolver: &self.pipeline.resolver, fleet: &self.pipeline.fleet };
        Replayer { reader: self.inbox(), pusher, only_missed: false }.replay(user, connection, query).await
    }

    /// Changes the policies in a task of the gateway. Once started, the change is completed even if the
    /// client no longer waits, unless the gateway stops: it does not wait for a compilation.
    ///
    /// # Errors
    /// Why nothing changed.
    pub async fn apply<F>(&self, act: impl FnOnce(Arc<Policies>) -> F) -> OperatorResult
    where
        F: Future<Output = OperatorResult> + Send + 'static,
    {
        let act = act(Arc::clone(&self.pipeline.policies));
        let shutdown = self.shutdown.clone();
        let task = self.tasks.spawn(async move { shutdown.run_until_cancelled(act).await });
        let done = task.await.ok().flatten();
        done.unwrap_or_else(|| Err(policy::PolicyError::because("the gateway stopped before it was done")))
    }

    /// The cached route of a room, and how current it is; no look-up. `None` if it is not cached.
    pub fn cached_route(&self, room: &RoomId) -> Option<(Arc<Route>, CachedAge)> {
        self.pipeline.resolver.cached(room, self.pipeline.policies.current().generation().0)
    }

    /// The current route of a room.
    ///
    /// # Errors
    /// If the directory is unreachable, or a policy stalls.
    pub async fn route(&self, room: &RoomId) -> anyhow::Result<Arc<Route>> {
        let mut chain = self.pipeline.policies.current().chain();
        self.pipeline.resolver.route(room, &mut chain).await
    }
}
