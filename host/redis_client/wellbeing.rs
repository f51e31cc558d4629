//! Current problems with Redis, as reported by operations.
//!
//! A server that answers a `PING` may still refuse to do anything else: a replica refuses to
//! write, a node of a cluster what is not its own. So what an operation met counts until the
//! same operation succeeds, or is not tried any more. It never counts longer than that: readiness
//! follows the first success.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::unavailable::{Trouble, Unavailable};
use crate::telemetry::LogThrottle;

/// Log lines about an unstable Redis, which may change state many times a second.
static LINES: LogThrottle = LogThrottle::new(20, Duration::from_secs(10));

/// How long a problem counts without another attempt, in addition to the duration of one attempt:
/// callers retry sooner.
const FRESH: Duration = Duration::from_secs(2);

/// How long what was refused for want of rights counts after a success: within this, who waits for
/// Redis has tried again, and met it again if it is still so.
const NEXT_ROUND_TRIP: Duration = Duration::from_millis(500);

/// What one connection knows. All connections of a client share their state, so that an outage
/// is logged once.
#[derive(Debug)]
pub(super) struct Wellbeing {
    /// The name of the connection.
    name: &'static str,
    place: Arc<str>,
    fresh: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// At most one per operation and connection, the latest last.
    met: Vec<Met>,
    /// Whether a problem has been logged.
    told: bool,
}

#[derive(Debug)]
struct Met {
    connection: &'static str,
    operation: &'static str,
    trouble: Trouble,
    problem: Unavailable,
    until: Instant,
}

impl Wellbeing {
    /// For the first connection; `longest` is the maximum duration of one attempt.
    pub(super) fn new(name: &'static str, place: Arc<str>, longest: Duration) -> Self {
        Self { name, place, fresh: FRESH + longest, state: Arc::default() }
    }

    /// For another connection of the same client.
    pub(super) fn of_another(&self, name: &'static str, longest: Duration) -> Self {
        let (place, state) = (Arc::clone(&self.place), Arc::clone(&self.state));
        Self { name, place, fresh: FRESH + longest, state }
    }

    /// The current problem of any connection.
    pub(super) fn problem(&self) -> Option<Unavailable> {
        let state = self.state.lock();
        let now = Instant::now();
        let fresh = state.met.iter().rev().find(|met| met.until > now);
        fresh.map(|met| met.problem.clone())
    }

    /// An operation was answered. `denied`: something in the answer was refused for want of rights.
    /// Without that, the rights are perhaps there, on whichever connection they were missed: some
    /// operations take several round trips, of which the next may be refused.
    pub(super) fn succeeded(&self, operation: &'static str, denied: bool) {
        let is_same = |met: &Met| met.operation == operation;
        let of_rights = |met: &Met| met.trouble == Trouble::Denied;
        self.change(|met| {
            met.retain(|met| !is_same(met) || met.connection != self.name || of_rights(met));
            if !denied {
                let soon = Instant::now() + NEXT_ROUND_TRIP;
                let rights = met.iter_mut().filter(|met| is_same(met) && of_rights(met));
                rights.for_each(|met| met.until = met.until.min(soon));
            }
        });
    }

    /// There was a sign of life on this connection, which that `operation` asked for: what remains is
    /// what a `PING` does not show.
    pub(super) fn alive(&self, operation: &'static str) {
        let is_over = |met: &Met| {
            let shows = matches!(
                met.trouble,
                Trouble::Away
                    | Trouble::Slow
                    | Trouble::NoService
                    | Trouble::TooLarge
                    | Trouble::Nonsense
                    | Trouble::NotLetIn
            );
            met.connection == self.name && (shows || met.operation == operation)
        };
        self.change(|met| met.retain(|met| !is_over(met)));
    }

    /// An operation was not answered, or was refused.
    pub(super) fn failed(&self, operation: &'static str, trouble: Trouble, problem: Unavailable) {
        self.change(|met| {
            met.retain(|met| met.connection != self.name || met.operation != operation);
            let until = Instant::now() + self.fresh;
            met.push(Met { connection: self.name, operation, trouble, problem, until });
        });
    }

    /// Logs changes of state only: calls in between would repeat the same line.
    fn change(&self, change: impl FnOnce(&mut Vec<Met>)) {
        let mut state = self.state.lock();
        change(&mut state.met);
        let now = Instant::now();
        state.met.retain(|met| met.until > now);
        match (state.told, state.met.last()) {
            (false, Some(met)) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::warn!(connection = met.connection, held_back, "{}", met.problem);
                }
            }
            (true, None) => {
                if let Some(held_back) = LINES.admit() {
                    tracing::info!(held_back, "Redis at {} is reachable again", self.place);
                }
            }
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
        let wellbeing = Wellbeing::new("test", "nowhere".into(), Duration::ZERO);
        assert_eq!(wellbeing.problem(), None);
        wellbeing.failed("write", Trouble::NotReady, problem("write"));
        wellbeing.failed("read", Trouble::Away, problem("read"));
        assert_eq!(wellbeing.problem(), Some(problem("read")));
        wellbeing.alive("ping");
        assert_eq!(wellbeing.problem(), Some(problem("write")), "a replica answers as well");
        wellbeing.succeeded("read", false);
        assert_eq!(wellbeing.problem(), Some(problem("write")));
        wellbeing.succeeded("write", false);
        assert_eq!(wellbeing.problem(), None);
    }

    #[test]
    fn a_sign_of_life_on_one_connection_says_nothing_of_another() {
        let small = Wellbeing::new("small", "nowhere".into(), Duration::ZERO);
        let scan = small.of_another("scan", Duration::ZERO);
        scan.failed("read", Trouble::Slow, problem("read"));
        small.alive("ping");
        small.succeeded("read", false);
        assert_eq!(small.problem(), Some(problem("read")), "one state for all, and one line in the log");
        scan.alive("ping");
        assert_eq!(small.problem(), None);
    }

    #[test]
    fn what_is_forbidden_counts_until_it_is_allowed() {
        let wellbeing = Wellbeing::new("test", "nowhere".into(), Duration::ZERO);
        wellbeing.failed("write", Trouble::Denied, problem("write"));
        wellbeing.succeeded("write", true);
        wellbeing.alive("ping");
        assert_eq!(wellbeing.problem(), Some(problem("write")), "it was answered, and refused");
        let until = || wellbeing.state.lock().met[0].until;
        assert!(until() > Instant::now() + NEXT_ROUND_TRIP);
        wellbeing.of_another("scan", Duration::ZERO).succeeded("write", false);
        assert!(until() <= Instant::now() + NEXT_ROUND_TRIP, "it is done now");
    }

    #[test]
    fn who_is_let_in_again_is_not_unready_for_longer() {
        let wellbeing = Wellbeing::new("test", "nowhere".into(), Duration::ZERO);
        wellbeing.failed("read", Trouble::NotLetIn, problem("read"));
        wellbeing.failed("ping", Trouble::NotLetIn, problem("ping"));
        wellbeing.failed("ping", Trouble::NotReady, problem("ping"));
        assert_eq!(wellbeing.problem(), Some(problem("ping")));
        wellbeing.alive("ping");
        assert_eq!(wellbeing.problem(), None, "the password is right, and it serves");
    }

    #[test]
    fn an_operation_has_one_problem_at_a_time() {
        let wellbeing = Wellbeing::new("test", "nowhere".into(), Duration::ZERO);
        for _ in 0..100 {
            wellbeing.failed("write", Trouble::NotReady, problem("write"));
        }
        let met = wellbeing.state.lock().met.len();
        assert_eq!(met, 1);
    }
}
