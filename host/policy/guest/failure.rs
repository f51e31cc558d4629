//! How a plugin fails: in which way, at which limit, and the words for it.

use std::fmt;
use std::time::Duration;

use crate::policy::metrics::Limit;
use crate::policy::on_error::FailureKind;

/// A failed call: the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Failure {
    pub(in crate::policy) kind: FailureKind,
    /// The limit that it ran into, if that is why.
    pub(in crate::policy) limit: Option<Limit>,
    pub(in crate::policy) message: String,
}

impl Failure {
    pub(in crate::policy) fn new(kind: FailureKind, limit: Option<Limit>, message: String) -> Self {
        Self { kind, limit, message }
    }

    /// An answer that makes no sense.
    pub(in crate::policy) fn bad_answer(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadAnswer, None, message.into())
    }

    /// An answer of which there is too much.
    pub(in crate::policy) fn too_large(message: String) -> Self {
        Self::new(FailureKind::BadAnswer, Some(Limit::Output), message)
    }

    /// The process has no room for the instance, or for more of its memory: not the plugin's doing.
    pub(in crate::policy) fn no_room(message: String) -> Self {
        Self::new(FailureKind::Start, Some(Limit::AddressSpace), message)
    }

    /// Whether the process, not the plugin, ran into a limit.
    pub(in crate::policy) fn is_no_room(&self) -> bool {
        self.limit == Some(Limit::AddressSpace)
    }

    /// It was not called: too much time went into calls that failed in this way.
    pub(in crate::policy) fn over_budget(kind: FailureKind, rest: Duration) -> Self {
        let rest = humantime::format_duration(Duration::from_secs(rest.as_secs().max(1)));
        let message = format!("ran past its deadline too often, and is called again within {rest}");
        Self::new(kind, Some(Limit::TimeBudget), message)
    }

    /// Whether it was ended for its time.
    pub(in crate::policy) fn is_late(&self) -> bool {
        self.limit == Some(Limit::Time)
    }

    /// A refused start.
    pub(in crate::policy) fn start(message: String) -> Self {
        Self::new(FailureKind::Start, None, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
