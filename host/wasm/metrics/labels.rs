//! The labels of the plugins' metrics.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::decision::{DifferenceKind, FailureKind, PluginVersion};
use crate::wasm::failure::PluginLimit;

/// A function of a plugin that is timed and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HookKind {
    Filter,
    Grouping,
    Offline,
    Init,
}

impl HookKind {
    /// Every hook, in the order of the counters.
    pub(super) const ALL: [Self; 4] = [Self::Filter, Self::Grouping, Self::Offline, Self::Init];

    /// The hook as named in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Grouping => "grouping",
            Self::Offline => "offline",
            Self::Init => "init",
        }
    }
}

/// What a filter decided about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FilterDecision {
    Pass,
    Drop,
    DeadLetter,
    Amend,
}

impl FilterDecision {
    /// Every decision, in the order of the counters.
    pub(super) const ALL: [Self; 4] = [Self::Pass, Self::Drop, Self::DeadLetter, Self::Amend];

    /// The decision as named in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::DeadLetter => "dead-letter",
            Self::Amend => "amend",
        }
    }
}

/// The names of these enums are label values.
macro_rules! label_values {
    ($($name:ty),+) => {$(
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    )+};
}

label_values!(DifferenceKind, FailureKind, FilterDecision, HookKind, PluginLimit);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HookLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) hook: HookKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ErrorLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) kind: FailureKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DifferenceLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) kind: DifferenceKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DecisionLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) decision: FilterDecision,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    plugin: String,
    version: String,
    limit: PluginLimit,
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

impl HookLabels {
    pub(super) fn of(version: &PluginVersion, hook: HookKind) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, hook }
    }
}

impl ErrorLabels {
    pub(super) fn of(version: &PluginVersion, kind: FailureKind) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, kind }
    }
}

impl DifferenceLabels {
    pub(super) fn of(version: &PluginVersion, kind: DifferenceKind) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, kind }
    }
}

impl DecisionLabels {
    pub(super) fn of(version: &PluginVersion, decision: FilterDecision) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, decision }
    }
}

impl LimitLabels {
    pub(super) fn of(version: &PluginVersion, limit: PluginLimit) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, limit }
    }
}
