//! How long what was read from a server counts, while the server reports what changes.
//!
//! A [`Lease`] belongs to one connection. What is read over it is marked with the lease's present
//! [`LeaseTerm`]. A term ends when changes may go unreported: the connection is lost, the server was
//! flushed, or another node serves the keys. And it counts only while the server has recently answered,
//! since a connection that was cut may look alive for a long time.
//!
//! Pure: no connection, no task.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::Value;

/// A reply, and the term under which its key was read: `None` if changes of it are not reported.
pub type TrackedValue = (Value, Option<LeaseTerm>);
/// One for each command.
pub type TrackedValues = Vec<TrackedValue>;

/// How long a server may be silent before its reports are no longer trusted. Two intervals of
/// [`RENEWAL_INTERVAL`](super::tracking::RENEWAL_INTERVAL).
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// A time for which everything counts.
const FOREVER: u64 = u64::MAX;

/// The lease of one connection.
#[derive(Debug)]
pub struct Lease {
    /// The number of the present term.
    term: AtomicU64,
    /// When the latest request that was answered was sent.
    confirmed: AtomicU64,
}

/// What is read under a lease, until its term ends.
#[derive(Clone, Debug)]
pub struct LeaseTerm {
    lease: Arc<Lease>,
    number: u64,
}

impl Lease {
    /// A lease for a connection that answered a request of this time.
    pub(crate) fn new(sent: Instant) -> Arc<Self> {
        Arc::new(Self { term: AtomicU64::new(0), confirmed: AtomicU64::new(micros(sent)) })
    }

    /// A lease that no silence ends: changes are reported in this process.
    pub fn in_process() -> Arc<Self> {
        Arc::new(Self { term: AtomicU64::new(0), confirmed: AtomicU64::new(FOREVER) })
    }

    /// A request that was sent at this time has been answered, and so all changes before it were
    /// reported.
    pub(crate) fn confirm(&self, sent: Instant) {
        self.confirmed.fetch_max(micros(sent), Ordering::AcqRel);
    }

    /// What was read so far does not count any more.
    pub fn end_term(&self) {
        self.term.fetch_add(1, Ordering::AcqRel);
    }

    /// The present term. Taken before a read, never after it.
    pub fn term(self: &Arc<Self>) -> LeaseTerm {
        LeaseTerm { lease: Arc::clone(self), number: self.term.load(Ordering::Acquire) }
    }
}

impl LeaseTerm {
    /// Whether changes have been reported since, as far as is known at this time.
    pub fn is_valid(&self, now: Instant) -> bool {
        let silence = micros(now).saturating_sub(self.lease.confirmed.load(Ordering::Acquire));
        !self.is_over() && silence < LEASE.as_micros() as u64
    }

    /// Whether all changes until this time have been reported.
    pub fn covers(&self, time: Instant) -> bool {
        !self.is_over() && self.lease.confirmed.load(Ordering::Acquire) >= micros(time)
    }

    /// Whether changes may have gone unreported.
    pub fn is_over(&self) -> bool {
        self.lease.term.load(Ordering::Acquire) != self.number
    }
}

/// Microseconds since the process first asked for a time here.
fn micros(time: Instant) -> u64 {
    // An hour earlier: no time that is asked for lies before it.
    static START: LazyLock<Instant> = LazyLock::new(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
    });
    time.saturating_duration_since(*START).as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_counts_while_the_server_answers() {
        let start = Instant::now();
        let lease = Lease::new(start);
        let term = lease.term();
        assert!(term.is_valid(start) && term.is_valid(start + LEASE / 2));
        assert!(!term.is_valid(start + LEASE), "it has been silent");
        lease.confirm(start + LEASE);
        assert!(term.is_valid(start + LEASE * 3 / 2), "it was only slow");
        lease.confirm(start);
        assert!(term.is_valid(start + LEASE * 3 / 2), "answers may come in any order");
        lease.end_term();
        assert!(!term.is_valid(start + LEASE) && lease.term().is_valid(start + LEASE));
    }

    #[test]
    fn a_term_covers_what_was_asked_for_since() {
        let start = Instant::now();
        let lease = Lease::new(start);
        let (term, later) = (lease.term(), start + Duration::from_millis(1));
        assert!(term.covers(start) && !term.covers(later));
        lease.confirm(later);
        assert!(term.covers(later));
        lease.end_term();
        assert!(!term.covers(start));
        assert!(Lease::in_process().term().covers(later) && Lease::in_process().term().is_valid(later));
    }
}
