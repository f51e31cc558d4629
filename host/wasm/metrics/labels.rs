//! The labels of the plugins' metrics.

use prometheus_client::encoding::EncodeLabelSet;

use crate::decision::{DifferenceKind, FailureKind, PluginVersion};
use crate::telemetry::label_enum;
use crate::wasm::failure::PluginLimit;

label_enum! {
    /// A function of a plugin that is timed and counted.
    pub(crate) enum HookKind {
        Filter = "filter",
        Retention = "retention",
        Grouping = "grouping",
        Offline = "offline",
        Init = "init",
    }
}

label_enum! {
    /// What a plugin decided about a message.
    pub(crate) enum FilterDecision {
        Pass = "pass",
        Drop = "drop",
        DeadLetter = "dead-letter",
        Amend = "amend",
        /// Kept in an inbox or a history.
        Retain = "retain",
    }
}

/// Labels of a version with one more label.
macro_rules! version_labels {
    ($($name:ident { $label:ident: $kind:ty }),+ $(,)?) => {$(
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name {
            plugin: String,
            version: String,
            $label: $kind,
        }

        impl $name {
            pub(super) fn of(version: &PluginVersion, $label: $kind) -> Self {
                let VersionLabels { plugin, version } = VersionLabels::of(version);
                Self { plugin, version, $label }
            }
        }
    )+};
}

version_labels! {
    HookLabels { hook: HookKind },
    ErrorLabels { kind: FailureKind },
    DifferenceLabels { kind: DifferenceKind },
    DecisionLabels { decision: FilterDecision },
    LimitLabels { limit: PluginLimit },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VersionLabels {
    pub(super) plugin: String,
    pub(super) version: String,
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
