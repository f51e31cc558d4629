//! One fleet's access to the store of comets that all gateways share: whether it was ever read, and
//! whether it is usable now.
//!
//! While it is not usable, the gateway continues with what it knows, and reports it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::store::{CometStore, Sighting, Unavailable};

/// The fleet's side of the store.
pub(super) struct SightingExchange {
    store: Arc<dyn CometStore>,
    has_changes: Arc<Notify>,
    /// Whether the store has been read, or refuses permanently.
    is_informed: watch::Sender<bool>,
    problem: ArcSwapOption<String>,
}

impl SightingExchange {
    pub(super) fn new(store: Arc<dyn CometStore>) -> Self {
        let is_informed = watch::Sender::new(false);
        Self { store, has_changes: Arc::default(), is_informed, problem: ArcSwapOption::empty() }
    }

    /// Wakes the exchange: there is something to share.
    pub(super) fn note_change(&self) {
        self.has_changes.notify_one();
    }

    /// Notified when there is something to share.
    pub(super) fn changes(&self) -> Arc<Notify> {
        Arc::clone(&self.has_changes)
    }

    /// Whether the store has been read once, or refuses permanently.
    pub(super) fn is_informed(&self) -> bool {
        *self.is_informed.borrow()
    }

    /// One exchange with the store.
    pub(super) async fn exchange(
        &self,
        new: &[Sighting],
        since_ms: u64,
        most: usize,
    ) -> Result<Vec<Sighting>, Unavailable> {
        let exchanged = self.store.exchange(new, since_ms, most).await;
        self.report(match &exchanged {
            Ok(kept) => kept.refused.clone(),
            Err(error) => Some(error.to_string()),
        });
        let kept = exchanged?;
        self.is_informed.send_replace(true);
        Ok(kept.sightings)
    }

    /// Why known comets are not shared now.
    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.problem.load_full()?;
        Some(format!("known comets are not shared between gateways: {problem}"))
    }

    /// Logs the beginning and the end of a problem.
    fn report(&self, problem: Option<String>) {
        let before = self.problem.swap(problem.clone().map(Arc::new));
        match (before, problem) {
            (None, Some(error)) => warn!(
                error,
                "cannot share known comets between gateways: a BROADCAST reaches only the comets that this gateway knows"
            ),
            (Some(_), None) => info!("recovered: known comets are shared between gateways"),
            _ => {}
        }
    }
}
