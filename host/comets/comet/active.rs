//! Counts a comet in the `active_comet_nodes` metric while its breaker is closed.

use std::sync::Arc;

use crate::comets::breaker::State;
use crate::comets::job::Standing;

/// A comet's state, counted as an active comet while its breaker is closed.
pub(super) struct Active {
    pub(super) standing: Arc<Standing>,
    counted: bool,
}

impl Active {
    pub(super) fn new(standing: Arc<Standing>) -> Self {
        standing.metrics.active.inc();
        Self { standing, counted: true }
    }

    pub(super) fn set(&mut self, state: State) {
        if self.standing.state() == state {
            return;
        }
        self.standing.set_state(state);
        let closed = state == State::Closed;
        self.standing.metrics.breaker_open.set(i64::from(!closed));
        if closed && !self.counted {
            self.standing.metrics.active.inc();
        } else if !closed && self.counted {
            self.standing.metrics.active.dec();
        }
        self.counted = closed;
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.counted {
            self.standing.metrics.active.dec();
        }
    }
}
