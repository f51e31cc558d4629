//! Changes of versions by an operator, and the quarantine of versions that fail too often. Every
//! change takes effect between two batches, like a swap by file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::artifact::{
    Artifact, Exclusion, OverrideCause, RolloutResult, StoredVersion, VersionError, VersionHistory,
};
use crate::policy::config::PluginConfig;
use crate::policy::desired::{DesiredPlugin, DesiredVersion, OperatorChange, VersionChoice};
use crate::policy::entry::SetEntry;
use crate::policy::plugin::Plugin;
use crate::policy::policies::Policies;
use crate::policy::problem::{PluginProblem, PolicyError};
use crate::policy::rollout::analysis::Analysis;
use crate::policy::rollout::candidate::Rollout;
use crate::policy::rollout::config::QuarantineAction;
use crate::policy::rollout::quarantine::FailureAlarm;
use crate::policy::rollout::shadow::Differences;
use crate::policy::set::Generation;

/// A version that an operator uploads.
#[derive(Clone, Debug)]
pub struct Upload {
    /// The plugin's name; it must be configured.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// Its detached ed25519 signature, where keys are configured: 64 bytes, or base64 of them.
    pub signature: Option<Vec<u8>>,
}

impl Policies {
    /// Activates these versions together, or none of them. Each one overrides the plugin's file until
    /// the file changes, or until it is rolled back or released.
    ///
    /// # Errors
    /// With all problems of all versions.
    pub async fn push(&self, uploads: Vec<Upload>) -> Result<Generation, PolicyError> {
        let pushed = |upload: Upload| {
            let signature = upload.signature.map(Arc::from);
            let pick = VersionChoice::Upload(Artifact { bytes: upload.bytes.into(), signature });
            (upload.name, OperatorChange::of(pick, Some(OverrideCause::Pushed), "pushed"))
        };
        self.apply_operator_changes(uploads.into_iter().map(pushed).collect()).await
    }

    /// Rolls a plugin back to an earlier version: the one with this hash prefix, else the last
    /// known-good version before the active one.
    ///
    /// # Errors
    /// If the version does not exist or no longer starts.
    pub async fn rollback(&self, plugin: &str, to: Option<&str>) -> Result<Generation, PolicyError> {
        let record = self.kept().record(plugin).unwrap_or_default();
        let target = match to {
            Some(prefix) => record.find(prefix),
            None => record.rollback_candidates().next().ok_or(VersionError::NoneGood),
        };
        let hash = target.map_err(|why| self.problem(plugin, why.to_string()))?.hash;
        let back = OperatorChange {
            exclusion: Some(Exclusion::RolledBack),
            ..OperatorChange::of(VersionChoice::Stored(hash), Some(OverrideCause::RolledBack), "rolled back")
        };
        self.apply_operator_changes(BTreeMap::from([(plugin.to_owned(), back)])).await
    }

    /// Ends an override of a plugin's file (a push, a rollback, a quarantine): the file decides
    /// again.
    ///
    /// # Errors
    /// If the file is refused.
    pub async fn release(&self, plugin: &str) -> Result<Generation, PolicyError> {
        let released = OperatorChange::of(VersionChoice::File, None, "released");
        self.apply_operator_changes(BTreeMap::from([(plugin.to_owned(), released)])).await
    }

    /// The stored versions of a plugin, the most recently activated first. `None` for a plugin that
    /// never was active.
    pub fn versions(&self, plugin: &str) -> Option<Vec<StoredVersion>> {
        self.kept().record(plugin).map(|record| record.versions)
    }

    /// Promotes the candidate: it decides from now on, until the plugin's file changes.
    ///
    /// # Errors
    /// When the plugin has no candidate, or is pinned to another version.
    pub async fn promote(&self, plugin: &str) -> Result<Generation, PolicyError> {
        let (_, rollout) = self.with_candidate(plugin)?;
        let promoted = OperatorChange {
            rollout_result: Some(rollout_result(&rollout, "promoted")),
            ..OperatorChange::of(
                VersionChoice::Upload(rollout.artifact.clone()),
                Some(OverrideCause::Pushed),
                "promoted",
            )
        };
        self.apply_operator_changes(BTreeMap::from([(plugin.to_owned(), promoted)])).await
    }

    /// Ends a rollout: the candidate is removed, and tried again only if its content changes.
    ///
    /// # Errors
    /// If the plugin has no candidate.
    pub async fn abandon(&self, plugin: &str) -> Result<Generation, PolicyError> {
        let (active, rollout) = self.with_candidate(plugin)?;
        self.end_rollout(&active, &rollout, "abandoned").await
    }

    /// What a shadow would have decided differently; `None` if the plugin has none.
    pub fn differences(&self, plugin: &str) -> Option<Differences> {
        let current = self.current();
        Some(current.entry(plugin)?.rollout.as_ref()?.shadow.as_ref()?.differences())
    }

    /// Continues with the active version, without the candidate.
    async fn end_rollout(
        &self,
        active: &Plugin,
        rollout: &Rollout,
        why: &str,
    ) -> Result<Generation, PolicyError> {
        let gone = OperatorChange {
            rollout_result: Some(rollout_result(rollout, why)),
            ..OperatorChange::keep_active(active.module.hash, why)
        };
        self.apply_operator_changes(BTreeMap::from([(active.config.name.clone(), gone)])).await
    }

    /// The active version of a plugin that has a candidate, and the candidate.
    fn with_candidate(&self, plugin: &str) -> Result<(Arc<Plugin>, Arc<Rollout>), PolicyError> {
        let current = self.current();
        current
            .entry(plugin)
            .and_then(|entry| Some((Arc::clone(&entry.plugin), Arc::clone(entry.rollout.as_ref()?))))
            .ok_or_else(|| self.problem(plugin, "has no candidate; give it a `rollout`".to_owned()))
    }

    /// Promotes candidates, or rolls them back, when their rollout is decided.
    async fn analyze(&self) {
        for entry in self.current().entries() {
            let SetEntry { plugin: active, rollout: Some(rollout) } = &**entry else { continue };
            let candidate = &rollout.candidate.version;
            let done = match rollout.analyze(active) {
                Analysis::Continue => continue,
                Analysis::Promote => {
                    tracing::info!(%candidate, "stayed within its budget; promoting it");
                    match self.promote(&active.config.name).await {
                        Err(refused) => {
                            tracing::warn!(%candidate, %refused, "cannot be promoted; rolling it back");
                            self.end_rollout(active, rollout, &format!("could not be promoted: {refused}"))
                                .await
                        }
                        promoted => promoted,
                    }
                }
                Analysis::RollBack(why) => {
                    tracing::warn!(%candidate, "exceeded its budget; rolling it back: {why}");
                    self.end_rollout(active, rollout, &why).await
                }
            };
            if let Err(refused) = done {
                tracing::warn!(%candidate, %refused, "the rollout could not be ended");
            }
        }
    }

    /// Applies changes to these plugins; the others stay as they are.
    async fn apply_operator_changes(
        &self,
        mut operator_change: BTreeMap<String, OperatorChange>,
    ) -> Result<Generation, PolicyError> {
        let replacing = self.replacing().await;
        let configured = self.wanted();
        let unknown = |name: &&String| !configured.iter().any(|config| config.name == **name);
        let problems: Vec<PluginProblem> =
            operator_change.keys().filter(unknown).map(|name| not_configured(name)).collect();
        if !problems.is_empty() {
            return Err(PolicyError { problems });
        }
        let desired = |config: PluginConfig| {
            let desired = operator_change
                .remove(&config.name)
                .map_or(DesiredVersion::KeepCurrent, DesiredVersion::OperatorChange);
            DesiredPlugin { config, desired }
        };
        self.switch(&replacing, configured.into_iter().map(desired).collect(), None).await
    }

    /// Quarantines a version that failed too often.
    async fn quarantine(&self, alarm: &FailureAlarm) {
        let current = self.current();
        let failing =
            |plugin: &&Arc<Plugin>| plugin.config.name == alarm.plugin && plugin.module.hash == alarm.hash;
        // It may have been replaced meanwhile.
        let mut plugins = current.entries().iter().map(|entry| &entry.plugin);
        let Some(plugin) = plugins.find(failing) else { return };
        let why = format!("quarantined: {}: it {}", alarm.limit, alarm.last);
        let record = self.kept().record(&alarm.plugin).unwrap_or_default();
        for pick in fallbacks(plugin.failures.then(), &record) {
            let out = OperatorChange {
                exclusion: Some(Exclusion::Quarantined(why.clone())),
                ..OperatorChange::of(pick.clone(), Some(OverrideCause::Quarantined), &why)
            };
            match self.apply_operator_changes(BTreeMap::from([(alarm.plugin.clone(), out)])).await {
                Ok(generation) => {
                    let plugin = &plugin.version;
                    self.quarantined(&alarm.plugin);
                    tracing::error!(%plugin, %generation, then = describe(&pick), "{why}");
                    return;
                }
                Err(refused) => tracing::warn!(%refused, "an earlier version does not start any more"),
            }
        }
        let on_error = serde_json::to_string(&plugin.config.on_error).unwrap_or_default();
        tracing::error!(
            plugin = %plugin.version, on_error,
            "{}: it {}; no known-good version to roll back to, so it stays active and its `on_error` decides",
            alarm.limit, alarm.last
        );
        // The version stays active, but must not block the gateway.
        plugin.enforce_time_budget();
    }

    fn problem(&self, plugin: &str, message: String) -> PolicyError {
        let wanted = self.wanted();
        let config = wanted.iter().find(|config| config.name == plugin);
        let problem =
            config.map_or_else(|| not_configured(plugin), |config| PluginProblem::of(config, message));
        PolicyError { problems: vec![problem] }
    }
}

/// How often canaries are analyzed.
const ANALYSIS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until shutdown: quarantines versions that fail too often, and ends rollouts.
pub async fn supervise(policies: Arc<Policies>, shutdown: CancellationToken) {
    let work = async {
        loop {
            match tokio::time::timeout(ANALYSIS_INTERVAL, policies.next_alarm()).await {
                Ok(alarm) => policies.quarantine(&alarm).await,
                Err(_) => policies.analyze().await,
            }
        }
    };
    // Cancelling at any point is harmless: sets change in one step.
    shutdown.run_until_cancelled(work).await;
}

fn rollout_result(rollout: &Rollout, why: &str) -> RolloutResult {
    RolloutResult { hash: rollout.candidate.module.hash, why: why.to_owned(), at: SystemTime::now() }
}

/// The replacements for a failing version, in order of preference. There are none if the failing
/// version itself replaced a quarantined one: if two versions fail alike, the records are the cause,
/// and the sender of those must not be able to roll the policies back to their oldest version.
fn fallbacks(then: QuarantineAction, record: &VersionHistory) -> Vec<VersionChoice> {
    let fails_alike = record
        .version_override
        .as_ref()
        .is_some_and(|version_override| version_override.cause == OverrideCause::Quarantined);
    match then {
        QuarantineAction::Without => vec![VersionChoice::Without],
        QuarantineAction::LastGood if fails_alike => Vec::new(),
        QuarantineAction::LastGood => {
            record.rollback_candidates().map(|version| VersionChoice::Stored(version.hash)).collect()
        }
        QuarantineAction::Never => Vec::new(),
    }
}

fn describe(pick: &VersionChoice) -> String {
    match pick {
        VersionChoice::Stored(hash) => format!("rolled back to {}", hash.short()),
        _ => "continuing without it".to_owned(),
    }
}

fn not_configured(plugin: &str) -> PluginProblem {
    PluginProblem::general(format!(
        "plugin `{plugin}` is not configured; add a [[plugin]] of this name, then push its versions"
    ))
}
