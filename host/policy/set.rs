//! A policy set: the plugins that decide together.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::decision::PluginVersion;
use crate::policy::chain::Chain;
use crate::policy::plugin::Plugin;

/// Which policy set: counts the swaps of a process, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Generation(pub u64);

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Plugins in configured order. Immutable; freed with the last of its chains.
pub struct PolicySet {
    generation: Generation,
    plugins: Vec<Arc<Plugin>>,
    versions: Vec<PluginVersion>,
    /// How many chains there are, of this set and others.
    chains: Arc<AtomicUsize>,
}

impl PolicySet {
    pub(super) fn new(generation: Generation, plugins: Vec<Arc<Plugin>>, chains: &Arc<AtomicUsize>) -> Self {
        let versions = plugins.iter().map(|plugin| plugin.version.clone()).collect();
        Self { generation, plugins, versions, chains: Arc::clone(chains) }
    }

    /// Which set this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The plugins' names and hashes, in configured order.
    pub fn versions(&self) -> &[PluginVersion] {
        &self.versions
    }

    /// Whether any plugin filters.
    pub fn has_filter(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.module.hooks.has_filter())
    }

    /// Whether any plugin regroups rooms.
    pub fn has_grouping(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.module.hooks.has_grouping())
    }

    /// Whether any plugin decides about the absent.
    pub fn has_offline(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.module.hooks.offline.is_some())
    }

    /// A chain of this set, for one worker. Instances are made when they are needed.
    pub fn chain(self: &Arc<Self>) -> Chain {
        Chain::new(Arc::clone(self), Arc::clone(&self.chains))
    }

    pub(super) fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }
}

impl std::fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicySet")
            .field("generation", &self.generation)
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}
