//! What a caller learns when Redis cannot be used now: what was wanted, where, and what helps.

use std::fmt;
use std::sync::Arc;

/// Redis cannot be used now; the same call may succeed later, so nothing is to be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    place: Arc<str>,
    operation: &'static str,
    problem: Arc<str>,
    remedy: &'static str,
}

/// What kind of trouble it is, since each has its own remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No connection, or it broke.
    Away,
    /// No answer in time.
    Slow,
    /// It answers that it cannot serve now: loading, a replica, out of memory.
    NotReady,
    /// It will not let us in, or not let us do this.
    Denied,
    /// It answered something that no Redis answers.
    Nonsense,
}

impl Unavailable {
    /// For this operation at this place; `problem` is what was seen.
    pub(crate) fn new(
        trouble: Trouble,
        place: Arc<str>,
        operation: &'static str,
        problem: impl Into<Arc<str>>,
    ) -> Self {
        let remedy = match trouble {
            Trouble::Away => "check that it runs and that [redis] url names it",
            Trouble::Slow => "check its load and the network, or raise the timeouts in [redis]",
            Trouble::NotReady => "wait for it, or name its primary in [redis] url",
            Trouble::Denied => "check user and password in [redis] url, and the user's ACL",
            Trouble::Nonsense => "check that [redis] url names a Redis server",
        };
        Self { place, operation, problem: problem.into(), remedy }
    }

    /// What a part that only stands in for Redis reports when it plays that Redis is away.
    pub fn pretended(operation: &'static str) -> Self {
        Self::new(Trouble::Away, "memory://".into(), operation, "told to be away")
    }

    /// What was seen, without place and remedy.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, operation, problem, remedy } = self;
        write!(f, "Redis at {place} is unavailable for {operation}: {problem}; it is tried again; {remedy}")
    }
}

impl std::error::Error for Unavailable {}
