//! All known comets: sends to them, and says which of them a BROADCAST has to reach.

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
use super::{Config, Delivered, Metrics, Parcel, Payload, Receipt, Timing};
use crate::message::{CometAddr, NamedBy};
use crate::telemetry::LogThrottle;

/// All known comets.
///
/// Comets are made when they are named or something is first sent there; their number is
/// bounded, and `known` says which are forgotten.
pub struct Fleet {
    config: Config,
    limits: Limits,
    timing: Timing,
    metrics: Metrics,
    names: ArcSwap<Names>,
    /// Shared with the gates of its comets, weakly: see `access`.
    known: Arc<RwLock<Known>>,
    access: Arc<Access>,
    /// Their source is data, of which there is much.
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
    /// Whether discovery was asked and the nodes' names were looked up once.
    resolved: watch::Receiver<bool>,
    /// Ends the background tasks when the fleet is dropped without being closed.
    _shutdown: DropGuard,
}

impl Fleet {
    /// Starts with the configured comets. Connections are made when they are needed; what all
    /// gateways know of comets is read from and written to the store.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &Config, timing: Timing, metrics: Metrics, store: Arc<dyn CometStore>) -> Arc<Self> {
        let shutdown = CancellationToken::new();
        let mut config = config.clone();
        config.lanes = config.lanes.clamp(1, super::lanes::MAX_LANES);
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

    /// Waits until discovery was asked and the names in `nodes` were looked up once, which takes
    /// seconds at most: before that, a name with many addresses stands for nothing.
    pub async fn resolved(&self) {
        // The sender goes away with the look-ups' task, which ends with the fleet.
        let _ = self.resolved.clone().wait_for(|resolved| *resolved).await;
    }

    /// Encodes a message for comets, once for all its parcels. Waits while as many bytes as may
    /// (`max_pending_bytes`) wait for comets.
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
    pub async fn send(&self, parcel: Parcel) -> Receipt {
        let mut parcel = match self.try_send(parcel) {
            Ok(receipt) => return receipt,
            Err(parcel) => parcel,
        };
        let until = Instant::now() + self.timing.give_up_after;
        if let Some(comet) = self.known(&parcel.comet) {
            comet.standing.metrics.queue_full.inc();
        }
        loop {
            let Some(comet) = self.known(&parcel.comet) else {
                // Forgotten meanwhile: the next attempt makes it again, with an empty queue.
                return self.try_send(parcel).unwrap_or_else(|parcel| not_queued(&parcel));
            };
            let mut left = Some(parcel);
            let attempt = || match left.take().map(|parcel| self.try_send(parcel)) {
                Some(Ok(receipt)) => Ok(receipt),
                Some(Err(parcel)) => {
                    left = Some(parcel);
                    Err(())
                }
                None => Err(()),
            };
            if let Ok(receipt) = once_more(&comet.standing.freed, attempt).await {
                return receipt;
            }
            match left.take() {
                Some(again) if Instant::now() < until => parcel = again,
                _ => return comet.full("and none was taken for too long"),
            }
        }
    }

    /// As [`Fleet::send`], without waiting.
    ///
    /// # Errors
    /// With the parcel when it is worth waiting for room in its comet's queue.
    pub fn try_send(&self, parcel: Parcel) -> Result<Receipt, Parcel> {
        if let Some(comet) = self.known.read().comets.get(&parcel.comet).filter(|comet| !comet.is_dead())
            && (!parcel.named_by.is_limited_to_known() || comet.standing.source().is_own())
        {
            return comet.send(parcel);
        }
        self.send_to_new(parcel)
    }

    /// The comets that a BROADCAST has to reach, each once, in order of address.
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

    /// Whether a BROADCAST has to reach this comet. Who turns out not to answer, and was not named
    /// lately by the directory, does not count among everyone any more.
    pub fn is_one_of_everyone(&self, comet: &CometAddr) -> bool {
        let known = self.known.read();
        known.comets.get(comet).is_some_and(|comet| self.limits.gets_broadcasts(&comet.standing, now_ms()))
    }

    /// Entries of the directory name these comets: they are known from now on, here and by the
    /// other gateways. What is not an address is nobody.
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

    /// The server names that are mapped now.
    pub fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// The address behind a server name that configuration or discovery maps; other names are
    /// taken for addresses.
    pub fn address_of(&self, server: &str) -> CometAddr {
        self.names.load().address_of(server.into())
    }

    /// Why nothing is sent to a comet that was named so; `None` where something is. Where a name
    /// leads is not looked at: that is found out when it is dialled.
    pub fn unusable(&self, comet: &CometAddr, named_by: NamedBy) -> Option<String> {
        if let Err(error) = comet.address() {
            return Some(format!("{error}; map server names in [comets] addresses"));
        }
        self.admit(comet, named_by).err().map(|refused| refused.to_string())
    }

    /// Whether a comet may be called that was named so, as far as that can be said without
    /// looking up its name.
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

    /// How every known comet is doing, in order of address.
    pub fn status(&self) -> Vec<CometStatus> {
        let now_ms = now_ms();
        let of =
            |standing: &Standing| CometStatus::of(standing, self.limits.gets_broadcasts(standing, now_ms));
        let mut statuses: Vec<_> =
            self.known.read().comets.values().map(|comet| of(&comet.standing)).collect();
        statuses.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        statuses
    }

    /// What a BROADCAST would reach.
    pub fn reach(&self) -> Reach {
        Reach::of(&self.status(), self.limits.remember)
    }

    /// What a person should look at: why discovery, or what gateways share, is not up to date,
    /// and what this process lacks.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.problems.load().to_vec();
        warnings.extend(self.sharing.problem());
        warnings.extend(self.shortage.warning(Instant::now()));
        warnings.extend(self.access.warning(Instant::now()));
        warnings.extend(self.crowd.warning(Instant::now()));
        warnings
    }

    /// Takes nothing more and waits for the outcome of what is queued. Stopping to wait leaves
    /// the rest to itself.
    pub async fn close(&self) {
        {
            let mut known = self.known.write();
            known.closed = true;
            // A comet's task ends when nobody can send to it and it has nothing left to do.
            known.comets.clear();
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn send_to_new(&self, parcel: Parcel) -> Result<Receipt, Parcel> {
        let (comet, named_by) = (&parcel.comet, parcel.named_by);
        if comet.address().is_ok()
            && let Err(refused) = self.admit(comet, named_by)
        {
            self.access.note(&refused, named_by);
            return Ok(Receipt::known(Delivered::Unreachable(refused.to_string())));
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
                    "messages cannot be sent to a comet; their recipients go to the offline policy",
                );
                Ok(Receipt::known(Delivered::Unreachable(why)))
            }
        }
    }

    /// A comet that is new, or counts for more now that an entry of the directory named it.
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
            Err(why) => self.complain(&why, "a comet that the directory names gets no broadcasts"),
        }
    }

    /// The comet at an address, made if need be, under the lock that keeps it from being
    /// forgotten before it is used.
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
                    debug!(comet = %gone.standing.address, "a comet made room for another one");
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

    /// Takes over which comets an operator names now.
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
                warn!(error, "a comet that is configured cannot be used");
            }
        }
    }

    /// Forgets the comets that are over.
    fn tidy(&self) {
        let over = self.known.write().tidy(&self.limits, now_ms());
        for comet in over {
            debug!(comet = %comet.standing.address, "a comet is forgotten");
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
fn not_queued(parcel: &Parcel) -> Receipt {
    Receipt::known(Delivered::Unreachable(format!("queue full: too many messages wait for {}", parcel.comet)))
}
