//! The plugins' metrics. The label sets of a version are removed with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::decision::{DifferenceKind, FailureKind, PluginVersion};
use crate::telemetry::latency_histogram;
use crate::wasm::failure::PluginLimit;
use crate::wasm::metrics::labels::{
    CustomMetricLabels, DecisionLabels, DifferenceLabels, ErrorLabels, HookLabels, LimitLabels, VersionLabels,
};

mod labels;
mod plugin;

pub(crate) use labels::{FilterDecision, HookKind};
pub(crate) use plugin::PluginMetrics;

/// The maximum number of counters, and of gauges, that a plugin may define.
pub(crate) const MAX_CUSTOM_METRICS: usize = 64;
/// The longest name of such a counter or gauge, in bytes.
pub(crate) const MAX_CUSTOM_NAME_LENGTH: usize = 64;

type Histograms = Family<HookLabels, Histogram, fn() -> Histogram>;

/// Metrics of the plugins. Registered once per gateway.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    calls: Family<HookLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    limits: Family<LimitLabels, Counter>,
    differences: Family<DifferenceLabels, Counter>,
    seconds: Histograms,
    info: Family<VersionLabels, Gauge>,
    over_budget: Family<VersionLabels, Gauge>,
    custom_counters: Family<CustomMetricLabels, Counter>,
    custom_gauges: Family<CustomMetricLabels, Gauge<f64, AtomicU64>>,
    /// The number of prepared plugins by name and version, and the names of their own metrics: what
    /// to remove with the last of them.
    known: Arc<Mutex<BTreeMap<String, MetricNames>>>,
}

#[derive(Debug, Default)]
struct MetricNames {
    versions: BTreeMap<String, usize>,
    counters: Vec<String>,
    gauges: Vec<String>,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
            errors: Family::default(),
            decisions: Family::default(),
            limits: Family::default(),
            differences: Family::default(),
            seconds: Family::new_with_constructor(latency_histogram),
            info: Family::default(),
            over_budget: Family::default(),
            custom_counters: Family::default(),
            custom_gauges: Family::default(),
            known: Arc::default(),
        };
        let m = &metrics;
        registry.register("halley_plugin_calls", "Calls of plugins", m.calls.clone());
        registry.register("halley_plugin_errors", "Calls of plugins that failed", m.errors.clone());
        registry.register(
            "halley_plugin_decisions",
            "Messages by what a filter decided",
            m.decisions.clone(),
        );
        registry.register("halley_plugin_limits", "Limits that plugins ran into", m.limits.clone());
        registry.register(
            "halley_plugin_differences",
            "Messages that a candidate would have decided differently",
            m.differences.clone(),
        );
        registry.register(
            "halley_plugin_call_duration_seconds",
            "Time in calls of plugins",
            m.seconds.clone(),
        );
        registry.register("halley_plugin_info", "1 for every version that is loaded", m.info.clone());
        registry.register(
            "halley_plugin_over_time_budget",
            "Workers that do not call the plugin for now, because too many calls exceeded their deadline",
            m.over_budget.clone(),
        );
        registry.register("halley_plugin_counter", "Plugins' own counters", m.custom_counters.clone());
        registry.register("halley_plugin_gauge", "Plugins' own gauges", m.custom_gauges.clone());
        metrics
    }

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
        self.info.remove(&VersionLabels::of(version));
        self.over_budget.remove(&VersionLabels::of(version));
        for hook in HookKind::ALL {
            self.calls.remove(&HookLabels::of(version, hook));
            self.seconds.remove(&HookLabels::of(version, hook));
        }
        for kind in FailureKind::ALL {
            self.errors.remove(&ErrorLabels::of(version, kind));
        }
        for decision in FilterDecision::ALL {
            self.decisions.remove(&DecisionLabels::of(version, decision));
        }
        for limit in PluginLimit::ALL {
            self.limits.remove(&LimitLabels::of(version, limit));
        }
        for kind in DifferenceKind::ALL {
            self.differences.remove(&DifferenceLabels::of(version, kind));
        }
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

#[cfg(test)]
mod tests {
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
