//! The labels of the plugins' metrics.

use prometheus_client::encoding::EncodeLabelSet;

use crate::decision::PluginVersion;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HookLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) hook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ErrorLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DecisionLabels {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    plugin: String,
    version: String,
    limit: &'static str,
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
    pub(super) fn of(version: &PluginVersion, hook: &'static str) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, hook }
    }
}

impl ErrorLabels {
    pub(super) fn of(version: &PluginVersion, kind: &'static str) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, kind }
    }
}

impl DecisionLabels {
    pub(super) fn of(version: &PluginVersion, decision: &'static str) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, decision }
    }
}

impl LimitLabels {
    pub(super) fn of(version: &PluginVersion, limit: &'static str) -> Self {
        let VersionLabels { plugin, version } = VersionLabels::of(version);
        Self { plugin, version, limit }
    }
}
