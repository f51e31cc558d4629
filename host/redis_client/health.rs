//! Current problems with Redis, as reported by operations.
//!
//! A server that answers a `PING` may still refuse everything else: a replica refuses writes, a
//! cluster node refuses keys of other nodes. So an operation's problem counts until the same
//! operation succeeds, or is no longer attempted. Readiness recovers with the first success.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::{ServerFailureKind, Unavailable};
use crate::telemetry::LogThrottle;

/// Log lines about an unstable Redis, which may change state many times a second.
static LINES: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));

/// How long a problem counts without another attempt, in addition to the duration of one attempt:
/// callers retry sooner.
const FRESH: Duration = Duration::from_secs(2);

/// How long a permission error counts after a success on the connection: within this time, waiting
/// callers have retried and met the error again if it persists.
const NEXT_ROUND_TRIP: Duration = Duration::from_millis(500);

/// The health of one connection. All connections of a client share their state, so that an outage is
/// logged once.
#[derive(Debug)]
pub(super) struct ConnectionHealth {
    /// The name of the connection.
    name: &'static str,
    endpoint: Arc<str>,
    fresh: Duration,
    state: Arc<Mutex<OperationErrors>>,
}

#[derive(Debug, Default)]
struct OperationErrors {
    /// At most one per operation and connection, the latest last.
    observed: Vec<ObservedError>,
    /// Whether a problem has been logged.
    logged: bool,
}

#[derive(Debug)]
struct ObservedError {
    connection: &'static str,
    operation: &'static str,
    failure: ServerFailureKind,
    problem: Unavailable,
    until: Instant,
}

impl ConnectionHealth {
    /// For the first connection; `longest` is the maximum duration of one attempt.
    pub(super) fn new(name: &'static str, endpoint: Arc<str>, longest: Duration) -> Self {
        Self { name, endpoint, fresh: FRESH + longest, state: Arc::default() }
    }

    /// For another connection of the same client.
    pub(super) fn for_connection(&self, name: &'static str, longest: Duration) -> Self {
        let (endpoint, state) = (Arc::clone(&self.endpoint), Arc::clone(&self.state));
        Self { name, endpoint, fresh: FRESH + longest, state }
    }

    /// The current problem of any connection.
    pub(super) fn problem(&self) -> Option<Unavailable> {
        let state = self.state.lock();
        let now = Instant::now();
        let fresh = state.observed.iter().rev().find(|observed| observed.until > now);
        fresh.map(|observed| observed.problem.clone())
    }

    /// An operation was answered. `denied`: a part of it was refused for lack of permission. If not,
    /// the permission may have been granted, on any connection. This is not certain: some operations
    /// take several round trips, and the next one may be refused.
    pub(super) fn record_success(&self, operation: &'static str, denied: bool) {
        let is_same = |observed: &ObservedError| observed.operation == operation;
        let of_rights = |observed: &ObservedError| observed.failure == ServerFailureKind::Denied;
        self.change(|observed| {
            observed.retain(|observed| {
                !is_same(observed) || observed.connection != self.name || of_rights(observed)
            });
            if !denied {
                let soon = Instant::now() + NEXT_ROUND_TRIP;
                let permissions =
                    observed.iter_mut().filter(|observed| is_same(observed) && of_rights(observed));
                permissions.for_each(|observed| observed.until = observed.until.min(soon));
            }
        });
    }

    /// The health check `operation` succeeded on this connection: only problems that a `PING` does not
    /// show remain.
    pub(super) fn record_ping(&self, operation: &'static str) {
        let is_over = |observed: &ObservedError| {
            let shows = matches!(
                observed.failure,
                ServerFailureKind::Unreachable
                    | ServerFailureKind::TimedOut
                    | ServerFailureKind::UnknownService
                    | ServerFailureKind::TooLarge
                    | ServerFailureKind::Malformed
                    | ServerFailureKind::NotLetIn
            );
            observed.connection == self.name && (shows || observed.operation == operation)
        };
        self.change(|observed| observed.retain(|observed| !is_over(observed)));
    }

    /// An operation was not answered, or was refused.
    pub(super) fn record_failure(
        &self,
        operation: &'static str,
        failure: ServerFailureKind,
        problem: Unavailable,
    ) {
        self.change(|observed| {
            observed.retain(|observed| observed.connection != self.name || observed.operation != operation);
            let until = Instant::now() + self.fresh;
            observed.push(ObservedError { connection: self.name, operation, failure, problem, until });
        });
    }

    /// Logs changes of state only, so that calls do not repeat the same line.
    fn change(&self, change: impl FnOnce(&mut Vec<ObservedError>)) {
        let mut state = self.state.lock();
        change(&mut state.observed);
        let now = Instant::now();
        state.observed.retain(|observed| observed.until > now);
        match (state.logged, state.observed.last()) {
            (false, Some(observed)) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::warn!(connection = observed.connection, held_back, "{}", observed.problem);
                }
            }
            (true, None) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::info!(held_back, "Redis at {} is reachable again", self.endpoint);
                }
            }
            (false, None) | (true, Some(_)) => {}
        }
        state.logged = !state.observed.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(operation: &'static str) -> Unavailable {
        Unavailable::simulated_outage(operation)
    }

    #[test]
    fn a_ping_does_not_clear_a_refused_operation() {
        let health = ConnectionHealth::new("test", "nowhere".into(), Duration::ZERO);
        assert_eq!(health.problem(), None);
        health.record_failure("write", ServerFailureKind::NotReady, problem("write"));
        health.record_failure("read", ServerFailureKind::Unreachable, problem("read"));
        assert_eq!(health.problem(), Some(problem("read")));
        health.record_ping("ping");
        assert_eq!(health.problem(), Some(problem("write")), "a replica answers as well");
        health.record_success("read", false);
        assert_eq!(health.problem(), Some(problem("write")));
        health.record_success("write", false);
        assert_eq!(health.problem(), None);
    }

    #[test]
    fn a_ping_clears_its_own_connection_only() {
        let small = ConnectionHealth::new("small", "nowhere".into(), Duration::ZERO);
        let scan = small.for_connection("scan", Duration::ZERO);
        scan.record_failure("read", ServerFailureKind::TimedOut, problem("read"));
        small.record_ping("ping");
        small.record_success("read", false);
        assert_eq!(small.problem(), Some(problem("read")), "one state for all, and one line in the log");
        scan.record_ping("ping");
        assert_eq!(small.problem(), None);
    }

    #[test]
    fn what_is_forbidden_counts_until_it_is_allowed() {
        let health = ConnectionHealth::new("test", "nowhere".into(), Duration::ZERO);
        health.record_failure("write", ServerFailureKind::Denied, problem("write"));
        health.record_success("write", true);
        health.record_ping("ping");
        assert_eq!(health.problem(), Some(problem("write")), "it was answered, and refused");
        let until = || health.state.lock().observed[0].until;
        assert!(until() > Instant::now() + NEXT_ROUND_TRIP);
        health.for_connection("scan", Duration::ZERO).record_success("write", false);
        assert!(until() <= Instant::now() + NEXT_ROUND_TRIP, "it is done now");
    }

    #[test]
    fn who_is_let_in_again_is_not_unready_for_longer() {
        let health = ConnectionHealth::new("test", "nowhere".into(), Duration::ZERO);
        health.record_failure("read", ServerFailureKind::NotLetIn, problem("read"));
        health.record_failure("ping", ServerFailureKind::NotLetIn, problem("ping"));
        health.record_failure("ping", ServerFailureKind::NotReady, problem("ping"));
        assert_eq!(health.problem(), Some(problem("ping")));
        health.record_ping("ping");
        assert_eq!(health.problem(), None, "the password is right, and it serves");
    }

    #[test]
    fn an_operation_has_one_problem_at_a_time() {
        let health = ConnectionHealth::new("test", "nowhere".into(), Duration::ZERO);
        for _ in 0..100 {
            health.record_failure("write", ServerFailureKind::NotReady, problem("write"));
        }
        let observed = health.state.lock().observed.len();
        assert_eq!(observed, 1);
    }
}
