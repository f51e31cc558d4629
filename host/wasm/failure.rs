//! How a plugin fails: the kind, the limit, and the message.

use std::time::Duration;

use crate::decision::FailureKind;
use crate::telemetry::label_enum;

label_enum! {
    /// A limit of plugins.
    pub(crate) enum PluginLimit as "limit" {
        /// The deadline of a call.
        Time = "time",
        /// The memory of an instance, or the size of its tables.
        Memory = "memory",
        /// The size of an answer or of a part of it.
        Output = "output",
        /// The length or the rate of log lines.
        Log = "log",
        /// The names of the plugin's own metrics.
        Metrics = "metrics",
        /// The size of the plugin's state, or how much of it one batch uses.
        State = "state",
        /// The process's limits: there was no room for an instance.
        AddressSpace = "address-space",
        /// The time budget for calls past their deadline: it was not called for these messages.
        TimeBudget = "time-budget",
    }
}

/// A failed call. Its message is the second half of a sentence that begins with the plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct PluginFailure {
    pub(crate) kind: FailureKind,
    /// The limit that caused it, if any.
    pub(crate) limit: Option<PluginLimit>,
    pub(crate) message: String,
    /// Whether its `init` refused the configuration.
    pub(crate) refused_configuration: bool,
}

impl PluginFailure {
    pub(crate) fn new(kind: FailureKind, limit: Option<PluginLimit>, message: String) -> Self {
        Self { kind, limit, message, refused_configuration: false }
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

    /// Its `init` refused the configuration.
    pub(crate) fn refused_configuration(why: &str) -> Self {
        let message = format!("refused its configuration: {why}");
        Self { refused_configuration: true, ..Self::start(message) }
    }

    /// A failed start.
    pub(crate) fn start(message: String) -> Self {
        Self::new(FailureKind::Start, None, message)
    }
}

/// An error with its causes, on one line.
pub(crate) fn causes(error: &wasmtime::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
