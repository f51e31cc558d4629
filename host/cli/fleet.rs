//! The fleet as a gateway would know it, for commands that only look.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::comets::{self, Fleet, ReadOnly};
use crate::gateway::{self, Storage};

/// A fleet that has asked discovery and DNS, and the store of what all gateways know, where it
/// can be read; its warnings say where not. Nothing is written.
pub(super) async fn look_at_fleet(
    config: &gateway::Config,
    storage: &Storage,
    registry: &mut Registry,
) -> Arc<Fleet> {
    let timing =
        comets::Timing { timeout: config.delivery.timeout, give_up_after: config.delivery.give_up_after };
    let store = Arc::new(ReadOnly(Arc::clone(&storage.comets)));
    let fleet = Fleet::start(&config.comets, timing, comets::Metrics::register(registry), store);
    fleet.resolved().await;
    drop(fleet.share().await);
    fleet
}
