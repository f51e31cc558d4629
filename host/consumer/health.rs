//! Whether Kafka is reachable, for readiness.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Whether Kafka is reachable, for readiness.
#[derive(Clone, Default)]
pub struct Health {
    state: Arc<Mutex<HealthState>>,
    fenced: CancellationToken,
    polls: Arc<AtomicU64>,
}

#[derive(Default)]
struct HealthState {
    brokers_up: bool,
    in_group: bool,
    /// Why the group does not accept this member, or has no partitions for it.
    refusal: Option<String>,
    last_error: Option<String>,
    /// Partitions that no member of the group has.
    unassigned: Option<String>,
}

impl Health {
    /// Why records are not flowing; `None` when they are.
    pub fn problem(&self) -> Option<String> {
        let state = self.state.lock();
        if self.fenced.is_cancelled() {
            let last = state.last_error.as_deref().unwrap_or("no reason given");
            return Some(format!("kafka: fenced from the consumer group ({last}); restart the process"));
        }
        if !state.brokers_up {
            let last = state.last_error.as_deref().unwrap_or("no connection yet");
            return Some(format!(
                "kafka: no broker reachable ({last}); check `[kafka] brokers`, and `security.protocol` and `sasl.*` in [kafka.properties]"
            ));
        }
        if !state.in_group {
            let why =
                state.refusal.as_deref().unwrap_or("waiting for the consumer group to assign partitions");
            return Some(format!("kafka: {why}"));
        }
        None
    }

    /// What does not stop this process, but needs an operator.
    pub fn warning(&self) -> Option<String> {
        self.state.lock().unassigned.as_deref().map(unassigned)
    }

    /// How often the polling thread has polled.
    pub fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// The polling thread has polled.
    pub(super) fn polled(&self) {
        self.polls.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until Kafka has fenced this consumer. Only a new process recovers from that; usually
    /// another process has taken over the name in `[kafka] instance_id`.
    pub async fn until_fenced(&self) {
        self.fenced.cancelled().await;
    }

    /// Takes the partitions that no member of the group has. Returns the new warning, or that it is over,
    /// if this has changed.
    pub(super) fn set_unassigned(&self, partitions: Option<String>) -> Option<Option<String>> {
        let mut state = self.state.lock();
        if state.unassigned == partitions {
            return None;
        }
        state.unassigned = partitions;
        Some(state.unassigned.as_deref().map(unassigned))
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.is_cancelled()
    }

    /// Records that Kafka has fenced this consumer, and why.
    pub(super) fn set_fenced(&self, reason: &str) {
        {
            let mut state = self.state.lock();
            state.in_group = false;
            state.last_error = Some(reason.to_owned());
        }
        self.fenced.cancel();
    }

    /// Statistics report a connected broker. Returns whether there was none before.
    pub(super) fn mark_broker_up(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().brokers_up, true)
    }

    /// A connection has failed for this reason; `all_down` if no broker is reachable.
    pub(super) fn connection_failed(&self, all_down: bool, reason: Option<String>) {
        let mut state = self.state.lock();
        state.brokers_up &= !all_down;
        state.last_error = reason.or(state.last_error.take());
    }

    /// The group has accepted this member.
    pub(super) fn joined(&self) {
        let mut state = self.state.lock();
        state.in_group = true;
        state.refusal = None;
    }

    /// The group does not accept this member, or has no partitions for it, for this reason.
    pub(super) fn refused(&self, why: String) {
        self.state.lock().refusal = Some(why);
    }

    /// This member is no longer in the group.
    pub(super) fn left(&self) {
        self.state.lock().in_group = false;
    }
}

fn unassigned(partitions: &str) -> String {
    format!(
        "kafka: no member of the group reads {partitions}: partitions that were added while static members were away are assigned at the next rebalance; cause one by stopping a gateway for longer than `[kafka] session_timeout`, or by starting it with another `[kafka] instance_id`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_the_known_reason() {
        let health = Health::default();
        let told = |text: &str| health.problem().is_some_and(|problem| problem.contains(text));
        assert!(told("no connection yet"));
        health.connection_failed(false, Some("SASL authentication error".into()));
        assert!(told("SASL authentication error") && told("sasl.*"));
        health.mark_broker_up();
        assert!(told("waiting for the consumer group"));
        health.refused("not authorized for the consumer group `halley`".into());
        assert!(told("not authorized for the consumer group"));
        health.joined();
        assert_eq!(health.problem(), None);
        health.left();
        assert!(told("waiting for the consumer group"), "the refusal is over");
        health.connection_failed(true, None);
        assert!(told("SASL authentication error"));
    }
}
