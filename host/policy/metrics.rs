//! Metrics of the active set and its replacement.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::telemetry::label_enum;

/// Metrics of the policies. Registered once per gateway.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    swaps: Family<SwapLabels, Counter>,
    quarantines: Family<PluginLabels, Counter>,
    generation: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwapLabels {
    result: SwapResult,
}

label_enum! {
    enum SwapResult {
        Swapped = "swapped",
        Refused = "refused",
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register("halley_policy_swaps", "Attempts to swap the policy set", m.swaps.clone());
        registry.register(
            "halley_plugin_quarantines",
            "Versions that failed too often",
            m.quarantines.clone(),
        );
        registry.register(
            "halley_policy_generation",
            "Generation of the active policy set",
            m.generation.clone(),
        );
        metrics
    }

    pub(super) fn swapped(&self, generation: u64) {
        self.swaps.get_or_create(&SwapLabels { result: SwapResult::Swapped }).inc();
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    pub(super) fn refused(&self) {
        self.swaps.get_or_create(&SwapLabels { result: SwapResult::Refused }).inc();
    }

    /// A version of this plugin failed too often.
    pub(super) fn quarantined(&self, plugin: &str) {
        self.quarantines.get_or_create(&PluginLabels { plugin: plugin.to_owned() }).inc();
    }
}
