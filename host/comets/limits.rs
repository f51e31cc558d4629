//! Limits on how many comets are known and for how long, and which comets get BROADCASTs.

use std::time::Duration;

use super::breaker::BreakerState;
use super::source::Source;
use super::state::CometState;

use crate::time::millis;

/// Limits on how many comets are known, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableLimits {
    pub(super) max_comets: usize,
    pub(super) max_named: usize,
    pub(super) stale_after: Duration,
    pub(super) retention: Duration,
    pub(super) idle_timeout: Duration,
    /// How long a comet that only records named may take for its first answer before it can be
    /// evicted.
    pub(super) first_answer_timeout: Duration,
}

impl TableLimits {
    /// Whether this comet gets BROADCASTs.
    pub(super) fn gets_broadcasts(&self, state: &CometState, now_ms: u64) -> bool {
        match state.source() {
            Source::Configured | Source::Dns | Source::Discovery => true,
            Source::Directory => !self.is_presumed_gone(state, now_ms),
            Source::Named | Source::Retired => false,
        }
    }

    /// Whether no entry of the directory has named it lately.
    pub(super) fn is_stale(&self, state: &CometState, now_ms: u64) -> bool {
        now_ms.saturating_sub(state.named_at()) > millis(self.stale_after)
    }

    /// No entry has named it lately, and it does not answer: a comet that was shut down, or that
    /// has another address now.
    fn is_presumed_gone(&self, state: &CometState, now_ms: u64) -> bool {
        self.is_stale(state, now_ms) && state.breaker_state() != BreakerState::Closed
    }

    pub(super) fn is_expired(&self, state: &CometState, now_ms: u64) -> bool {
        let is_silent = state.unsettled() == 0 && state.silent_for() >= self.idle_timeout;
        match state.source() {
            Source::Configured | Source::Dns | Source::Discovery => false,
            Source::Named | Source::Retired => is_silent,
            Source::Directory => {
                let is_out_of_mind = now_ms.saturating_sub(state.named_at()) > millis(self.retention);
                is_silent && (is_out_of_mind || self.is_presumed_gone(state, now_ms))
            }
        }
    }
}
