//! What a comet's task does when its breaker opens or closes.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::actor::Actor;
use super::probe::ProbeReply;
use crate::comets::breaker::{BreakerChange, BreakerState};
use crate::telemetry::LogThrottle;

/// Throttles lines about breakers, over all comets: thousands may change at once, and a hostile
/// comet may change as often as it likes.
static OPENED_LOG: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));
static CLOSED_LOG: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));

impl Actor {
    /// Handles the result of a health probe.
    pub(super) fn found(&mut self, found: ProbeReply) {
        let Some(client) = self.probe.found(found, Instant::now()) else { return };
        self.renew_channel();
        self.client = Some(client);
        self.active.state.note_answer();
        let change = self.breaker.force_close();
        self.changed(change);
    }

    /// Handles a change of the breaker.
    pub(super) fn changed(&mut self, change: BreakerChange) {
        if change == BreakerChange::Nothing {
            return;
        }
        let address = &self.active.state.address;
        match change {
            BreakerChange::Nothing => {}
            BreakerChange::Opened(time) => {
                let error = self.active.state.last_error().unwrap_or_default();
                let Some(held_back) = OPENED_LOG.admit() else {
                    debug!(comet = %address, error, retry_in = ?time, "the breaker is open");
                    return self.state_changed();
                };
                warn!(
                    comet = %address, error, retry_in = ?time, held_back,
                    "comet unreachable: its breaker is open and its recipients go to the offline policy; check that the comet runs and is reachable"
                );
            }
            BreakerChange::StillOpen(time) => debug!(comet = %address, retry_in = ?time, "the probe failed"),
            BreakerChange::Closed => {
                if let Some(held_back) = CLOSED_LOG.admit() {
                    info!(comet = %address, held_back, "comet recovered: its breaker is closed");
                }
            }
        }
        self.state_changed();
    }

    /// The breaker's state has changed.
    fn state_changed(&mut self) {
        self.active.set(self.breaker.state());
        if self.breaker.state() == BreakerState::Closed {
            self.probe.closed();
        }
        if self.breaker.state() == BreakerState::Open {
            // The probe has to test the comet, not an old connection.
            self.renew_channel();
            for (_, call) in std::mem::take(&mut self.backing_off) {
                self.fail_call(call, "the comet's breaker is open");
            }
            let why = self.open_breaker();
            for call in self.parked.drain() {
                call.give_up(why.clone());
            }
        }
    }

    fn open_breaker(&self) -> String {
        let last = self.active.state.last_error().unwrap_or_default();
        format!("the comet's breaker is open; last error: {last}")
    }
}
