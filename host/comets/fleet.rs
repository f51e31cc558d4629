//! All known comets: sends to them, and decides which of them get BROADCASTs.

mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::access::{Access, Gate, Refused, Trust};
use super::channel::Dialer;
use super::comet::Comet;
use super::discovery::Discovery;
use super::job::{Source, Standing};
use super::known::{Crowd, Known, Limits, now_ms};
use super::names::Names;
use super::nodes::Nodes;
use super::pending::{Pending, once_more};
use super::sharing::Sharing;
use super::shortage::Shortage;
use super::status::{CometStatus, Reach};
use super::store::CometStore;
use super::{Config, Delivered, Metrics, Parcel, Payload, Timing};
use crate::message::{CometAddr, NamedBy};
use crate::telemetry::LogThrottle;

/// All known comets.
///
/// A comet is created when it is named, or when the first call is sent to it. Their number is
/// bounded; `known` decides which are forgotten.
pub struct Fleet {
    config: Config,
    limits: Limits,
    timing: Timing,
    metrics: Metrics,
    names: ArcSwap<Names>,
    /// Shared with the gates of its comets, weakly: see `access`.
    known: Arc<RwLock<Known>>,
    access: Arc<Access>,
    /// Throttles lines that are caused by data.
    complaints: LogThrottle,
    /// What is wrong with `[comets.discovery]`.
    problems: ArcSwap<Vec<String>>,
    sharing: Sharing,
    shortage: Arc<Shortage>,
    crowd: Crowd,
    pending: Arc<Pending>,
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
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &Config, timing: Timing, metrics: Metrics, store: Arc<dyn CometStore>) -> Arc<Self> {
        let shutdown = CancellationToken::new();
        let mut config = config.clone();
        config.queue = config.queue.max(1);
        let (resolved, is_resolved) = watch::channel(false);
        let discovery = Discovery::new(&config.discovery);
        let mut nodes = Nodes::default();
        nodes.update(&config, &discovery);
        let access = Arc::new(Access::new(config.allow_list(), metrics.refused.clone()));
        let pending = Pending::new(config.pending_bytes(), metrics.pending_bytes.clone());
        let fleet = Arc::new(Self {
            limits: config.limits(),
            names: ArcSwap::from_pointee(Nodes::names(&config, &discovery)),
            config,
            timing,
            metrics,
            known: Arc::default(),
            access,
            complaints: LogThrottle::per_record(),
            problems: ArcSwap::default(),
            sharing: Sharing::new(store),
            shortage: Arc::default(),
            crowd: Crowd::default(),
            pending,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            _shutdown: shutdown.clone().drop_guard(),
            resolved: is_resolved,
            shutdown,
        });
        fleet.set_nodes(&nodes);
        fleet.own(upkeep::follow_nodes(Arc::downgrade(&fleet), nodes, discovery, resolved));
        fleet.own(upkeep::keep_shared(Arc::downgrade(&fleet)));
        let every = (fleet.config.idle_after / 8).clamp(Duration::from_millis(10), Duration::from_secs(30));
        fleet.own(upkeep::keep_tidy(Arc::downgrade(&fleet), every));
        fleet
    }

    /// Waits until discovery has been read and the names in `nodes` have been resolved once, which
    /// takes a few seconds at most. Before that, a name has no addresses.
    pub async fn resolved(&self) {
        // The sender is dropped with its task, which ends with the fleet.
        let _ = self.resolved.clone().wait_for(|resolved| *resolved).await;
    }

    /// Encodes a message once for all its calls. Waits while `max_pending_bytes` are used up.
    pub async fn payload(&self, operation: i32, body: &Bytes) -> Payload {
        let cost = Payload::cost(body);
        let held = match self.pending.try_take(cost) {
            Some(held) => held,
            None => self.pending.take(cost).await,
        };
        Payload::new(self.config.dialect, operation, body, Some(held))
    }

    /// Queues a parcel for its comet; the order of sending is the order in the comet's lanes.
    /// Waits while the queue of a comet that takes messages is full: see [the module](super).
    pub async fn send(&self, parcel: Parcel) {
        let Err(mut parcel) = self.try_send(parcel) else { return };
        let until = Instant::now() + self.timing.give_up_after;
        if let Some(comet) = self.known(&parcel.comet) {
            comet.standing.metrics.queue_full.inc();
        }
        loop {
            let Some(comet) = self.known(&parcel.comet) else {
                // Forgotten meanwhile: the next attempt makes it again, with an empty queue.
                return self.try_send(parcel).unwrap_or_else(not_queued);
            };
            let mut left = Some(parcel);
            let attempt = || match left.take().map(|parcel| self.try_send(parcel)) {
                Some(Ok(())) => Ok(()),
                Some(Err(parcel)) => {
                    left = Some(parcel);
                    Err(())
                }
                None => Err(()),
            };
            if once_more(&comet.standing.freed, attempt).await.is_ok() {
                return;
            }
            match left.take() {
                Some(again) if Instant::now() < until => parcel = again,
                Some(parcel) => return comet.full(parcel.reply, "and none was taken for too long"),
                None => return,
            }
        }
    }

    /// Like [`Fleet::send`], without waiting.
    ///
    /// # Errors
    /// With the parcel when it is worth waiting for room in its comet's queue.
    pub fn try_send(&self, parcel: Parcel) -> Result<(), Parcel> {
        if let Some(comet) = self.known.read().comets.get(&parcel.comet).filter(|comet| !comet.is_dead())
            && (!parcel.named_by.is_limited_to_known() || comet.standing.source().is_own())
        {
            return comet.send(parcel);
        }
        self.send_to_new(parcel)
    }

    /// The comets that get BROADCASTs, each once, in order of address.
    pub fn everyone(&self) -> Vec<CometAddr> {
        let now_ms = now_ms();
        let known = self.known.read();
        let standings = known.comets.values().map(|comet| &comet.standing);
        let wanted = standings.filter(|standing| self.limits.gets_broadcasts(standing, now_ms));
        let mut addresses: Vec<_> = wanted.map(|standing| standing.address.clone()).collect();
        drop(known);
        addresses.sort_unstable();
        addresses
    }

    /// Whether this comet gets BROADCASTs. A comet that does not answer, and that the directory has
    /// not named lately, does not.
    pub fn is_one_of_everyone(&self, comet: &CometAddr) -> bool {
        let known = self.known.read();
        known.comets.get(comet).is_some_and(|comet| self.limits.gets_broadcasts(&comet.standing, now_ms()))
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
            self.take_in(&comet, now_ms);
        }
    }

    /// The current mapping of server names.
    pub fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// The address of a server name that configuration or discovery maps; any other name is taken
    /// as an address.
    pub fn address_of(&self, server: &str) -> CometAddr {
        self.names.load().address_of(server.into())
    }

    /// Why nothing is sent to this comet; `None` if it can be called. Does not resolve names: their
    /// addresses are checked when they are dialled.
    pub fn unusable(&self, comet: &CometAddr, named_by: NamedBy) -> Option<String> {
        if let Err(error) = comet.address() {
            return Some(format!("{error}; map server names in [comets] addresses"));
        }
        self.admit(comet, named_by).err().map(|refused| refused.to_string())
    }

    /// Whether this comet may be called, as far as that is known without resolving its name.
    fn admit(&self, comet: &CometAddr, named_by: NamedBy) -> Result<(), Refused> {
        if self.known.read().has_own(comet) {
            return Ok(());
        }
        match named_by {
            NamedBy::Plugin => Err(Refused::unknown(comet)),
            NamedBy::Directory => self.access.check_comet(Trust::Directory, comet),
            NamedBy::Record | NamedBy::TrustedPlugin => self.access.check_comet(Trust::Others, comet),
        }
    }

    /// The status of every known comet, in order of address.
    pub fn status(&self) -> Vec<CometStatus> {
        let now_ms = now_ms();
        let of =
            |standing: &Standing| CometStatus::of(standing, self.limits.gets_broadcasts(standing, now_ms));
        let mut statuses: Vec<_> =
            self.known.read().comets.values().map(|comet| of(&comet.standing)).collect();
        statuses.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        statuses
    }

    /// The comets that a BROADCAST would reach.
    pub fn reach(&self) -> Reach {
        Reach::of(&self.status(), self.limits.remember)
    }

    /// Warnings for the operator: why discovery or the shared list is out of date, and what this
    /// process lacks.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.problems.load().to_vec();
        warnings.extend(self.sharing.problem());
        warnings.extend(self.shortage.warning(Instant::now()));
        warnings.extend(self.access.warning(Instant::now()));
        warnings.extend(self.crowd.warning(Instant::now()));
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

    fn send_to_new(&self, parcel: Parcel) -> Result<(), Parcel> {
        let (comet, named_by) = (&parcel.comet, parcel.named_by);
        if comet.address().is_ok()
            && let Err(refused) = self.admit(comet, named_by)
        {
            self.access.note(&refused, named_by);
            parcel.reply.tell(Delivered::Unreachable(refused.to_string()));
            return Ok(());
        }
        let source = if named_by == NamedBy::Directory { Source::Directory } else { Source::Named };
        let learned = match comet.address() {
            Err(error) => Err(format!("{error}; map server names in [comets] addresses")),
            Ok(_) => self.learn(comet, source),
        };
        match learned {
            Ok((_lock, comet)) => {
                if source == Source::Directory {
                    comet.standing.note_named(now_ms());
                }
                comet.send(parcel)
            }
            Err(why) => {
                self.complain(
                    &why,
                    "cannot send messages to a comet; their recipients go to the offline policy",
                );
                parcel.reply.tell(Delivered::Unreachable(why));
                Ok(())
            }
        }
    }

    /// Adds a comet that an entry of the directory named, or raises its source to `Directory`.
    fn take_in(&self, address: &CometAddr, at_ms: u64) {
        if address.address().is_err() {
            return;
        }
        if let Err(refused) = self.access.check_comet(Trust::Directory, address) {
            return self.access.note(&refused, NamedBy::Directory);
        }
        match self.learn(address, Source::Directory) {
            Ok((mut known, comet)) => {
                known.forgotten.remove(address);
                comet.standing.note_named(at_ms);
                if matches!(comet.standing.source(), Source::Named | Source::Retired) {
                    comet.standing.set_source(Source::Directory);
                }
                drop(known);
                self.sharing.note_news();
            }
            Err(why) => self.complain(&why, "a comet in the directory gets no broadcasts"),
        }
    }

    /// The comet at an address, created if needed, with the lock that keeps it from being forgotten
    /// before it is used.
    fn learn(
        &self,
        address: &CometAddr,
        source: Source,
    ) -> Result<(parking_lot::RwLockWriteGuard<'_, Known>, Arc<Comet>), String> {
        let mut known = self.known.write();
        if known.closed {
            return Err("the gateway is stopping".into());
        }
        let comet = match known.comets.get(address) {
            Some(comet) if !comet.is_dead() => Arc::clone(comet),
            _ => {
                let gone = known.make_room(source, &self.limits).map_err(|full| {
                    let full = full.to_string();
                    self.crowd.note(&full, Instant::now());
                    full
                })?;
                if let Some(gone) = gone {
                    debug!(comet = %gone.standing.address, "a comet was evicted for another one");
                    gone.standing.evict();
                    self.metrics.forget(&gone.standing.address);
                }
                self.make(&mut known, address.clone(), source)?
            }
        };
        Ok((known, comet))
    }

    fn make(&self, known: &mut Known, address: CometAddr, source: Source) -> Result<Arc<Comet>, String> {
        let shortage = Arc::clone(&self.shortage);
        let standing = Standing::new(address.clone(), source, self.metrics.of(&address), shortage);
        let standing = Arc::new(standing);
        let gate = Gate::new(Arc::clone(&self.access), Arc::clone(&standing), Arc::downgrade(&self.known));
        let dialer = Dialer::new(&address, self.config.connect_timeout, gate);
        let dialer = dialer.map_err(|error| error.to_string())?;
        let (comet, task) = Comet::new(standing, dialer, &self.config, self.timing);
        self.tasks.spawn_on(task, &self.runtime);
        debug!(comet = %address, ?source, "a new comet");
        let comet = Arc::new(comet);
        known.comets.insert(address, Arc::clone(&comet));
        Ok(comet)
    }

    /// Applies the operator's current list of comets.
    pub(super) fn set_nodes(&self, nodes: &Nodes) {
        let mut known = self.known.write();
        if known.closed {
            return;
        }
        let mut wanted: HashMap<CometAddr, Source> = HashMap::new();
        for (address, source) in nodes.comets() {
            wanted.entry(address).or_insert(source);
        }
        for comet in known.comets.values() {
            let standing = &comet.standing;
            if standing.source().is_wanted() && !wanted.contains_key(&standing.address) {
                standing.retire(now_ms());
            }
        }
        for (address, source) in wanted {
            if let Some(comet) = known.comets.get(&address) {
                comet.standing.set_source(source);
            } else if let Err(error) = self.make(&mut known, address, source) {
                warn!(error, "cannot use a configured comet");
            }
        }
    }

    /// Forgets expired comets.
    fn tidy(&self) {
        let over = self.known.write().tidy(&self.limits, now_ms());
        for comet in over {
            debug!(comet = %comet.standing.address, "an idle comet was forgotten");
            self.metrics.forget(&comet.standing.address);
        }
    }

    /// Runs a background task until the fleet is closed.
    fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let task = async move {
            shutdown.run_until_cancelled(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn known(&self, address: &CometAddr) -> Option<Arc<Comet>> {
        self.known.read().comets.get(address).cloned()
    }

    fn complain(&self, why: &str, what: &str) {
        if let Some(held_back) = self.complaints.admit() {
            warn!(why, held_back, "{what}");
        }
    }
}

/// The outcome of a parcel whose comet was forgotten while it waited, and whose queue is full
/// again.
fn not_queued(parcel: Parcel) {
    let why = format!("queue full: too many messages wait for {}", parcel.comet);
    parcel.reply.tell(Delivered::Unreachable(why));
}
