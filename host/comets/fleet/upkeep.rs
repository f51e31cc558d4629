//! The fleet's background tasks: discovery and DNS, sharing known comets with the other gateways,
//! eviction.
//!
//! The tasks hold the fleet weakly: a fleet that is dropped without being closed ends them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Fleet;
use crate::comets::discovery::Discovery;
use crate::comets::node_list::NodeList;
use crate::comets::store::{Sighting, Unavailable};
use crate::message::CometAddr;
use crate::reloaded;
use crate::time::{millis, now_ms};

/// How often sightings are exchanged with the store.
const SHARE_EVERY: Duration = Duration::from_secs(2);
/// How long new sightings are collected before they are shared.
const GATHER: Duration = Duration::from_millis(200);
/// How often a comet that is named all the time is shared; at least four times per `stale_after`.
const TELL_EVERY: Duration = Duration::from_secs(15);

impl Fleet {
    /// Reads discovery, and resolves the nodes' names at intervals.
    pub(super) async fn run_discovery(
        fleet: Weak<Self>,
        mut nodes: NodeList,
        mut discovery: Discovery,
        resolved: watch::Sender<bool>,
    ) {
        let Some((config, mut pause)) = fleet.upgrade().map(|fleet| {
            let config = fleet.config.clone();
            let pause = config.discovery.refresh_interval.min(config.dns_refresh_interval);
            (config, pause)
        }) else {
            return;
        };
        if discovery.is_empty() {
            pause = config.dns_refresh_interval;
        }
        let mut look_up_at = Instant::now();
        loop {
            let has_changes = discovery.refresh().await;
            if has_changes {
                nodes.update(&config, &discovery);
                look_up_at = Instant::now();
                // Names are resolved next; other comets are added at once.
                let Some(fleet) = fleet.upgrade() else { return };
                fleet.names.store(Arc::new(NodeList::names(&config, &discovery)));
                fleet.set_nodes(&nodes);
            }
            let is_due = look_up_at <= Instant::now();
            if is_due {
                nodes.resolve().await;
                look_up_at = Instant::now() + config.dns_refresh_interval;
            }
            let Some(fleet) = fleet.upgrade() else { return };
            if is_due {
                fleet.set_nodes(&nodes);
            }
            fleet.problems.store(Arc::new(discovery.problems()));
            drop(fleet);
            resolved.send_replace(true);
            tokio::time::sleep(pause).await;
        }
    }

    pub(super) async fn run_eviction(fleet: Weak<Self>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let Some(fleet) = fleet.upgrade() else { return };
            fleet.evict_idle();
        }
    }

    /// Looks at the files of `[comets.tls]` also while nobody connects. A task of its own: their file system
    /// may hang.
    pub(super) async fn run_tls_watch(fleet: Weak<Self>) {
        loop {
            tokio::time::sleep(reloaded::INTERVAL).await;
            let Some(tls) = fleet.upgrade().map(|fleet| Arc::clone(&fleet.tls)) else { return };
            tls.look().await;
        }
    }

    /// Shares known comets, at intervals and when there are changes.
    pub(super) async fn run_sharing(fleet: Weak<Self>) {
        loop {
            let Some(shared) = fleet.upgrade() else { return };
            // An error is reported there; the next round retries.
            drop(shared.share().await);
            let known = shared.status();
            shared.metrics.count_comets(known.iter().map(|status| (status.source, status.broadcasts)));
            let changes = shared.sharing.changes();
            drop(shared);
            drop(tokio::time::timeout(SHARE_EVERY, changes.notified()).await);
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Whether the shared list of comets has been read: before that, a BROADCAST would miss some.
    /// Also true if the store refuses permanently, since waiting would not help.
    pub fn is_informed(&self) -> bool {
        self.sharing.is_informed()
    }

    /// Shares new sightings with the other gateways, and reads theirs.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn share(&self) -> Result<(), Unavailable> {
        let now_ms = now_ms();
        let since_ms = now_ms.saturating_sub(millis(self.limits.retention));
        let kept =
            self.sharing.exchange(&self.unshared_sightings(), since_ms, self.limits.max_comets).await?;
        let mut shared = HashMap::<CometAddr, u64>::with_capacity(kept.len());
        for Sighting { comet, at_ms } in kept {
            // Another gateway's clock may be ahead.
            let at_ms = at_ms.min(now_ms);
            let is_noted = self.known.read().note_sighting(&comet, at_ms);
            if !is_noted {
                self.add_from_directory(&comet, at_ms);
            }
            shared.insert(comet, at_ms);
        }
        for comet in self.known.read().comets.values() {
            if let Some(at_ms) = shared.get(&comet.state.address) {
                comet.state.note_shared(*at_ms);
            }
        }
        Ok(())
    }

    /// The comets that were named since they were last shared, except those that were shared
    /// recently.
    fn unshared_sightings(&self) -> Vec<Sighting> {
        let every = millis((self.limits.stale_after / 4).min(TELL_EVERY));
        let mut unshared_sightings = Vec::new();
        for comet in self.known.read().comets.values() {
            let (at_ms, shared_at) = (comet.state.named_at(), comet.state.shared_at());
            if at_ms > shared_at && (shared_at == 0 || at_ms - shared_at >= every) {
                unshared_sightings.push(Sighting { comet: comet.state.address.clone(), at_ms });
            }
        }
        unshared_sightings
    }
}
