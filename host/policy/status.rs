//! What `GET /v1/plugins` shows: the active set, its overrides, and refused updates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

use crate::artifact::{OverrideCause, PluginSource, RolloutResult, VersionOverride};
use crate::digest::Digest;
use crate::policy::entry::SetEntry;
use crate::policy::on_error::OnErrors;
use crate::policy::problem::PluginProblem;
use crate::policy::rollout::candidate::RolloutStatus;
use crate::policy::set::Generation;
use crate::settings::SettingsSchema;

/// What `GET /v1/plugins` shows.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// The active set.
    pub generation: Generation,
    /// Since when it is active.
    #[serde(with = "humantime_serde")]
    pub since: SystemTime,
    /// Its plugins, in configured order.
    pub plugins: Vec<PluginStatus>,
    /// Overrides of plugins' files: pushed, rolled back, or because the file's version is
    /// quarantined. An override without a version removes the plugin from the chain.
    pub overrides: BTreeMap<String, VersionOverride>,
    /// The last refused update, unless a good one has replaced it since.
    pub last_refusal: Option<RefusedUpdate>,
    /// Files of `[policies] directory` that cannot be loaded and were never active, with the reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<PluginProblem>,
    /// Since when another set is being prepared; compiling may take half a minute.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub preparing_since: Option<SystemTime>,
}

impl Status {
    /// What an operator should look at: failing versions and refused ones.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (plugin, instead) in &self.overrides {
            if instead.cause == OverrideCause::Quarantined {
                let then = instead.with.as_ref().map_or_else(
                    || "the chain continues without it".to_owned(),
                    |hash| format!("version {} decides instead", hash.short()),
                );
                warnings.push(format!("plugin `{plugin}` was {}; {then}", instead.why));
            }
        }
        for plugin in self.plugins.iter().filter(|plugin| plugin.state == PluginState::OverTimeBudget) {
            let (name, workers) = (&plugin.name, plugin.workers_over_budget);
            warnings.push(format!(
                "plugin `{name}` exceeded its deadline too often and is not called by {workers} workers for now; \
                 its `on_error` decides"
            ));
        }
        for plugin in self.plugins.iter().filter(|plugin| plugin.state == PluginState::Failing) {
            let name = &plugin.name;
            warnings.push(format!("plugin `{name}` fails too often; no known-good version to roll back to"));
        }
        if let Some(refusal) = &self.last_refusal {
            warnings.push(format!("new policies are refused: {}", refusal.errors.join("; ")));
        }
        warnings.extend(self.left_out.iter().map(|stray| format!("{stray}; the file is skipped")));
        warnings
    }
}

/// One active plugin.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PluginStatus {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub path: PluginSource,
    /// The SHA-256 of the active version's file. Versions are shown by their first 12 digits.
    pub hash: Digest,
    /// The interfaces that it exports.
    pub hooks: Vec<&'static str>,
    /// The version of the contract it was built for.
    pub wit_version: String,
    /// The file's size.
    pub size: ByteSize,
    /// The schema of its settings, which may be long and has a route of its own.
    #[serde(skip)]
    pub settings: Option<Arc<SettingsSchema>>,
    /// What happens when it fails.
    pub on_error: OnErrors,
    /// The maximum duration of one call.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// The most memory of an instance.
    pub memory: ByteSize,
    /// Its condition, including refused updates.
    pub state: PluginState,
    /// How many partitions' workers do not call it for now, because too many calls exceeded their
    /// deadline; its `on_error` decides there.
    #[serde(skip_serializing_if = "is_zero")]
    pub workers_over_budget: usize,
    /// The status of its candidate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// How the last rollout ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_rollout: Option<RolloutResult>,
}

/// The condition of an active plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginState {
    /// It matches the configuration and the files.
    Running,
    /// Its newer version or its newer settings were refused; see the last refusal.
    UpdateRefused,
    /// It has failed too often, and there was no known-good version to roll back to.
    Failing,
    /// It has failed too often and exceeded its time budget: some workers do not call it for now.
    OverTimeBudget,
}

/// To omit zeros.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A refused update.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RefusedUpdate {
    /// When it was refused first.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// All problems.
    pub errors: Vec<String>,
    /// The names of the plugins with problems.
    #[serde(skip)]
    pub(super) plugins: Vec<String>,
}

pub(super) fn plugin_status(entry: &SetEntry, refusal: &Option<RefusedUpdate>) -> PluginStatus {
    let plugin = &entry.plugin;
    let refused = refusal.as_ref().is_some_and(|refusal| refusal.plugins.contains(&plugin.config.name));
    let workers_over_budget = plugin.workers_over_budget();
    let state = match () {
        () if workers_over_budget > 0 => PluginState::OverTimeBudget,
        () if plugin.failures.is_tripped() => PluginState::Failing,
        () if refused => PluginState::UpdateRefused,
        () => PluginState::Running,
    };
    PluginStatus {
        name: plugin.config.name.clone(),
        path: plugin.source().clone(),
        hash: plugin.module.hash,
        hooks: plugin.module.hooks.names(),
        wit_version: plugin.module.wit_version.clone(),
        size: ByteSize::b(plugin.module.size as u64),
        settings: plugin.settings.clone(),
        on_error: plugin.config.on_error,
        deadline: plugin.config.deadline,
        memory: plugin.config.memory,
        state,
        workers_over_budget,
        rollout: entry.rollout.as_ref().map(|rollout| rollout.status(plugin)),
        last_rollout: None,
    }
}
