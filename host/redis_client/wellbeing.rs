//! What is wrong with Redis at present, as the operations found it.
//!
//! A server that answers a `PING` may still refuse to do anything else: a replica refuses to
//! write, a node of a cluster what is not its own. So what an operation met counts until the
//! same operation succeeds, or is not tried any more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::unavailable::{Trouble, Unavailable};

/// How long what an operation met counts when it is not tried again: who waits for Redis tries
/// again sooner.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Wellbeing {
    /// Of the connection, for the log.
    name: &'static str,
    place: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// At most one for each operation, the latest at the end.
    met: Vec<Met>,
    /// Whether it was logged that something is wrong.
    told: bool,
}

#[derive(Debug)]
struct Met {
    operation: &'static str,
    trouble: Trouble,
    problem: Unavailable,
    at: Instant,
}

impl Wellbeing {
    pub(super) fn new(name: &'static str, place: Arc<str>) -> Self {
        Self { name, place, state: Mutex::default() }
    }

    /// What is wrong at present.
    pub(super) fn problem(&self) -> Option<Unavailable> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.met.iter().rev().find(|met| met.at.elapsed() < FRESH);
        fresh.map(|met| met.problem.clone())
    }

    /// An operation was answered.
    pub(super) fn succeeded(&self, operation: &'static str) {
        self.change(|met| met.retain(|met| met.operation != operation));
    }

    /// There was a sign of life: what remains is what a `PING` does not show.
    pub(super) fn alive(&self) {
        self.change(|met| {
            met.retain(|met| {
                matches!(met.trouble, Trouble::NotReady | Trouble::IsCluster | Trouble::ClusterDown)
            });
        });
    }

    /// An operation was not answered, or told that Redis is unfit.
    pub(super) fn failed(&self, operation: &'static str, trouble: Trouble, problem: Unavailable) {
        self.change(|met| {
            met.retain(|met| met.operation != operation);
            met.push(Met { operation, trouble, problem, at: Instant::now() });
        });
    }

    /// Logs only when Redis goes or returns: calls in between would all say the same.
    fn change(&self, change: impl FnOnce(&mut Vec<Met>)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.met);
        state.met.retain(|met| met.at.elapsed() < FRESH);
        match (state.told, state.met.last()) {
            (false, Some(met)) => tracing::warn!(connection = self.name, "{}", met.problem),
            (true, None) => tracing::info!(connection = self.name, "Redis at {} is back", self.place),
            (false, None) | (true, Some(_)) => {}
        }
        state.told = !state.met.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(operation: &'static str) -> Unavailable {
        Unavailable::pretended(operation)
    }

    #[test]
    fn a_sign_of_life_is_not_enough_while_an_operation_is_refused() {
        let wellbeing = Wellbeing::new("test", "nowhere".into());
        assert_eq!(wellbeing.problem(), None);
        wellbeing.failed("write", Trouble::NotReady, problem("write"));
        wellbeing.failed("read", Trouble::Away, problem("read"));
        assert_eq!(wellbeing.problem(), Some(problem("read")));
        wellbeing.alive();
        assert_eq!(wellbeing.problem(), Some(problem("write")), "a replica answers as well");
        wellbeing.succeeded("read");
        assert_eq!(wellbeing.problem(), Some(problem("write")));
        wellbeing.succeeded("write");
        assert_eq!(wellbeing.problem(), None);
    }

    #[test]
    fn an_operation_has_one_problem_at_a_time() {
        let wellbeing = Wellbeing::new("test", "nowhere".into());
        for _ in 0..100 {
            wellbeing.failed("write", Trouble::NotReady, problem("write"));
        }
        let met = wellbeing.state.lock().expect("not poisoned").met.len();
        assert_eq!(met, 1);
    }
}
