//! A policy set: the plugins that decide together.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::decision::PluginVersion;
use crate::policy::entry::SetEntry;
use crate::wasm::metrics::HookKind;

/// The generation of a policy set: counts the swaps of a process, from 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, derive_more::Display,
)]
pub struct Generation(pub u64);

/// Plugins in configured order. Immutable; freed with the last of its chains.
#[derive(derive_more::Debug)]
#[debug("PolicySet {generation}: {versions:?}")]
pub struct PolicySet {
    generation: Generation,
    entries: Vec<Arc<SetEntry>>,
    versions: Vec<PluginVersion>,
    /// The number of live chains, of this set and others.
    chains: Arc<AtomicUsize>,
}

impl PolicySet {
    pub(super) fn new(
        generation: Generation,
        entries: Vec<Arc<SetEntry>>,
        chains: &Arc<AtomicUsize>,
    ) -> Self {
        let versions = entries.iter().map(|entry| entry.plugin.version.clone()).collect();
        Self { generation, entries, versions, chains: Arc::clone(chains) }
    }

    /// Which set this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The plugins' names and hashes, in configured order.
    pub fn versions(&self) -> &[PluginVersion] {
        &self.versions
    }

    /// Whether any plugin exports a hook. A candidate counts as well: it may export what the active
    /// version does not.
    pub(crate) fn has(&self, hook: HookKind) -> bool {
        self.entries.iter().any(|entry| entry.has(hook))
    }

    /// Whether any plugin sees the messages of a batch.
    pub fn sees_batches(&self) -> bool {
        self.has(HookKind::Filter) || self.has(HookKind::Retention)
    }

    pub(super) fn entries(&self) -> &[Arc<SetEntry>] {
        &self.entries
    }

    /// The plugin of this name, with its candidate.
    pub(super) fn entry(&self, plugin: &str) -> Option<&Arc<SetEntry>> {
        self.entries.iter().find(|entry| entry.plugin.config.name == plugin)
    }

    pub(super) fn chains(&self) -> &Arc<AtomicUsize> {
        &self.chains
    }
}
