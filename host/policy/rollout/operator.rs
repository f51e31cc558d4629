//! Changes of versions by an operator, and the quarantine of versions that fail too often. Every
//! change takes effect between two batches, like a swap by file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::artifact::{Against, Arrived, Cause, KeptVersion, Record, Tried};
use crate::policy::config::PluginConfig;
use crate::policy::entry::Entry;
use crate::policy::plugin::Plugin;
use crate::policy::policies::Policies;
use crate::policy::prepare::{ByHand, Pick, Problem, Refused, Want, Wanted};
use crate::policy::rollout::config::Then;
use crate::policy::rollout::judge::Judgement;
use crate::policy::rollout::quarantine::Alarm;
use crate::policy::rollout::shadow::Differences;
use crate::policy::rollout::trial::Trial;
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
    pub async fn push(&self, uploads: Vec<Upload>) -> Result<Generation, Refused> {
        let pushed = |upload: Upload| {
            let signature = upload.signature.map(Arc::from);
            let pick = Pick::Upload(Arrived { bytes: upload.bytes.into(), signature });
            (upload.name, by_hand(pick, Cause::Pushed, "pushed"))
        };
        self.steer(uploads.into_iter().map(pushed).collect()).await
    }

    /// Rolls a plugin back to an earlier version: the one with this hash prefix, else the last
    /// known-good version before the active one.
    ///
    /// # Errors
    /// When there is no such version, or it does not start any more.
    pub async fn rollback(&self, plugin: &str, to: Option<&str>) -> Result<Generation, Refused> {
        let record = self.kept().record(plugin).unwrap_or_default();
        let target = match to {
            Some(prefix) => record.find(prefix),
            None => {
                record.good().next().ok_or_else(|| "has no known-good version to roll back to".to_owned())
            }
        };
        let hash = target.map_err(|why| self.problem(plugin, why))?.hash.clone();
        let back = ByHand {
            against: Some(Against::RolledBack),
            ..by_hand(Pick::Kept(hash), Cause::RolledBack, "rolled back")
        };
        self.steer(BTreeMap::from([(plugin.to_owned(), back)])).await
    }

    /// Ends an override of a plugin's file (a push, a rollback, a quarantine): the file decides
    /// again.
    ///
    /// # Errors
    /// When the file is refused.
    pub async fn release(&self, plugin: &str) -> Result<Generation, Refused> {
        let released =
            ByHand { pick: Pick::File, cause: None, why: "released".into(), against: None, tried: None };
        self.steer(BTreeMap::from([(plugin.to_owned(), released)])).await
    }

    /// The stored versions of a plugin, the most recently activated first. `None` for a plugin that
    /// never was active.
    pub fn versions(&self, plugin: &str) -> Option<Vec<KeptVersion>> {
        self.kept().record(plugin).map(|record| record.versions)
    }

    /// Promotes the candidate: it decides from now on, until the plugin's file changes.
    ///
    /// # Errors
    /// When the plugin has no candidate, or is pinned to another version.
    pub async fn promote(&self, plugin: &str) -> Result<Generation, Refused> {
        let (_, trial) = self.on_trial(plugin)?;
        let promoted = ByHand {
            tried: Some(tried(&trial, "promoted")),
            ..by_hand(Pick::Upload(trial.arrived.clone()), Cause::Pushed, "promoted")
        };
        self.steer(BTreeMap::from([(plugin.to_owned(), promoted)])).await
    }

    /// Ends a rollout: the candidate is removed, and tried again only if its content changes.
    ///
    /// # Errors
    /// When the plugin has no candidate.
    pub async fn abandon(&self, plugin: &str) -> Result<Generation, Refused> {
        let (active, trial) = self.on_trial(plugin)?;
        self.give_up(&active, &trial, "abandoned").await
    }

    /// What a shadow would have decided differently; `None` if the plugin has none.
    pub fn differences(&self, plugin: &str) -> Option<Differences> {
        let current = self.current();
        let entry = current.entries().iter().find(|one| one.plugin.config.name == plugin)?;
        Some(entry.trial.as_ref()?.shadow.as_ref()?.differences())
    }

    /// Continues with the active version, without the candidate.
    async fn give_up(&self, active: &Plugin, trial: &Trial, why: &str) -> Result<Generation, Refused> {
        let gone = ByHand { tried: Some(tried(trial, why)), ..ByHand::going_on(&active.module.hash, why) };
        self.steer(BTreeMap::from([(active.config.name.clone(), gone)])).await
    }

    /// The active version of a plugin that has a candidate, and the candidate.
    fn on_trial(&self, plugin: &str) -> Result<(Arc<Plugin>, Arc<Trial>), Refused> {
        let current = self.current();
        let named = current.entries().iter().find(|one| one.plugin.config.name == plugin);
        named
            .and_then(|entry| Some((Arc::clone(&entry.plugin), Arc::clone(entry.trial.as_ref()?))))
            .ok_or_else(|| self.problem(plugin, "has no candidate; give it a `trial`".to_owned()))
    }

    /// Promotes candidates, or rolls them back, when their rollout is decided.
    async fn judge(&self) {
        for entry in self.current().entries() {
            let Entry { plugin: active, trial: Some(trial) } = &**entry else { continue };
            let candidate = &trial.candidate.version;
            let done = match trial.judge(active) {
                Judgement::GoOn => continue,
                Judgement::Promote => {
                    tracing::info!(%candidate, "stayed within its budget; promoting it");
                    match self.promote(&active.config.name).await {
                        Err(refused) => {
                            tracing::warn!(%candidate, %refused, "cannot be promoted; rolling it back");
                            self.give_up(active, trial, &format!("could not come in force: {refused}")).await
                        }
                        promoted => promoted,
                    }
                }
                Judgement::Abandon(why) => {
                    tracing::warn!(%candidate, "exceeded its budget; rolling it back: {why}");
                    self.give_up(active, trial, &why).await
                }
            };
            if let Err(refused) = done {
                tracing::warn!(%candidate, %refused, "its trial could not be ended");
            }
        }
    }

    /// Applies changes to these plugins; the others stay as they are.
    async fn steer(&self, mut by_hand: BTreeMap<String, ByHand>) -> Result<Generation, Refused> {
        let replacing = self.replacing().await;
        let configured = self.wanted();
        let unknown = |name: &&String| !configured.iter().any(|config| config.name == **name);
        let problems: Vec<Problem> =
            by_hand.keys().filter(unknown).map(|name| not_configured(name)).collect();
        if !problems.is_empty() {
            return Err(Refused { problems });
        }
        let want = |config: PluginConfig| {
            let want = by_hand.remove(&config.name).map_or(Want::AsItIs, Want::ByHand);
            Wanted { config, want }
        };
        self.switch(&replacing, configured.into_iter().map(want).collect(), None).await
    }

    /// Quarantines a version that failed too often.
    async fn quarantine(&self, alarm: &Alarm) {
        let current = self.current();
        let failing =
            |plugin: &&Arc<Plugin>| plugin.config.name == alarm.plugin && plugin.module.hash == alarm.hash;
        // It may have been replaced meanwhile.
        let mut plugins = current.entries().iter().map(|entry| &entry.plugin);
        let Some(plugin) = plugins.find(failing) else { return };
        let why = format!("quarantined: {}: it {}", alarm.limit, alarm.last);
        let record = self.kept().record(&alarm.plugin).unwrap_or_default();
        for pick in ways_out(plugin.failures.then(), &record) {
            let out = ByHand {
                against: Some(Against::Quarantined(why.clone())),
                ..by_hand(pick.clone(), Cause::Quarantined, &why)
            };
            match self.steer(BTreeMap::from([(alarm.plugin.clone(), out)])).await {
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
        // It stays active, but must not block the gateway.
        plugin.enforce_time_budget();
    }

    fn problem(&self, plugin: &str, message: String) -> Refused {
        let wanted = self.wanted();
        let config = wanted.iter().find(|config| config.name == plugin);
        let problem = config.map_or_else(|| not_configured(plugin), |config| Problem::of(config, message));
        Refused { problems: vec![problem] }
    }
}

/// How often canaries are analyzed.
const JUDGE_EVERY: Duration = Duration::from_secs(1);

/// Runs until shutdown: quarantines versions that fail too often, and ends rollouts.
pub async fn supervise(policies: Arc<Policies>, shutdown: CancellationToken) {
    let work = async {
        loop {
            match tokio::time::timeout(JUDGE_EVERY, policies.next_alarm()).await {
                Ok(alarm) => policies.quarantine(&alarm).await,
                Err(_) => policies.judge().await,
            }
        }
    };
    // Cancelling at any point is harmless: sets change in one step.
    shutdown.run_until_cancelled(work).await;
}

fn tried(trial: &Trial, why: &str) -> Tried {
    Tried { hash: trial.candidate.module.hash.clone(), why: why.to_owned(), at: SystemTime::now() }
}

fn by_hand(pick: Pick, cause: Cause, why: &str) -> ByHand {
    ByHand { pick, cause: Some(cause), why: why.to_owned(), against: None, tried: None }
}

/// The replacements for a failing version, in order of preference. There are none if the failing
/// version itself replaced a quarantined one: if two versions fail alike, the records are the cause,
/// and the sender of those must not be able to roll the policies back to their oldest version.
fn ways_out(then: Then, record: &Record) -> Vec<Pick> {
    let fails_alike = record.instead.as_ref().is_some_and(|instead| instead.cause == Cause::Quarantined);
    match then {
        Then::Without => vec![Pick::Without],
        Then::LastGood if fails_alike => Vec::new(),
        Then::LastGood => record.good().map(|version| Pick::Kept(version.hash.clone())).collect(),
        Then::Never => Vec::new(),
    }
}

fn describe(pick: &Pick) -> String {
    match pick {
        Pick::Kept(hash) => format!("rolled back to {}", &hash[..12]),
        _ => "continuing without it".to_owned(),
    }
}

fn not_configured(plugin: &str) -> Problem {
    Problem::general(format!(
        "plugin `{plugin}` is not configured; add a [[plugin]] of this name, then push its versions"
    ))
}
