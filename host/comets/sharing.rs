//! The store of what all gateways know of comets, as one fleet uses it: whether it was ever read,
//! whether it can be used now.
//!
//! While it cannot, the gateway goes on with what it knows, and says so.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::store::{CometStore, Sighting, Unavailable};

/// The fleet's side of the store.
pub(super) struct Sharing {
    store: Arc<dyn CometStore>,
    has_news: Arc<Notify>,
    /// Whether the store has been read, or will never be.
    is_informed: watch::Sender<bool>,
    problem: ArcSwapOption<String>,
}

impl Sharing {
    pub(super) fn new(store: Arc<dyn CometStore>) -> Self {
        let is_informed = watch::Sender::new(false);
        Self { store, has_news: Arc::default(), is_informed, problem: ArcSwapOption::empty() }
    }

    /// There is something that other gateways do not know.
    pub(super) fn note_news(&self) {
        self.has_news.notify_one();
    }

    /// Notified when there is something that other gateways do not know.
    pub(super) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.has_news)
    }

    /// Whether the store has been read once, or refuses for good.
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

    /// Why what is known of comets is not shared now.
    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.problem.load_full()?;
        Some(format!("what gateways know of comets is not shared: {problem}"))
    }

    /// Logs when it begins and when it ends.
    fn report(&self, problem: Option<String>) {
        let before = self.problem.swap(problem.clone().map(Arc::new));
        match (before, problem) {
            (None, Some(error)) => warn!(
                error,
                "what gateways know of comets cannot be shared: a BROADCAST reaches those that this one knows"
            ),
            (Some(_), None) => info!("what gateways know of comets is shared again"),
            _ => {}
        }
    }
}
