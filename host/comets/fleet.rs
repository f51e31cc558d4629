//! The comets by address: which are known, how one comes to be known and is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::address::Address;
use super::breaker::State;
use super::channel::Dialer;
use super::comet::Comet;
use super::job::{Source, Standing};
use super::nodes::Node;
use super::{Config, Delivered, Metrics, Parcel, Payload, Receipt, Timing};
use crate::message::{CometAddr, Target};

/// All known comets.
///
/// Comets are made when something is first sent there; their number is bounded, and those
/// that are not configured are forgotten once they have answered nothing for `idle_after`.
pub struct Fleet {
    config: Config,
    timing: Timing,
    metrics: Metrics,
    names: HashMap<String, CometAddr>,
    known: RwLock<Known>,
    complaints: Mutex<Complaints>,
    runtime: Handle,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Whether the nodes' names were looked up once.
    resolved: watch::Receiver<bool>,
    /// Ends the background tasks when the fleet is dropped without being closed.
    _shutdown: DropGuard,
}

/// Sending holds the lock for reading, so that a comet cannot be forgotten at the same time.
#[derive(Default)]
struct Known {
    /// By address; a comet that was written in several ways stands here several times.
    comets: HashMap<CometAddr, Arc<Comet>>,
    closed: bool,
}

/// How one comet is doing, for people and the admin API.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CometStatus {
    /// Its address.
    pub address: CometAddr,
    /// How it came to be known.
    pub source: Source,
    /// Whether calls are made.
    pub breaker: State,
    /// Messages that wait in its lanes.
    pub waiting: usize,
    /// Messages whose call is under way.
    pub in_flight: usize,
    /// Messages that it acknowledged since it is known.
    pub sent: u64,
    /// Messages that it did not take since it is known.
    pub failed: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

impl Fleet {
    /// Starts with the configured comets. Connections are made when they are needed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &Config, timing: Timing, metrics: Metrics) -> Arc<Self> {
        let shutdown = CancellationToken::new();
        let address = |address: &String| match Address::parse(address) {
            Ok(address) => address.canonical(),
            Err(_) => address.as_str().into(),
        };
        let mut config = config.clone();
        config.lanes = config.lanes.clamp(1, super::lanes::MAX_LANES);
        config.queue = config.queue.max(1);
        let (resolved, is_resolved) = watch::channel(false);
        let fleet = Arc::new(Self {
            names: config.addresses.iter().map(|(name, at)| (name.clone(), address(at))).collect(),
            config,
            timing,
            metrics,
            known: RwLock::default(),
            complaints: Mutex::default(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            _shutdown: shutdown.clone().drop_guard(),
            resolved: is_resolved,
            shutdown,
        });
        let nodes = Node::read(&fleet.config.nodes);
        fleet.set_nodes(&nodes);
        fleet.own(keep_resolved(Arc::downgrade(&fleet), nodes, fleet.config.resolve_every, resolved));
        let every = (fleet.config.idle_after / 8).clamp(Duration::from_millis(10), Duration::from_secs(30));
        fleet.own(keep_tidy(Arc::downgrade(&fleet), every));
        fleet
    }

    /// Waits until the names in `nodes` were looked up once, which takes 5 s at most: before
    /// that, a name with many addresses stands for a single comet.
    pub async fn resolved(&self) {
        // The sender goes away with the look-ups' task, which ends with the fleet.
        let _ = self.resolved.clone().wait_for(|resolved| *resolved).await;
    }

    /// Encodes a message for comets, once for all its parcels.
    pub fn payload(&self, operation: i32, body: &Bytes) -> Payload {
        Payload::new(self.config.dialect, operation, body)
    }

    /// Queues a parcel for its comet. Never waits; the order of sending is the order in the
    /// comet's lanes.
    pub fn send(&self, parcel: Parcel) -> Receipt {
        if let Some(comet) = self.read().comets.get(&parcel.comet).filter(|comet| !comet.is_dead()) {
            note_use(comet, &parcel.target);
            return comet.send(parcel);
        }
        self.send_to_new(parcel)
    }

    /// The comets that a BROADCAST has to reach, each once, in order of address.
    pub fn everyone(&self) -> Vec<CometAddr> {
        let wanted = |comet: &&Arc<Comet>| comet.standing.source() != Source::Retired;
        let known = self.read();
        let mut addresses: Vec<_> =
            distinct(&known).filter(wanted).map(|comet| comet.standing.address.clone()).collect();
        addresses.sort_unstable();
        addresses
    }

    /// The address behind a server name of `[comets] addresses`; other names are taken for
    /// addresses.
    pub fn address_of(&self, server: &str) -> CometAddr {
        self.names.get(server).cloned().unwrap_or_else(|| server.into())
    }

    /// How every known comet is doing, in order of address.
    pub fn status(&self) -> Vec<CometStatus> {
        let mut statuses: Vec<_> = distinct(&self.read()).map(|comet| status(&comet.standing)).collect();
        statuses.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        statuses
    }

    /// Takes nothing more and waits for the outcome of what is queued. Stopping to wait leaves
    /// the rest to itself.
    pub async fn close(&self) {
        {
            let mut known = self.write();
            known.closed = true;
            // A comet's task ends when nobody can send to it and it has nothing left to do.
            known.comets.clear();
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn send_to_new(&self, parcel: Parcel) -> Receipt {
        let comet = Address::parse(parcel.comet.as_str())
            .map_err(|error| format!("{error}; name servers in [comets] addresses"))
            .and_then(|address| self.learn(&parcel.comet, &address));
        match comet {
            Ok((_lock, comet)) => {
                note_use(&comet, &parcel.target);
                comet.send(parcel)
            }
            Err(why) => {
                self.complain(&why);
                Receipt::known(Delivered::Unreachable(why))
            }
        }
    }

    /// The comet at an address, made if need be, under the lock that keeps it from being
    /// forgotten before it is used.
    fn learn(
        &self,
        written: &CometAddr,
        address: &Address,
    ) -> Result<(RwLockWriteGuard<'_, Known>, Arc<Comet>), String> {
        let mut known = self.write();
        if known.closed {
            return Err("the gateway is stopping".into());
        }
        let canonical = address.canonical();
        let comet = match known.comets.get(&canonical) {
            Some(comet) if !comet.is_dead() => Arc::clone(comet),
            _ if known.comets.len() >= self.config.max_comets => {
                let max = self.config.max_comets;
                return Err(format!(
                    "{max} comets are known already; raise [comets] max_comets if that is right"
                ));
            }
            _ => self.make(&mut known, canonical, Source::Learned)?,
        };
        if known.comets.len() < self.config.max_comets.saturating_mul(2) {
            known.comets.insert(written.clone(), Arc::clone(&comet));
        }
        Ok((known, comet))
    }

    fn make(&self, known: &mut Known, address: CometAddr, source: Source) -> Result<Arc<Comet>, String> {
        let dialer = Dialer::new(&address, self.config.connect_timeout).map_err(|error| error.to_string())?;
        let standing = Standing::new(address.clone(), source, self.metrics.of(&address));
        let (comet, task) = Comet::new(standing, dialer, &self.config, self.timing);
        self.tasks.spawn_on(task, &self.runtime);
        debug!(comet = %address, ?source, "a new comet");
        let comet = Arc::new(comet);
        known.comets.insert(address, Arc::clone(&comet));
        Ok(comet)
    }

    /// Takes over what the nodes stand for now.
    pub(super) fn set_nodes(&self, nodes: &[Node]) {
        let mut known = self.write();
        if known.closed {
            return;
        }
        let wanted: HashMap<CometAddr, Source> = nodes.iter().flat_map(Node::comets).collect();
        for comet in distinct(&known) {
            let was_wanted = matches!(comet.standing.source(), Source::Configured | Source::Dns);
            if was_wanted && !wanted.contains_key(&comet.standing.address) {
                comet.standing.set_source(Source::Retired);
            }
        }
        for (address, source) in wanted {
            if let Some(comet) = known.comets.get(&address) {
                comet.standing.set_source(source);
            } else if let Err(error) = self.make(&mut known, address, source) {
                warn!(error, "a comet of `comets.nodes` cannot be used");
            }
        }
    }

    /// Forgets the comets that nobody configured, that have nothing to do, and that have
    /// answered nothing for long.
    fn tidy(&self) {
        let is_idle = |comet: &Comet| {
            let standing = &comet.standing;
            let kept = matches!(standing.source(), Source::Configured | Source::Dns);
            !kept && standing.unsettled() == 0 && standing.silent_for() >= self.config.idle_after
        };
        let mut known = self.write();
        let idle: Vec<_> = distinct(&known).filter(|comet| is_idle(comet)).cloned().collect();
        if idle.is_empty() {
            return;
        }
        for comet in &idle {
            debug!(comet = %comet.standing.address, "a comet is forgotten");
            self.metrics.forget(&comet.standing.address);
        }
        known.comets.retain(|_, comet| !idle.iter().any(|idle| Arc::ptr_eq(idle, comet)));
    }

    /// Runs a background task until the fleet is closed.
    fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        let task = async move {
            shutdown.run_until_cancelled(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn complain(&self, why: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = complaints.due(Instant::now()) {
            warn!(
                why,
                left_out, "messages cannot be sent to a comet; their recipients go to the offline policy"
            );
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The comets, each once: under the address that it is known by.
fn distinct(known: &Known) -> impl Iterator<Item = &Arc<Comet>> {
    known.comets.iter().filter(|(key, comet)| **key == comet.standing.address).map(|(_, comet)| comet)
}

/// What is sent to a retired comet for a room or connection shows that it is still in use.
fn note_use(comet: &Comet, target: &Target) {
    let for_everyone = matches!(target, Target::Everyone { .. });
    if !for_everyone && comet.standing.source() == Source::Retired {
        comet.standing.set_source(Source::Learned);
    }
}

fn status(standing: &Standing) -> CometStatus {
    let in_flight = standing.in_flight().load(std::sync::atomic::Ordering::Relaxed);
    CometStatus {
        address: standing.address.clone(),
        source: standing.source(),
        breaker: standing.state(),
        waiting: standing.unsettled().saturating_sub(in_flight),
        in_flight,
        sent: standing.metrics.success.get(),
        failed: standing.metrics.failed.get(),
        last_error: standing.last_error(),
    }
}

/// Looks the nodes' names up, now and then again.
async fn keep_resolved(
    fleet: Weak<Fleet>,
    mut nodes: Vec<Node>,
    every: Duration,
    resolved: watch::Sender<bool>,
) {
    loop {
        join_all(nodes.iter_mut().map(Node::resolve)).await;
        let Some(fleet) = fleet.upgrade() else { return };
        fleet.set_nodes(&nodes);
        drop(fleet);
        resolved.send_replace(true);
        tokio::time::sleep(every).await;
    }
}

async fn keep_tidy(fleet: Weak<Fleet>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(fleet) = fleet.upgrade() else { return };
        fleet.tidy();
    }
}

/// One line of log for many mistakes: their source is data, of which there is much.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    left_out: u64,
}

const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

impl Complaints {
    /// How many were left out since the last line; `None` when it is too early for another.
    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < COMPLAIN_EVERY) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}
