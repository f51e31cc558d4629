//! All known comets: sends to them, and decides which of them get BROADCASTs.

mod members;
mod upkeep;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::access::{AccessRules, AddressRefused, NamerTrust};
use super::comet::Comet;
use super::comet_table::CometTable;
use super::discovery::Discovery;
use super::limits::TableLimits;
use super::metrics::RefusedReason;
use super::names::ServerNames;
use super::node_list::NodeList;
use super::pending::{PendingBytes, ReservedBytes, try_or_wait};
use super::recent_warning::RecentWarning;
use super::sharing::SightingExchange;
use super::shortage::ResourceShortage;
use super::state::CometState;
use super::status::{BroadcastReach, CometStatus};
use super::store::CometStore;
use super::tls::TlsClient;
use super::{CallOutcome, CallRequest, CallTimeouts, Config, Content, Metrics, Payload};
use crate::message::{CometAddr, NamedBy};
use crate::telemetry::LogThrottle;
use crate::time::now_ms;

/// All known comets.
///
/// A comet is created when it is named, or when the first call is sent to it. Their number is
/// bounded; `known` decides which are forgotten.
pub struct Fleet {
    config: Config,
    limits: TableLimits,
    timing: CallTimeouts,
    metrics: Metrics,
    names: ArcSwap<ServerNames>,
    /// Shared with the gates of its comets, weakly: see `access`.
    known: Arc<RwLock<CometTable>>,
    access: Arc<AccessRules>,
    /// Throttles lines that are caused by data.
    data_log: LogThrottle,
    /// What is wrong with `[comets.discovery]`.
    problems: ArcSwap<Vec<String>>,
    tls: Arc<TlsClient>,
    sharing: SightingExchange,
    shortage: Arc<ResourceShortage>,
    capacity_warning: RecentWarning,
    pending: Arc<PendingBytes>,
    runtime: Handle,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Whether discovery has been read and the nodes' names have been resolved once.
    resolved: watch::Receiver<bool>,
    /// Stops the background tasks if the fleet is dropped without being closed.
    _shutdown: DropGuard,
}

impl Fleet {
    /// Starts with the configured comets. Connections are made on demand. The store holds what all
    /// gateways know of comets.
    ///
    /// # Errors
    /// If a file of `[comets.tls]` cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        config: &Config,
        timing: CallTimeouts,
        metrics: Metrics,
        store: Arc<dyn CometStore>,
    ) -> anyhow::Result<Arc<Self>> {
        let tls = TlsClient::load(&config.tls)?;
        let shutdown = CancellationToken::new();
        let mut config = config.clone();
        config.queue = config.queue.max(1);
        let (resolved, is_resolved) = watch::channel(false);
        let discovery = Discovery::new(&config.discovery);
        let mut nodes = NodeList::default();
        nodes.update(&config, &discovery);
        let access = Arc::new(AccessRules::new(config.allow_list(), metrics.refused()));
        let pending = PendingBytes::new(config.pending_bytes(), metrics.pending_bytes.clone());
        let fleet = Arc::new(Self {
            limits: config.limits(),
            names: ArcSwap::from_pointee(NodeList::names(&config, &discovery)),
            config,
            timing,
            metrics,
            known: Arc::default(),
            tls,
            access,
            data_log: LogThrottle::per_record(),
            problems: ArcSwap::default(),
            sharing: SightingExchange::new(store),
            shortage: Arc::default(),
            capacity_warning: RecentWarning::default(),
            pending,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            _shutdown: shutdown.clone().drop_guard(),
            resolved: is_resolved,
            shutdown,
        });
        fleet.set_nodes(&nodes);
        fleet.spawn_background(Self::run_discovery(Arc::downgrade(&fleet), nodes, discovery, resolved));
        fleet.spawn_background(Self::run_sharing(Arc::downgrade(&fleet)));
        fleet.spawn_background(Self::run_tls_watch(Arc::downgrade(&fleet)));
        let every = (fleet.config.idle_timeout / 8).clamp(Duration::from_millis(10), Duration::from_secs(30));
        fleet.spawn_background(Self::run_eviction(Arc::downgrade(&fleet), every));
        Ok(fleet)
    }

    /// Waits until discovery has been read and the names in `nodes` have been resolved once, which
    /// takes a few seconds at most. Before that, a name has no addresses.
    pub async fn resolved(&self) {
        // The sender is dropped with its task, which ends with the fleet.
        let _ = self.resolved.clone().wait_for(|resolved| *resolved).await;
    }

    /// A message that all its calls share. Waits while `max_pending_bytes` are used up.
    pub async fn payload(&self, content: &Content<'_>) -> Payload {
        let held = self.pending.take(Payload::cost(content.body)).await;
        Payload::new(self.config.dialect, content).holding(held)
    }

    /// One of several messages, without waiting: `None` while `max_pending_bytes` are used up. Its bytes
    /// are promised by `reserved`, and have to be [held](super::Run::hold) by its run.
    pub fn try_payload(&self, content: &Content<'_>, reserved: &mut ReservedBytes) -> Option<Payload> {
        let has_room = reserved.promise(&self.pending, Payload::cost(content.body));
        has_room.then(|| Payload::new(self.config.dialect, content))
    }

    /// Queues a call for its comet. Calls of one room or connection keep the order in which they were
    /// sent. Waits while the queue of a comet that keeps up is full: see [the module](super).
    pub async fn send(&self, request: CallRequest) {
        let Err(mut request) = self.try_send(request) else { return };
        let until = Instant::now() + self.timing.delivery_timeout;
        if let Some(comet) = self.known(&request.comet) {
            comet.state.metrics.queue_full.inc();
        }
        loop {
            let Some(comet) = self.known(&request.comet) else {
                // Forgotten meanwhile: the next attempt creates it again, with an empty queue.
                return self.try_send(request).unwrap_or_else(queue_full);
            };
            let mut left = Some(request);
            let attempt = || match left.take().map(|request| self.try_send(request)) {
                Some(Ok(())) => Ok(()),
                Some(Err(request)) => {
                    left = Some(request);
                    Err(())
                }
                None => Err(()),
            };
            if try_or_wait(&comet.state.freed, attempt).await.is_ok() {
                return;
            }
            match left.take() {
                Some(again) if Instant::now() < until => request = again,
                Some(request) => return comet.full(request, "and it accepted none for too long"),
                None => return,
            }
        }
    }

    /// Like [`Fleet::send`], without waiting.
    ///
    /// # Errors
    /// With the request if it is worth waiting for room in its comet's queue.
    pub fn try_send(&self, request: CallRequest) -> Result<(), CallRequest> {
        match self.usable(&request) {
            Some(comet) => comet.send(request),
            None => self.send_to_new(request),
        }
    }

    /// The known comet of this request, if that may be called for it.
    pub(super) fn usable(&self, request: &CallRequest) -> Option<Arc<Comet>> {
        self.known(&request.comet).filter(|comet| !comet.is_dead() && comet.accepts(request))
    }

    /// The comets that get BROADCASTs, each once, in order of address.
    pub fn everyone(&self) -> Vec<CometAddr> {
        let now_ms = now_ms();
        let known = self.known.read();
        let states = known.comets.values().map(|comet| &comet.state);
        let wanted = states.filter(|state| self.limits.gets_broadcasts(state, now_ms));
        let mut addresses: Vec<_> = wanted.map(|state| state.address.clone()).collect();
        drop(known);
        addresses.sort_unstable();
        addresses
    }

    /// Whether this comet gets BROADCASTs. A comet that does not answer, and that the directory has
    /// not named lately, does not.
    pub fn is_broadcast_target(&self, comet: &CometAddr) -> bool {
        let known = self.known.read();
        known.comets.get(comet).is_some_and(|comet| self.limits.gets_broadcasts(&comet.state, now_ms()))
    }

    /// Entries of the directory name these comets: they are known from now on, here and by the
    /// other gateways. Invalid addresses are ignored.
    pub fn named_by_directory<'a>(&self, comets: impl IntoIterator<Item = &'a CometAddr>) {
        let now_ms = now_ms();
        let known = self.known.read();
        let unknown = comets.into_iter().filter(|comet| !known.note_sighting(comet, now_ms));
        let unknown: Vec<_> = unknown.cloned().collect();
        drop(known);
        for comet in unknown {
            self.add_from_directory(&comet, now_ms);
        }
    }

    /// The current mapping of server names.
    pub fn names(&self) -> Arc<ServerNames> {
        self.names.load_full()
    }

    /// The address of a server name that configuration or discovery maps; any other name is taken
    /// as an address.
    pub fn address_of(&self, server: &str) -> CometAddr {
        self.names.load().address_of(server.into())
    }

    /// Why nothing is sent to this comet; `None` if it can be called. Does not resolve names: their
    /// addresses are checked when they are dialled.
    pub fn why_unusable(&self, comet: &CometAddr, named_by: NamedBy) -> Option<String> {
        if let Err(error) = comet.address() {
            return Some(format!("{error}; map server names in [comets] addresses"));
        }
        self.admit(comet, named_by).err().map(|refused| refused.to_string())
    }

    /// Whether this comet may be called, as far as that is known without resolving its name.
    fn admit(&self, comet: &CometAddr, named_by: NamedBy) -> Result<(), AddressRefused> {
        if self.known.read().has_trusted(comet) {
            return Ok(());
        }
        match named_by {
            NamedBy::Plugin => Err(AddressRefused::new(comet, RefusedReason::UnknownComet)),
            NamedBy::Directory => self.access.check_comet(NamerTrust::Directory, comet),
            NamedBy::Record | NamedBy::TrustedPlugin => self.access.check_comet(NamerTrust::Others, comet),
        }
    }

    /// The status of every known comet, in order of address.
    pub fn status(&self) -> Vec<CometStatus> {
        let now_ms = now_ms();
        let of = |state: &CometState| CometStatus::of(state, self.limits.gets_broadcasts(state, now_ms));
        let mut statuses: Vec<_> = self.known.read().comets.values().map(|comet| of(&comet.state)).collect();
        statuses.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        statuses
    }

    /// The comets that a BROADCAST would reach.
    pub fn reach(&self) -> BroadcastReach {
        BroadcastReach::of(&self.status(), self.limits.retention)
    }

    /// Warnings for the operator: why discovery or the shared list is out of date, and what this
    /// process lacks.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.problems.load().to_vec();
        warnings.extend(self.sharing.problem());
        warnings.extend(self.tls.problem());
        warnings.extend(self.shortage.warning(Instant::now()));
        warnings.extend(self.access.warning(Instant::now()));
        warnings.extend(self.capacity_warning.get(Instant::now()));
        warnings
    }

    /// Accepts no more calls and waits for the outcome of queued ones. The wait can be cancelled.
    pub async fn close(&self) {
        {
            let mut known = self.known.write();
            known.closed = true;
            // A comet's task ends when its senders are gone and it has nothing left to do.
            known.comets.clear();
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs a background task until the fleet is closed.
    fn spawn_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let task = async move {
            shutdown.run_until_cancelled(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn known(&self, address: &CometAddr) -> Option<Arc<Comet>> {
        self.known.read().comets.get(address).cloned()
    }

    fn log_throttled(&self, why: &str, what: &str) {
        if let Some(held_back) = self.data_log.admit() {
            warn!(why, held_back, "{what}");
        }
    }
}

/// Reports a call whose comet was forgotten while it waited, and whose new queue is full as well.
fn queue_full(request: CallRequest) {
    let why = format!("queue full: too many messages wait for {}", request.comet);
    request.tell(CallOutcome::Unreachable(why));
}
