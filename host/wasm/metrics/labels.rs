//! The labels of the plugins' metrics.

use crate::decision::PluginVersion;
use crate::telemetry::{EncodeLabelSet, label_enum};

label_enum! {
    /// A function of a plugin that is timed and counted.
    pub(crate) enum HookKind as "hook" {
        Filter = "filter",
        Retention = "retention",
        Grouping = "grouping",
        Offline = "offline",
        Init = "init",
    }
}

label_enum! {
    /// What a plugin decided about a message.
    pub(crate) enum FilterDecision as "decision" {
        Pass = "pass",
        Drop = "drop",
        DeadLetter = "dead-letter",
        Amend = "amend",
        /// Kept in an inbox or a history.
        Retain = "retain",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VersionLabels {
    plugin: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CustomMetricLabels {
    pub(super) plugin: String,
    pub(super) name: String,
}

impl VersionLabels {
    pub(super) fn of(version: &PluginVersion) -> Self {
        Self { plugin: version.name.to_string(), version: version.hash.to_string() }
    }
}
