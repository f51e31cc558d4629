//! Metrics of the active set and its replacement.

use crate::telemetry::{Counter, EncodeLabelSet, Family, Gauge, at_zero, label_enum, metrics};

metrics! {
    /// Metrics of the policies. Registered once per gateway.
    #[derive(Clone, Debug, Default)]
    pub struct Metrics {
        /// Attempts to swap the policy set.
        swaps: Family<SwapResult, Counter> = "halley_policy_swaps" in at_zero(Family::default());
        /// Versions that failed too often.
        quarantines: Family<PluginLabels, Counter> = "halley_plugin_quarantines";
        /// Generation of the active policy set.
        generation: Gauge = "halley_policy_generation";
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: String,
}

label_enum! {
    enum SwapResult as "result" {
        Swapped = "swapped",
        Refused = "refused",
    }
}

impl Metrics {
    /// A set with these plugins became active. Their series exist from then on: the first quarantine is an
    /// increase.
    pub(super) fn swapped<'a>(&self, generation: u64, plugins: impl Iterator<Item = &'a str>) {
        self.swaps.get_or_create(&SwapResult::Swapped).inc();
        for plugin in plugins {
            drop(self.quarantines.get_or_create(&PluginLabels { plugin: plugin.to_owned() }));
        }
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    pub(super) fn refused(&self) {
        self.swaps.get_or_create(&SwapResult::Refused).inc();
    }

    /// A version of this plugin failed too often.
    pub(super) fn quarantined(&self, plugin: &str) {
        self.quarantines.get_or_create(&PluginLabels { plugin: plugin.to_owned() }).inc();
    }
}
