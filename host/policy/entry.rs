//! An entry of a set: a prepared plugin (compiled, checked, started once and called once), and its
//! candidate if it has one.

use std::sync::Arc;

use crate::artifact::PluginSource;
use crate::digest::Digest;
use crate::policy::chain_entry::ChainEntry;
use crate::policy::config::PluginConfig;
use crate::policy::plugin::{Plugin, SettingsProblem};
use crate::policy::rollout::candidate::{Candidate, Rollout};
use crate::policy::rollout::config::{QuarantineAction, QuarantineConfig, RolloutMode};
use crate::policy::rollout::quarantine::FailureAlarms;
use crate::policy::rollout::shadow::Shadow;
use crate::wasm::Runtime;
use crate::wasm::compile::CompileError;
use crate::wasm::failure::PluginFailure;
use crate::wasm::metrics::HookKind;

/// Why a plugin does not start: the second half of a sentence that begins with the plugin.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Its settings are wrong, or not known.
    #[error(transparent)]
    Settings(#[from] SettingsProblem),
    /// Its first instance failed.
    #[error(transparent)]
    Start(#[from] PluginFailure),
    /// As this candidate.
    #[error("has a candidate ({}) that {}", .0.0, .0.1)]
    Candidate(Box<(PluginSource, Self)>),
    #[error("cannot start a thread for its candidate: {0}")]
    Thread(std::io::Error),
}

/// A prepared plugin. Sets share the plugins that did not change between them.
pub(super) struct SetEntry {
    pub(super) plugin: Arc<Plugin>,
    /// A candidate next to it.
    pub(super) rollout: Option<Arc<Rollout>>,
}

/// The dependencies of preparing an entry.
#[derive(Clone)]
pub(super) struct EntryContext {
    pub(super) runtime: Arc<Runtime>,
    /// Versions that failed too often.
    pub(super) alarms: Arc<FailureAlarms>,
}

impl SetEntry {
    /// Prepares a plugin from the bytes of its file. Reuses compiled modules, and the whole plugin if
    /// nothing changed.
    ///
    /// # Errors
    /// The problem: the second half of a sentence that begins with the plugin.
    pub(super) fn prepare(
        entry_context: &EntryContext,
        config: &PluginConfig,
        bytes: &[u8],
        candidate: Option<&Candidate>,
        active: &[Arc<Self>],
    ) -> Result<Arc<Self>, EntryError> {
        let hash = Digest::of(bytes);
        let same_bytes = || active.iter().filter(|entry| entry.plugin.module.hash == hash);
        let unchanged =
            same_bytes().find(|entry| entry.plugin.config == *config && entry.has_candidate(candidate));
        if let Some(unchanged) = unchanged {
            return Ok(Arc::clone(unchanged));
        }
        let EntryContext { runtime, alarms } = entry_context;
        let module = match same_bytes().next() {
            Some(known) => Arc::clone(&known.plugin.module),
            None => runtime.compile(&config.name, bytes)?,
        };
        let rollout = candidate.map(|candidate| rollout(entry_context, config, candidate)).transpose()?;
        let plugin = Plugin::new(runtime, alarms, config, module).with_checked_settings()?;
        plugin.smoke_test()?;
        Ok(Arc::new(Self { plugin: Arc::new(plugin), rollout: rollout.map(Arc::new) }))
    }

    /// Whether the plugin or its candidate exports a hook.
    pub(super) fn has(&self, hook: HookKind) -> bool {
        let candidate = self.rollout.as_ref().map(|rollout| &rollout.candidate);
        std::iter::once(&self.plugin).chain(candidate).any(|plugin| plugin.module.hooks.has(hook))
    }

    /// The entry's part of a chain.
    pub(super) fn chain_entry(&self) -> ChainEntry {
        ChainEntry::new(Arc::clone(&self.plugin), self.rollout.clone())
    }

    /// Whether this is its current candidate.
    fn has_candidate(&self, candidate: Option<&Candidate>) -> bool {
        match (&self.rollout, candidate) {
            (None, None) => true,
            (Some(rollout), Some(candidate)) => {
                rollout.config == candidate.config && rollout.candidate.module.hash == candidate.hash
            }
            _ => false,
        }
    }
}

/// Prepares a candidate with the settings of the plugin that it may replace. A candidate is never
/// quarantined: its rollout ends instead.
fn rollout(
    entry_context: &EntryContext,
    config: &PluginConfig,
    candidate: &Candidate,
) -> Result<Rollout, EntryError> {
    let quarantine = QuarantineConfig { action: QuarantineAction::Never, ..config.quarantine.clone() };
    let rollout = &candidate.config;
    let own = PluginConfig { path: rollout.path.clone(), rollout: None, quarantine, ..config.clone() };
    let wrong = |why| EntryError::Candidate(Box::new((rollout.path.clone(), why)));
    let EntryContext { runtime, alarms } = entry_context;
    let module = runtime.compile(&config.name, &candidate.artifact.bytes).map_err(|why| wrong(why.into()))?;
    let plugin = Plugin::new(runtime, alarms, &own, module).with_checked_settings();
    let plugin = plugin.map_err(|why| wrong(why.into()))?;
    let is_shadow = rollout.mode == RolloutMode::Shadow;
    let plugin = Arc::new(if is_shadow { plugin.shadow() } else { plugin });
    plugin.smoke_test().map_err(|failure| wrong(failure.into()))?;
    let shadow = is_shadow.then(|| {
        let mut chain_entry = ChainEntry::without_canary(Arc::clone(&plugin));
        Shadow::start(&plugin, move |batch| chain_entry.mirror(batch))
    });
    Ok(Rollout::begin(candidate, plugin, shadow.transpose().map_err(EntryError::Thread)?))
}
