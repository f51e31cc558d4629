//! The metrics of one plugin's version, while it is prepared.

use crate::decision::{DifferenceKind, FailureKind, PluginVersion};
use crate::telemetry::{Counter, Gauge, Histogram};
use crate::wasm::failure::PluginLimit;
use crate::wasm::metrics::labels::{CustomMetricLabels, FilterDecision, HookKind, VersionLabels};
use crate::wasm::metrics::{MAX_CUSTOM_METRICS, MAX_CUSTOM_NAME_LENGTH, MetricNames, Metrics};

/// The metrics of one prepared plugin. Dropping the last ones of a name removes its label sets.
#[derive(Debug)]
pub(crate) struct PluginMetrics {
    pub(crate) calls: [Counter; HookKind::ALL.len()],
    pub(crate) decisions: [Counter; FilterDecision::ALL.len()],
    pub(crate) limits: [Counter; 8],
    pub(crate) over_budget: Gauge,
    pub(crate) seconds: [Histogram; HookKind::ALL.len()],
    pub(crate) all: Metrics,
    pub(crate) version: PluginVersion,
}

impl Metrics {
    /// The metrics of one prepared plugin, until the result is dropped.
    pub(crate) fn plugin(&self, version: &PluginVersion) -> PluginMetrics {
        let mut known = self.known.lock();
        let name = known.entry(version.name.to_string()).or_default();
        *name.versions.entry(version.hash.to_string()).or_default() += 1;
        let labels = VersionLabels::of(version);
        self.info.get_or_create(&labels).set(1);
        PluginMetrics {
            limits: PluginLimit::ALL.map(|one| self.limits.get_or_create_owned(&(labels.clone(), one))),
            over_budget: self.over_budget.get_or_create_owned(&labels),
            decisions: FilterDecision::ALL
                .map(|one| self.decisions.get_or_create_owned(&(labels.clone(), one))),
            calls: HookKind::ALL.map(|one| self.calls.get_or_create_owned(&(labels.clone(), one))),
            seconds: HookKind::ALL.map(|one| self.seconds.get_or_create_owned(&(labels.clone(), one))),
            all: self.clone(),
            version: version.clone(),
        }
    }
}

impl PluginMetrics {
    /// Counts and times one call.
    pub(crate) fn called(&self, hook: HookKind, seconds: f64) {
        self.calls[hook as usize].inc();
        self.seconds[hook as usize].observe(seconds);
    }

    /// A call failed in this way, at this limit if any.
    pub(crate) fn failed(&self, kind: FailureKind, limit: Option<PluginLimit>) {
        self.all.errors.get_or_create(&(VersionLabels::of(&self.version), kind)).inc();
        if let Some(limit) = limit {
            self.hit(limit);
        }
    }

    /// The plugin reached a limit.
    pub(crate) fn hit(&self, limit: PluginLimit) {
        self.limits[limit as usize].inc();
    }

    /// It was not called for this many messages, rooms or recipients.
    pub(crate) fn unasked(&self, count: usize) {
        self.limits[PluginLimit::TimeBudget as usize].inc_by(count as u64);
    }

    /// How many workers do not call it for now.
    pub(crate) fn over_budget(&self) -> &Gauge {
        &self.over_budget
    }

    /// Counts messages by the filter's decision.
    pub(crate) fn decided(&self, decision: FilterDecision, messages: usize) {
        self.decisions[decision as usize].inc_by(messages as u64);
    }

    /// Counts one message that the active version decided differently.
    pub(crate) fn differed(&self, kind: DifferenceKind) {
        self.all.differences.get_or_create(&(VersionLabels::of(&self.version), kind)).inc();
    }

    /// Adds to one of the plugin's own counters. False when the name is not allowed, or exceeds the
    /// limit on names.
    pub(crate) fn custom_counter(&self, name: &str, value: u64) -> bool {
        if !self.may_have(name, |known| &mut known.counters) {
            return false;
        }
        self.all.custom_counters.get_or_create(&self.custom_labels(name)).inc_by(value);
        true
    }

    /// Sets one of the plugin's own gauges. False as for counters.
    pub(crate) fn custom_gauge(&self, name: &str, value: f64) -> bool {
        if !self.may_have(name, |known| &mut known.gauges) {
            return false;
        }
        self.all.custom_gauges.get_or_create(&self.custom_labels(name)).set(value);
        true
    }

    fn may_have(&self, name: &str, names: impl Fn(&mut MetricNames) -> &mut Vec<String>) -> bool {
        let printable = name.chars().all(|c| !c.is_control());
        if name.is_empty() || name.len() > MAX_CUSTOM_NAME_LENGTH || !printable {
            return false;
        }
        let mut all = self.all.known.lock();
        let Some(known) = all.get_mut(&*self.version.name) else { return false };
        let names = names(known);
        if names.iter().any(|known| known == name) {
            return true;
        }
        if names.len() >= MAX_CUSTOM_METRICS {
            return false;
        }
        names.push(name.to_owned());
        true
    }

    fn custom_labels(&self, name: &str) -> CustomMetricLabels {
        CustomMetricLabels { plugin: self.version.name.to_string(), name: name.to_owned() }
    }
}

impl Drop for PluginMetrics {
    fn drop(&mut self) {
        self.all.forget(&self.version);
    }
}
