//! Whether Kafka is there: what readiness asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether Kafka is there, for readiness.
#[derive(Clone, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    brokers_up: bool,
    in_group: bool,
    last_error: Option<String>,
}

impl Health {
    /// Why records are not flowing; `None` when they are.
    pub fn problem(&self) -> Option<String> {
        let state = self.lock();
        if !state.brokers_up {
            let last = state.last_error.as_deref().unwrap_or("no connection yet");
            return Some(format!("kafka: no broker answers ({last}); check `[kafka] brokers`"));
        }
        if !state.in_group {
            return Some("kafka: waiting for the consumer group to assign partitions".into());
        }
        None
    }

    /// Statistics say whether any broker answers.
    pub(super) fn brokers_are_up(&self, up: bool) {
        self.lock().brokers_up = up;
    }

    /// No broker answers any more. Returns whether one did until now.
    pub(super) fn all_brokers_are_down(&self) -> bool {
        std::mem::take(&mut self.lock().brokers_up)
    }

    /// The group has taken this member.
    pub(super) fn joined(&self) {
        self.lock().in_group = true;
    }

    /// What Kafka complained of last.
    pub(super) fn failed(&self, error: String) {
        self.lock().last_error = Some(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
