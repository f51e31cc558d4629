//! How a plugin fails: the kind, the limit, and the message.

use std::fmt;
use std::time::Duration;

use crate::decision::FailureKind;

/// A limit of plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PluginLimit {
    /// The deadline of a call.
    Time,
    /// The memory of an instance, or the size of its tables.
    Memory,
    /// The size of an answer or of a part of it.
    Output,
    /// The length or the rate of log lines.
    Log,
    /// The names of the plugin's own metrics.
    Metrics,
    /// The size of the plugin's state, or how much of it one batch uses.
    State,
    /// The process's limits: there was no room for an instance.
    AddressSpace,
    /// The time budget for calls past their deadline: it was not called for these messages.
    TimeBudget,
}

impl PluginLimit {
    /// Every limit, in the order of the counters.
    pub(crate) const ALL: [Self; 8] = [
        Self::Time,
        Self::Memory,
        Self::Output,
        Self::Log,
        Self::Metrics,
        Self::State,
        Self::AddressSpace,
        Self::TimeBudget,
    ];

    /// The limit as named in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Log => "log",
            Self::Metrics => "metrics",
            Self::State => "state",
            Self::AddressSpace => "address-space",
            Self::TimeBudget => "time-budget",
        }
    }
}

/// A failed call. Its message is the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PluginFailure {
    pub(crate) kind: FailureKind,
    /// The limit that caused it, if any.
    pub(crate) limit: Option<PluginLimit>,
    pub(crate) message: String,
}

impl PluginFailure {
    pub(crate) fn new(kind: FailureKind, limit: Option<PluginLimit>, message: String) -> Self {
        Self { kind, limit, message }
    }

    /// An invalid answer.
    pub(crate) fn bad_answer(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadAnswer, None, message.into())
    }

    /// An answer that is too large.
    pub(crate) fn too_large(message: String) -> Self {
        Self::new(FailureKind::BadAnswer, Some(PluginLimit::Output), message)
    }

    /// The process has no room for the instance, or for more of its memory; not the plugin's fault.
    pub(crate) fn address_space_exhausted(message: String) -> Self {
        Self::new(FailureKind::Start, Some(PluginLimit::AddressSpace), message)
    }

    /// Whether the process, not the plugin, reached a limit.
    pub(crate) fn is_address_space_exhausted(&self) -> bool {
        self.limit == Some(PluginLimit::AddressSpace)
    }

    /// It was not called: too much time went into calls that failed in this way.
    pub(crate) fn over_budget(kind: FailureKind, rest: Duration) -> Self {
        let rest = humantime::format_duration(Duration::from_secs(rest.as_secs().max(1)));
        let message = format!("exceeded its deadline too often, and is called again within {rest}");
        Self::new(kind, Some(PluginLimit::TimeBudget), message)
    }

    /// Whether it was interrupted at its deadline.
    pub(crate) fn is_late(&self) -> bool {
        self.limit == Some(PluginLimit::Time)
    }

    /// A failed start.
    pub(crate) fn start(message: String) -> Self {
        Self::new(FailureKind::Start, None, message)
    }
}

impl fmt::Display for PluginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error with its causes, on one line.
pub(crate) fn causes(error: &wasmtime::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
