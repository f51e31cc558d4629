//! The plugins' metrics. The label sets of a version are removed with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::metrics::family::{Family, MetricConstructor};

use crate::decision::{DifferenceKind, FailureKind, PluginVersion};
use crate::telemetry::{Counter, Gauge, Histogram, Label, latency_histogram, metrics};
use crate::wasm::failure::PluginLimit;
use crate::wasm::metrics::labels::{CustomMetricLabels, VersionLabels};

mod labels;
mod plugin;

pub(crate) use labels::{FilterDecision, HookKind};
pub(crate) use plugin::PluginMetrics;

/// The maximum number of counters, and of gauges, that a plugin may define.
pub(crate) const MAX_CUSTOM_METRICS: usize = 64;
/// The longest name of such a counter or gauge, in bytes.
pub(crate) const MAX_CUSTOM_NAME_LENGTH: usize = 64;

/// A metric of each version, with one more label.
type PerVersion<L, M = Counter, C = fn() -> M> = Family<(VersionLabels, L), M, C>;

metrics! {
    /// Metrics of the plugins. Registered once per gateway.
    #[derive(Clone, Debug)]
    pub(crate) struct Metrics {
        /// Calls of plugins.
        calls: PerVersion<HookKind> = "halley_plugin_calls";
        /// Calls of plugins that failed.
        errors: PerVersion<FailureKind> = "halley_plugin_errors";
        /// Messages by what a filter decided.
        decisions: PerVersion<FilterDecision> = "halley_plugin_decisions";
        /// Limits that plugins ran into.
        limits: PerVersion<PluginLimit> = "halley_plugin_limits";
        /// Messages that a candidate would have decided differently.
        differences: PerVersion<DifferenceKind> = "halley_plugin_differences";
        /// Time in calls of plugins.
        seconds: PerVersion<HookKind, Histogram> = "halley_plugin_call_duration_seconds" in Family::new_with_constructor(latency_histogram);
        /// 1 for every version that is loaded.
        info: Family<VersionLabels, Gauge> = "halley_plugin_info";
        /// Workers that do not call the plugin for now, because too many calls exceeded their deadline.
        over_budget: Family<VersionLabels, Gauge> = "halley_plugin_over_time_budget";
        /// Plugins' own counters.
        custom_counters: Family<CustomMetricLabels, Counter> = "halley_plugin_counter";
        /// Plugins' own gauges.
        custom_gauges: Family<CustomMetricLabels, Gauge<f64, AtomicU64>> = "halley_plugin_gauge";
        ..
        /// The number of prepared plugins by name and version, and the names of their own metrics: what to
        /// remove with the last of them.
        known: Arc<Mutex<BTreeMap<String, MetricNames>>> = Arc::default();
    }
}

#[derive(Debug, Default)]
struct MetricNames {
    versions: BTreeMap<String, usize>,
    counters: Vec<String>,
    gauges: Vec<String>,
}

impl Metrics {
    fn forget(&self, version: &PluginVersion) {
        let mut all = self.known.lock();
        let Some(known) = all.get_mut(&*version.name) else { return };
        let left = known.versions.get_mut(&*version.hash).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            known.versions.remove(&*version.hash);
            self.forget_version(version);
        }
        if known.versions.is_empty()
            && let Some(gone) = all.remove(&*version.name)
        {
            self.forget_name(&version.name, gone);
        }
    }

    fn forget_version(&self, version: &PluginVersion) {
        let labels = VersionLabels::of(version);
        self.info.remove(&labels);
        self.over_budget.remove(&labels);
        forget_each(&self.calls, &labels);
        forget_each(&self.seconds, &labels);
        forget_each(&self.errors, &labels);
        forget_each(&self.decisions, &labels);
        forget_each(&self.limits, &labels);
        forget_each(&self.differences, &labels);
    }

    fn forget_name(&self, name: &str, known: MetricNames) {
        let own = |own: String| CustomMetricLabels { plugin: name.to_owned(), name: own };
        for counter in known.counters {
            self.custom_counters.remove(&own(counter));
        }
        for gauge in known.gauges {
            self.custom_gauges.remove(&own(gauge));
        }
    }
}

/// Removes the series of every value of the label.
fn forget_each<L: Label, M, C: MetricConstructor<M>>(
    family: &Family<(VersionLabels, L), M, C>,
    of: &VersionLabels,
) {
    for value in L::values() {
        family.remove(&(of.clone(), value));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    fn version(hash: &str) -> PluginVersion {
        PluginVersion { name: "p".into(), hash: hash.into() }
    }

    #[test]
    fn label_sets_are_removed_with_the_last_version() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (old, new) = (metrics.plugin(&version("aa")), metrics.plugin(&version("bb")));
        old.called(HookKind::Filter, 0.001);
        old.failed(FailureKind::Trap, None);
        assert!(old.custom_counter("seen", 2) && new.custom_counter("seen", 3) && new.custom_gauge("g", 1.5));
        drop(old);
        let between = text(&registry);
        assert!(between.contains("halley_plugin_counter_total{plugin=\"p\",name=\"seen\"} 5"), "{between}");
        assert!(!between.contains("version=\"aa\"") && between.contains("version=\"bb\""), "{between}");
        drop(new);
        assert!(!text(&registry).contains("plugin=\"p\""), "{}", text(&registry));
    }

    #[test]
    fn custom_metric_names_are_bounded() {
        let metrics = Metrics::register(&mut Registry::default());
        let plugin = metrics.plugin(&version("aa"));
        let taken = (0..1000).filter(|n| plugin.custom_counter(&format!("c{n}"), 1)).count();
        assert_eq!(taken, MAX_CUSTOM_METRICS);
        assert!(plugin.custom_counter("c0", 1), "a known name stays usable");
        assert!(!plugin.custom_gauge("", 1.0) && !plugin.custom_gauge("a\nb", 1.0));
        assert!(!plugin.custom_gauge(&"x".repeat(65), 1.0));
    }
}
