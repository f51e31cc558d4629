//! Counts a comet in the `active_comet_nodes` metric while its breaker is closed.

use std::sync::Arc;

use crate::comets::breaker::BreakerState;
use crate::comets::state::CometState;

/// A comet's state, counted as an active comet while its breaker is closed.
pub(super) struct ActiveGauge {
    pub(super) state: Arc<CometState>,
    is_counted: bool,
}

impl ActiveGauge {
    pub(super) fn new(state: Arc<CometState>) -> Self {
        state.metrics.active.inc();
        Self { state, is_counted: true }
    }

    pub(super) fn set(&mut self, state: BreakerState) {
        if self.state.breaker_state() == state {
            return;
        }
        self.state.set_breaker_state(state);
        let closed = state == BreakerState::Closed;
        self.state.metrics.breaker_open.set(i64::from(!closed));
        if closed && !self.is_counted {
            self.state.metrics.active.inc();
        } else if !closed && self.is_counted {
            self.state.metrics.active.dec();
        }
        self.is_counted = closed;
    }
}

impl Drop for ActiveGauge {
    fn drop(&mut self) {
        if self.is_counted {
            self.state.metrics.active.dec();
        }
    }
}
