//! An entry of a set: a prepared plugin (compiled, checked, started once and called once), and its
//! candidate if it has one.

use std::sync::Arc;

use crate::policy::config::PluginConfig;
use crate::policy::link::Link;
use crate::policy::plugin::Plugin;
use crate::policy::rollout::config::{Mode, QuarantineConfig, Then};
use crate::policy::rollout::quarantine::Alarms;
use crate::policy::rollout::shadow::Shadow;
use crate::policy::rollout::trial::{Candidate, Trial};
use crate::wasm::Runtime;
use crate::{digest, wasm};

/// A prepared plugin. Sets share the plugins that did not change between them.
pub(super) struct Entry {
    pub(super) plugin: Arc<Plugin>,
    /// A candidate next to it.
    pub(super) trial: Option<Arc<Trial>>,
}

/// The dependencies of preparing an entry.
#[derive(Clone)]
pub(super) struct Workshop {
    pub(super) runtime: Arc<Runtime>,
    /// Versions that failed too often.
    pub(super) alarms: Arc<Alarms>,
}

impl Entry {
    /// Prepares a plugin from the bytes of its file. Reuses compiled modules, and the whole plugin if
    /// nothing changed.
    ///
    /// # Errors
    /// The problem: the second half of a sentence that begins with the plugin.
    pub(super) fn prepare(
        workshop: &Workshop,
        config: &PluginConfig,
        bytes: &[u8],
        candidate: Option<&Candidate>,
        in_force: &[Arc<Self>],
    ) -> Result<Arc<Self>, String> {
        let hash = digest::hash(bytes);
        let same_bytes = || in_force.iter().filter(|entry| entry.plugin.module.hash == hash);
        let unchanged = same_bytes().find(|entry| entry.plugin.config == *config && entry.tries(candidate));
        if let Some(unchanged) = unchanged {
            return Ok(Arc::clone(unchanged));
        }
        let Workshop { runtime, alarms } = workshop;
        let module = match same_bytes().next() {
            Some(known) => Arc::clone(&known.plugin.module),
            None => runtime.compile(&config.name, bytes)?,
        };
        let trial = candidate.map(|candidate| trial(workshop, config, candidate)).transpose()?;
        let plugin = Plugin::new(runtime, alarms, config, module);
        plugin.try_out().map_err(|failure| failure.message)?;
        Ok(Arc::new(Self { plugin: Arc::new(plugin), trial: trial.map(Arc::new) }))
    }

    /// The entry's part of a chain.
    pub(super) fn link(&self) -> Link {
        Link::new(Arc::clone(&self.plugin), self.trial.clone())
    }

    /// Whether this is its current candidate.
    fn tries(&self, candidate: Option<&Candidate>) -> bool {
        match (&self.trial, candidate) {
            (None, None) => true,
            (Some(trial), Some(candidate)) => {
                trial.config == candidate.config && trial.candidate.module.hash == candidate.hash
            }
            _ => false,
        }
    }
}

/// Prepares a candidate with the settings of the plugin that it may replace. A candidate is never
/// quarantined: its rollout ends instead.
fn trial(workshop: &Workshop, config: &PluginConfig, candidate: &Candidate) -> Result<Trial, String> {
    let quarantine = QuarantineConfig { then: Then::Never, ..config.quarantine.clone() };
    let trial = &candidate.config;
    let own = PluginConfig { path: trial.path.clone(), trial: None, quarantine, ..config.clone() };
    let wrong = |why: String| format!("has a candidate ({}) that {why}", trial.path.display());
    let Workshop { runtime, alarms } = workshop;
    let module = runtime.compile(&config.name, &candidate.arrived.bytes).map_err(wrong)?;
    let plugin = Plugin::new(runtime, alarms, &own, module);
    let looks_on = trial.mode == Mode::Shadow;
    let plugin = Arc::new(if looks_on { plugin.shadow() } else { plugin });
    plugin.try_out().map_err(|failure: wasm::failure::Failure| wrong(failure.message))?;
    let shadow = looks_on.then(|| {
        let mut link = Link::alone(Arc::clone(&plugin));
        Shadow::start(&plugin, move |topic, partition, batch| link.look_on(topic, partition, batch))
    });
    Ok(Trial::begin(candidate, plugin, shadow.transpose()?))
}
