//! The error if Redis cannot be used now: operation, address, cause and remedy.

use std::fmt;
use std::sync::Arc;

use redis::{ErrorKind, RedisError};

/// Redis cannot be used now; a retry may succeed, so callers hold their records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Redis at {endpoint} is unavailable for {operation}: {problem}; retrying; {}", self.remedy())]
pub struct Unavailable {
    endpoint: Arc<str>,
    operation: &'static str,
    problem: Arc<str>,
    failure: ServerFailureKind,
}

/// The kind of failure. Each has its own remedy, and its own sign of recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerFailureKind {
    /// No connection, or it broke.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// It cannot serve now: loading, or a replica.
    NotReady,
    /// It is at `maxmemory` and may not evict: it refuses writes.
    OutOfMemory,
    /// It could not save its data and refuses writes (`MISCONF`).
    CannotSave,
    /// Too few replicas are connected; it refuses writes (`NOREPLICAS`).
    TooFewReplicas,
    /// The user lacks a permission.
    Denied,
    /// The login failed: no password, or a wrong one.
    NotLetIn,
    /// A reply exceeded its limit.
    TooLarge,
    /// The reply is not valid RESP.
    Malformed,
    /// The URL names a single server, but it is a node of a cluster.
    IsCluster,
    /// The URL names a cluster, but this server does not belong to one.
    NotACluster,
    /// The cluster does not serve all of its slots, or is changing too fast.
    ClusterDown,
    /// The sentinels do not know the service, or are not sentinels.
    UnknownService,
}

/// Why a server could not be used, without the operation.
#[derive(Debug, Clone)]
pub(crate) struct ServerFailure {
    pub(crate) failure: ServerFailureKind,
    /// The cause.
    pub(crate) message: Arc<str>,
}

impl ServerFailure {
    pub(crate) fn new(failure: ServerFailureKind, message: impl Into<Arc<str>>) -> Self {
        Self { failure, message: message.into() }
    }

    /// The same, naming one of several servers.
    pub(crate) fn of(self, server: impl fmt::Display) -> Self {
        Self::new(self.failure, format!("{server}: {}", self.message))
    }

    /// The more informative one: an answer says more than silence.
    pub(crate) fn more_specific(one: Option<Self>, other: Self) -> Option<Self> {
        let weight = |problem: &Self| match problem.failure {
            ServerFailureKind::Unreachable => 0,
            ServerFailureKind::TimedOut => 1,
            ServerFailureKind::UnknownService
            | ServerFailureKind::NotACluster
            | ServerFailureKind::Malformed => 2,
            _ => 3,
        };
        match one {
            Some(one) if weight(&one) >= weight(&other) => Some(one),
            _ => Some(other),
        }
    }
}

impl ServerFailureKind {
    /// Whether a connection that logs in again may have other rights.
    pub(super) fn is_about_the_user(self) -> bool {
        matches!(self, Self::Denied | Self::NotLetIn)
    }
}

impl From<RedisError> for ServerFailure {
    fn from(error: RedisError) -> Self {
        let failure = match error.kind() {
            ErrorKind::Io if error.is_timeout() => ServerFailureKind::TimedOut,
            ErrorKind::Io => ServerFailureKind::Unreachable,
            ErrorKind::AuthenticationFailed => ServerFailureKind::NotLetIn,
            ErrorKind::Server(_) | ErrorKind::Extension => match error.code() {
                Some("NOAUTH" | "WRONGPASS") => ServerFailureKind::NotLetIn,
                Some("NOPERM") => ServerFailureKind::Denied,
                Some("OOM") => ServerFailureKind::OutOfMemory,
                Some("MISCONF") => ServerFailureKind::CannotSave,
                Some("NOREPLICAS") => ServerFailureKind::TooFewReplicas,
                _ => ServerFailureKind::NotReady,
            },
            _ => ServerFailureKind::Malformed,
        };
        Self::new(failure, error.to_string())
    }
}

impl Unavailable {
    /// For this operation at this address; `problem` is the cause.
    pub(crate) fn new(
        failure: ServerFailureKind,
        endpoint: Arc<str>,
        operation: &'static str,
        problem: impl Into<Arc<str>>,
    ) -> Self {
        Self { endpoint, operation, problem: problem.into(), failure }
    }

    /// What an operator can do about it.
    fn remedy(&self) -> &'static str {
        match self.failure {
            ServerFailureKind::Unreachable => "check that it runs and that [redis] url names it",
            ServerFailureKind::TimedOut => "check its load and the network, or raise the timeouts in [redis]",
            ServerFailureKind::NotReady => "wait for it, or name its primary in [redis] url",
            ServerFailureKind::OutOfMemory => {
                "raise its `maxmemory`, or store less: [offline] retention, max_per_user and max_body"
            }
            ServerFailureKind::CannotSave => {
                "fix its disk (see its log), or set `stop-writes-on-bgsave-error no` there"
            }
            ServerFailureKind::TooFewReplicas => {
                "reconnect its replicas, or lower its `min-replicas-to-write`"
            }
            ServerFailureKind::Denied | ServerFailureKind::NotLetIn => {
                "check user and password in [redis] url, and the user's ACL; `halley check --connect` tries the required permissions"
            }
            ServerFailureKind::TooLarge => "check the size of its keys, or raise [redis] max_reply",
            ServerFailureKind::Malformed => "check that [redis] url names a Redis server",
            ServerFailureKind::IsCluster => {
                "this is a cluster: name its nodes with redis+cluster:// in [redis] url"
            }
            ServerFailureKind::NotACluster => {
                "this is not a cluster: use redis:// or redis+sentinel:// instead of redis+cluster:// in [redis] url"
            }
            ServerFailureKind::ClusterDown => "wait for it, and run `redis-cli --cluster check`",
            ServerFailureKind::UnknownService => "check the sentinels and the service's name in [redis] url",
        }
    }

    /// Whether Redis answers but refuses to write; reads continue.
    pub fn refuses_writes(&self) -> bool {
        matches!(
            self.failure,
            ServerFailureKind::OutOfMemory
                | ServerFailureKind::CannotSave
                | ServerFailureKind::TooFewReplicas
                | ServerFailureKind::Denied
                | ServerFailureKind::NotLetIn
        )
    }

    /// Whether there was no answer in time, or an oversized one: the request itself may be the cause.
    pub fn is_slow(&self) -> bool {
        matches!(self.failure, ServerFailureKind::TimedOut | ServerFailureKind::TooLarge)
    }

    /// The error of an in-memory part that simulates an unreachable Redis.
    pub fn simulated_outage(operation: &'static str) -> Self {
        Self::new(ServerFailureKind::Unreachable, "memory://".into(), operation, "simulated outage")
    }

    /// An error that refuses writes.
    #[cfg(test)]
    pub(crate) fn simulated_oom(operation: &'static str) -> Self {
        Self::new(ServerFailureKind::OutOfMemory, "memory://".into(), operation, "simulated OOM")
    }

    /// An error for a timeout.
    #[cfg(test)]
    pub(crate) fn simulated_timeout(operation: &'static str) -> Self {
        Self::new(ServerFailureKind::TimedOut, "memory://".into(), operation, "no answer in time")
    }

    /// The cause, without address and remedy.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_to_write_has_its_own_remedy() {
        let of = |failure| Unavailable::new(failure, "here".into(), "store_offline", "said");
        for (failure, remedy) in [
            (ServerFailureKind::OutOfMemory, "maxmemory"),
            (ServerFailureKind::CannotSave, "stop-writes-on-bgsave-error"),
            (ServerFailureKind::TooFewReplicas, "min-replicas-to-write"),
        ] {
            let unavailable = of(failure);
            assert!(unavailable.refuses_writes(), "{unavailable}");
            assert!(unavailable.to_string().contains(remedy), "{unavailable}");
        }
        assert!(
            !of(ServerFailureKind::NotReady).refuses_writes(),
            "a replica, or one that is loading: it passes"
        );
    }
}
