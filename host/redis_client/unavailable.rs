//! The error if Redis cannot be used now: operation, address, cause and remedy.

use std::fmt;
use std::sync::Arc;

use redis::{ErrorKind, RedisError};

/// Redis cannot be used now; a retry may succeed, so callers hold their records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    place: Arc<str>,
    operation: &'static str,
    problem: Arc<str>,
    trouble: Trouble,
}

/// What kind of trouble it is, since each has its own remedy and its own sign that it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No connection, or it broke.
    Away,
    /// No answer in time.
    Slow,
    /// It cannot serve now: loading, or a replica.
    NotReady,
    /// It is at `maxmemory` and may not evict: it refuses writes.
    OutOfMemory,
    /// It could not save its data and refuses writes (`MISCONF`).
    CannotSave,
    /// Too few replicas are connected; it refuses writes (`NOREPLICAS`).
    TooFewReplicas,
    /// It does not let us do this.
    Denied,
    /// It does not let us in: no password, or a wrong one.
    NotLetIn,
    /// A reply was larger than may be.
    TooLarge,
    /// A reply that no Redis sends.
    Nonsense,
    /// The URL names a single server, but it is a node of a cluster.
    IsCluster,
    /// The URL names a cluster, but this server belongs to none.
    NoCluster,
    /// The cluster does not serve all of its slots, or is changing too fast.
    ClusterDown,
    /// The sentinels do not know the service, or are not sentinels.
    NoService,
}

/// Why a server could not be used, without the operation.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) trouble: Trouble,
    /// The cause.
    pub(crate) said: Arc<str>,
}

impl Problem {
    pub(crate) fn new(trouble: Trouble, said: impl Into<Arc<str>>) -> Self {
        Self { trouble, said: said.into() }
    }

    /// The same, naming one of several servers.
    pub(crate) fn of(self, server: impl fmt::Display) -> Self {
        Self::new(self.trouble, format!("{server}: {}", self.said))
    }

    /// The more informative one: an answer says more than silence.
    pub(crate) fn worse(one: Option<Self>, other: Self) -> Option<Self> {
        let weight = |problem: &Self| match problem.trouble {
            Trouble::Away => 0,
            Trouble::Slow => 1,
            Trouble::NoService | Trouble::NoCluster | Trouble::Nonsense => 2,
            _ => 3,
        };
        match one {
            Some(one) if weight(&one) >= weight(&other) => Some(one),
            _ => Some(other),
        }
    }
}

impl Trouble {
    /// Whether a connection that logs in anew may have other rights.
    pub(super) fn is_about_the_user(self) -> bool {
        matches!(self, Self::Denied | Self::NotLetIn)
    }
}

impl From<RedisError> for Problem {
    fn from(error: RedisError) -> Self {
        let trouble = match error.kind() {
            ErrorKind::Io if error.is_timeout() => Trouble::Slow,
            ErrorKind::Io => Trouble::Away,
            ErrorKind::AuthenticationFailed => Trouble::NotLetIn,
            ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
                Some("NOAUTH" | "WRONGPASS") => Trouble::NotLetIn,
                Some("NOPERM") => Trouble::Denied,
                Some("OOM") => Trouble::OutOfMemory,
                Some("MISCONF") => Trouble::CannotSave,
                Some("NOREPLICAS") => Trouble::TooFewReplicas,
                _ => Trouble::NotReady,
            },
            _ => Trouble::Nonsense,
        };
        Self::new(trouble, error.to_string())
    }
}

impl Unavailable {
    /// For this operation at this address; `problem` is the cause.
    pub(crate) fn new(
        trouble: Trouble,
        place: Arc<str>,
        operation: &'static str,
        problem: impl Into<Arc<str>>,
    ) -> Self {
        Self { place, operation, problem: problem.into(), trouble }
    }

    /// What an operator can do about it.
    fn remedy(&self) -> &'static str {
        match self.trouble {
            Trouble::Away => "check that it runs and that [redis] url names it",
            Trouble::Slow => "check its load and the network, or raise the timeouts in [redis]",
            Trouble::NotReady => "wait for it, or name its primary in [redis] url",
            Trouble::OutOfMemory => {
                "raise its `maxmemory`, or store less: [offline] retention, max_per_user and max_body"
            }
            Trouble::CannotSave => {
                "fix its disk (see its log), or set `stop-writes-on-bgsave-error no` there"
            }
            Trouble::TooFewReplicas => "bring its replicas back, or lower its `min-replicas-to-write`",
            Trouble::Denied | Trouble::NotLetIn => {
                "check user and password in [redis] url, and the user's ACL; `halley check --connect` tries what is needed"
            }
            Trouble::TooLarge => "check the size of its keys, or raise [redis] max_reply",
            Trouble::Nonsense => "check that [redis] url names a Redis server",
            Trouble::IsCluster => "this is a cluster: name its nodes with redis+cluster:// in [redis] url",
            Trouble::NoCluster => {
                "this is not a cluster: use redis:// or redis+sentinel:// instead of redis+cluster:// in [redis] url"
            }
            Trouble::ClusterDown => "wait for it, and run `redis-cli --cluster check`",
            Trouble::NoService => "check the sentinels and the service's name in [redis] url",
        }
    }

    /// Whether Redis answers but refuses to write; reads continue.
    pub fn refuses_writes(&self) -> bool {
        matches!(
            self.trouble,
            Trouble::OutOfMemory
                | Trouble::CannotSave
                | Trouble::TooFewReplicas
                | Trouble::Denied
                | Trouble::NotLetIn
        )
    }

    /// Whether there was no answer in time, or an oversized one: the request itself may be the cause.
    pub fn is_slow(&self) -> bool {
        matches!(self.trouble, Trouble::Slow | Trouble::TooLarge)
    }

    /// The error of an in-memory part that simulates an unreachable Redis.
    pub fn pretended(operation: &'static str) -> Self {
        Self::new(Trouble::Away, "memory://".into(), operation, "simulated outage")
    }

    /// An error that refuses writes.
    #[cfg(test)]
    pub(crate) fn pretended_full(operation: &'static str) -> Self {
        Self::new(Trouble::OutOfMemory, "memory://".into(), operation, "simulated OOM")
    }

    /// An error for a timeout.
    #[cfg(test)]
    pub(crate) fn pretended_slow(operation: &'static str) -> Self {
        Self::new(Trouble::Slow, "memory://".into(), operation, "no answer in time")
    }

    /// The cause, without address and remedy.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, operation, problem, .. } = self;
        let remedy = self.remedy();
        write!(f, "Redis at {place} is unavailable for {operation}: {problem}; retrying; {remedy}")
    }
}

impl std::error::Error for Unavailable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_to_write_has_its_own_remedy() {
        let of = |trouble| Unavailable::new(trouble, "here".into(), "store_offline", "said");
        for (trouble, remedy) in [
            (Trouble::OutOfMemory, "maxmemory"),
            (Trouble::CannotSave, "stop-writes-on-bgsave-error"),
            (Trouble::TooFewReplicas, "min-replicas-to-write"),
        ] {
            let unavailable = of(trouble);
            assert!(unavailable.refuses_writes(), "{unavailable}");
            assert!(unavailable.to_string().contains(remedy), "{unavailable}");
        }
        assert!(!of(Trouble::NotReady).refuses_writes(), "a replica, or one that is loading: it passes");
    }
}
