//! Sightings inside the process: for the demo, `memory://` and tests.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{CometStore, SharedSightings, Sighting, Unavailable};
use crate::message::CometAddr;

/// Sightings in memory. Clones share their content.
#[derive(Clone, Debug, Default)]
pub struct MemoryCometStore(Arc<Mutex<HashMap<CometAddr, u64>>>);

#[async_trait]
impl CometStore for MemoryCometStore {
    async fn exchange(
        &self,
        new: &[Sighting],
        since_ms: u64,
        most: usize,
    ) -> Result<SharedSightings, Unavailable> {
        let mut table = self.0.lock();
        for Sighting { comet, at_ms } in new {
            table.insert(comet.clone(), *at_ms);
        }
        let mut sightings: Vec<_> =
            table.iter().map(|(comet, at_ms)| Sighting { comet: comet.clone(), at_ms: *at_ms }).collect();
        sightings.sort_unstable_by(|a, b| (Reverse(a.at_ms), &a.comet).cmp(&(Reverse(b.at_ms), &b.comet)));
        for beyond in sightings.drain(most.min(sightings.len())..) {
            table.remove(&beyond.comet);
        }
        sightings.retain(|sighting| sighting.at_ms >= since_ms);
        Ok(SharedSightings { sightings, refused: None })
    }
}
