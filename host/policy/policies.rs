//! The active policy set, and its replacement: prepared in the background, swapped as a whole in one
//! step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::artifact::{PluginLoader, VersionOverride, Versions};
use crate::blocking::{run_blocking, run_in_place};
use crate::policy::config::{PluginConfig, PoliciesConfig};
use crate::policy::desired::{DesiredPlugin, DesiredVersion};
use crate::policy::entry::{EntryContext, SetEntry};
use crate::policy::metrics::Metrics;
use crate::policy::prepare::{CommittedSet, PrepareContext, commit, prepare, prepare_first};
use crate::policy::problem::{PluginProblem, PolicyError};
use crate::policy::rollout::quarantine::FailureAlarm;
use crate::policy::set::{Generation, PolicySet};
use crate::policy::status::{PluginStatus, RefusedUpdate, Status, plugin_status};
use crate::wasm::{self, Runtime};

/// The dependencies of policies.
#[derive(Debug)]
pub struct PolicyDependencies {
    /// Runs the plugins.
    pub runtime: Arc<Runtime>,
    /// Loads plugins, and knows the trusted keys.
    pub loader: PluginLoader,
    /// Stores their versions.
    pub versions: Versions,
    /// Metrics of the set.
    pub metrics: Metrics,
}

impl PolicyDependencies {
    /// Trusts every file, keeps versions in memory, and exposes no metrics of the set.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        let (loader, versions) = (PluginLoader::default(), Versions::in_memory());
        Self { runtime, loader, versions, metrics: Metrics::default() }
    }

    /// For a gateway. Registers the metrics.
    ///
    /// # Errors
    /// When the directory of versions cannot be used, or this machine cannot run WebAssembly.
    pub fn of_gateway(config: &PoliciesConfig, registry: &mut Registry) -> anyhow::Result<Self> {
        // The versions first: their lock proves that no other gateway uses the directory.
        let versions = config.versions()?;
        let runtime = Runtime::with(registry, config.runtime())?;
        Ok(Self { runtime, loader: config.loader(), versions, metrics: Metrics::register(registry) })
    }

    /// For a command next to a gateway. It does not touch the gateway's state directory.
    ///
    /// # Errors
    /// When this machine cannot run WebAssembly.
    pub fn of_command(config: &PoliciesConfig) -> anyhow::Result<Self> {
        let runtime = Runtime::with(&mut Registry::default(), config.runtime_of_a_command())?;
        Ok(Self { loader: config.loader(), ..Self::new(runtime) })
    }
}

/// The active set. Workers take [`Policies::current`] for each batch: one set decides all of it.
#[derive(derive_more::Debug)]
#[debug("Policies: {:?}", self.current())]
pub struct Policies {
    prepare_context: Arc<PrepareContext>,
    metrics: Metrics,
    /// The number of live chains, each with its own instances.
    pub(super) chains: Arc<AtomicUsize>,
    current: ArcSwap<PolicySet>,
    /// One replacement at a time.
    replacing: tokio::sync::Mutex<()>,
    generation: watch::Sender<Generation>,
    /// How many changes operators and quarantines have made.
    operator_changes: AtomicU64,
    state: Mutex<PolicyState>,
}

/// What the status reports in addition to the set.
#[derive(Debug)]
struct PolicyState {
    since: SystemTime,
    /// The configuration of the active set.
    wanted: Vec<PluginConfig>,
    refusal: Option<RefusedUpdate>,
    /// Files of the plugin directory that cannot be loaded.
    left_out: Vec<PluginProblem>,
    /// Since when a set is being prepared.
    preparing: Option<SystemTime>,
}

/// Holds the lock on replacements.
pub(super) struct ReplaceGuard<'a> {
    _one_at_a_time: tokio::sync::MutexGuard<'a, ()>,
}

impl Policies {
    /// Prepares the first set and activates it as generation 1. Versions are kept in memory.
    ///
    /// # Errors
    /// With all problems of all plugins.
    pub fn start(runtime: Arc<Runtime>, plugins: &[PluginConfig]) -> Result<Arc<Self>, PolicyError> {
        Self::start_with(PolicyDependencies::new(runtime), plugins)
    }

    /// The same with a gateway's dependencies. Restores the versions that were active if an override
    /// replaced a plugin's file, or if the desired set is refused.
    ///
    /// # Errors
    /// With all problems of all plugins, when there is nothing to restore.
    pub fn start_with(setup: PolicyDependencies, plugins: &[PluginConfig]) -> Result<Arc<Self>, PolicyError> {
        let PolicyDependencies { runtime, loader, versions, metrics } = setup;
        let prepare_context = PrepareContext {
            entry_context: EntryContext { runtime, alarms: Arc::default() },
            loader,
            versions,
        };
        let (CommittedSet { entries, left_out }, refused) =
            run_in_place(|| prepare_first(&prepare_context, plugins))?;
        prepare_context.entry_context.runtime.compile_cache.forget_compiled();
        let generation = Generation(1);
        log_left_out(&[], &left_out);
        let state = PolicyState {
            since: SystemTime::now(),
            wanted: plugins.to_vec(),
            refusal: None,
            left_out,
            preparing: None,
        };
        let chains = Arc::default();
        let policies = Self {
            prepare_context: Arc::new(prepare_context),
            current: ArcSwap::from_pointee(PolicySet::new(generation, entries, &chains)),
            chains,
            replacing: tokio::sync::Mutex::new(()),
            generation: watch::Sender::new(generation),
            operator_changes: AtomicU64::new(0),
            state: Mutex::new(state),
            metrics,
        };
        policies.note_swap();
        tracing::info!(%generation, plugins = %changes(&[], policies.current().entries()), "policies active");
        if let Some(refused) = refused {
            policies.record_refusal(&refused);
        }
        Ok(Arc::new(policies))
    }

    /// The active set. Cheap.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// Replaces the whole set, or nothing. Compiles on threads that carry no messages. A set that
    /// equals the active one changes nothing and creates no generation.
    ///
    /// # Errors
    /// With all problems of all plugins; the active set stays.
    pub async fn replace(&self, plugins: Vec<PluginConfig>) -> Result<Generation, PolicyError> {
        let replaced = self.try_replace(plugins).await;
        replaced.inspect_err(|refused| self.record_refusal(refused))
    }

    /// The same, but a refusal is not recorded for the status.
    ///
    /// # Errors
    /// As [`Policies::replace`].
    pub(super) async fn try_replace(&self, plugins: Vec<PluginConfig>) -> Result<Generation, PolicyError> {
        let replacing = self.replacing().await;
        let wanted = plugins
            .iter()
            .map(|config| DesiredPlugin { config: config.clone(), desired: DesiredVersion::File })
            .collect();
        self.switch(&replacing, wanted, Some(plugins)).await
    }

    /// Waits for other replacements to finish.
    pub(super) async fn replacing(&self) -> ReplaceGuard<'_> {
        ReplaceGuard { _one_at_a_time: self.replacing.lock().await }
    }

    /// Prepares the desired set, stores the resulting versions, and activates it. If the set comes
    /// from the whole configuration, that configuration becomes the desired one and clears an earlier
    /// refusal.
    pub(super) async fn switch(
        &self,
        _one_at_a_time: &ReplaceGuard<'_>,
        wanted: Vec<DesiredPlugin>,
        configured: Option<Vec<PluginConfig>>,
    ) -> Result<Generation, PolicyError> {
        let before = self.current();
        self.state.lock().preparing = Some(SystemTime::now());
        let ready = self.prepare_blocking(wanted, Arc::clone(&before)).await;
        self.state.lock().preparing = None;
        let CommittedSet { entries, left_out } = ready?;
        if left_out.is_empty() {
            self.prepare_context.entry_context.runtime.compile_cache.forget_compiled();
        }
        if let Some(configured) = configured {
            let mut state = self.state.lock();
            state.wanted = configured;
            state.refusal = None;
            log_left_out(&state.left_out, &left_out);
            state.left_out = left_out;
        } else {
            self.operator_changes.fetch_add(1, Relaxed);
        }
        if is_same(before.entries(), &entries) {
            return Ok(before.generation());
        }
        let generation = Generation(before.generation().0 + 1);
        tracing::info!(%generation, plugins = %changes(before.entries(), &entries), "policies swapped");
        self.current.store(Arc::new(PolicySet::new(generation, entries, &self.chains)));
        self.state.lock().since = SystemTime::now();
        self.note_swap();
        self.generation.send_replace(generation);
        Ok(generation)
    }

    /// Whether a skipped file of the plugin directory may become a plugin without a change of it.
    pub(super) fn may_complete(&self) -> bool {
        self.state.lock().left_out.iter().any(|problem| problem.kind.is_transient())
    }

    /// How many changes operators and quarantines have made: after one, a set that was refused may not
    /// be any more.
    pub(super) fn operator_changes(&self) -> u64 {
        self.operator_changes.load(Relaxed)
    }

    /// What is active, and what was refused: for `GET /v1/plugins`.
    pub fn status(&self) -> Status {
        let set = self.current();
        let state = self.state.lock();
        let with_trial = |entry: &Arc<SetEntry>| PluginStatus {
            last_rollout: self
                .kept()
                .record(&entry.plugin.config.name)
                .and_then(|record| record.rollout_result),
            ..plugin_status(entry, &state.refusal)
        };
        let plugins = set.entries().iter().map(with_trial).collect();
        Status {
            generation: set.generation(),
            since: state.since,
            plugins,
            overrides: self.overrides(&state.wanted),
            last_refusal: state.refusal.clone(),
            left_out: state.left_out.clone(),
            preparing_since: state.preparing,
        }
    }

    /// The overrides of configured plugins.
    fn overrides(&self, wanted: &[PluginConfig]) -> BTreeMap<String, VersionOverride> {
        let configured = |name: &String| wanted.iter().any(|config| config.name == *name);
        self.kept().overrides().into_iter().filter(|(name, _)| configured(name)).collect()
    }

    /// Notifies of every new generation.
    #[cfg(test)]
    pub(crate) fn subscribe(&self) -> watch::Receiver<Generation> {
        self.generation.subscribe()
    }

    /// The configuration of the active set.
    pub(super) fn wanted(&self) -> Vec<PluginConfig> {
        self.state.lock().wanted.clone()
    }

    pub(super) fn kept(&self) -> &Versions {
        &self.prepare_context.versions
    }

    /// Loads plugins, and knows the trusted keys.
    pub(super) fn loader(&self) -> &PluginLoader {
        &self.prepare_context.loader
    }

    /// Waits for the next version that failed too often.
    pub(super) async fn next_alarm(&self) -> FailureAlarm {
        self.prepare_context.entry_context.alarms.next().await
    }

    /// Counts the swap to the current set.
    fn note_swap(&self) {
        let current = self.current.load();
        let plugins = current.versions().iter().map(|version| &*version.name);
        self.metrics.swapped(current.generation().0, plugins);
    }

    /// Counts a quarantine.
    pub(super) fn quarantined(&self, plugin: &str) {
        self.metrics.quarantined(plugin);
    }

    async fn prepare_blocking(
        &self,
        wanted: Vec<DesiredPlugin>,
        before: Arc<PolicySet>,
    ) -> Result<CommittedSet, PolicyError> {
        let (prepare_context, chains) = (Arc::clone(&self.prepare_context), Arc::clone(&self.chains));
        let work = move || {
            let mut prepared = prepare(&prepare_context, &wanted, before.entries())?;
            if !is_same(before.entries(), &prepared.entries) {
                prepared.fit(&prepare_context.versions, before.entries(), chains.load(Relaxed))?;
            }
            let operator_change =
                wanted.iter().any(|one| matches!(one.desired, DesiredVersion::OperatorChange(_)));
            commit(&prepare_context.versions, prepared, operator_change)
        };
        let done = run_blocking("preparing the plugins", work).await;
        done.unwrap_or_else(|e| Err(PolicyError::because(e.to_string())))
    }

    /// Records a refusal for the status. A repeated refusal is not logged again: files are read every
    /// few seconds.
    pub(super) fn record_refusal(&self, refused: &PolicyError) {
        if wasm::compile::is_stopping() {
            tracing::debug!(%refused, "preparing policies was cancelled: the gateway is stopping");
            return;
        }
        self.metrics.refused();
        let errors: Vec<String> = refused.problems.iter().map(PluginProblem::to_string).collect();
        let mut state = self.state.lock();
        if state.refusal.as_ref().is_some_and(|last| last.errors == errors) {
            return;
        }
        let generation = self.current.load().generation();
        tracing::warn!(problems = %refused, %generation, "policies refused; the active set stays");
        let plugins = refused.problems.iter().map(|problem| problem.plugin.clone()).collect();
        state.refusal = Some(RefusedUpdate { at: SystemTime::now(), errors, plugins });
    }
}

/// Logs files that are newly skipped.
fn log_left_out(before: &[PluginProblem], after: &[PluginProblem]) {
    for problem in after.iter().filter(|problem| !before.contains(problem)) {
        tracing::warn!(%problem, "skipping an unreadable file of the plugin directory");
    }
}

fn is_same(before: &[Arc<SetEntry>], after: &[Arc<SetEntry>]) -> bool {
    before.len() == after.len() && before.iter().zip(after).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// The swap in one line: `a 1234 -> 5678, b 9abc, c (new) def0, d (removed)`.
fn changes(before: &[Arc<SetEntry>], after: &[Arc<SetEntry>]) -> String {
    let mut words = Vec::new();
    for SetEntry { plugin, .. } in after.iter().map(|entry| &**entry) {
        let (name, hash) = (&plugin.version.name, &plugin.version.hash);
        let old = before.iter().map(|old| &old.plugin).find(|old| old.version.name == *name);
        words.push(match old {
            None => format!("{name} (new) {hash}"),
            Some(old) if old.version.hash != *hash => format!("{name} {} -> {hash}", old.version.hash),
            Some(old) if old.config != plugin.config => format!("{name} {hash} (new settings)"),
            Some(_) => format!("{name} {hash}"),
        });
    }
    let is_gone =
        |old: &&Arc<SetEntry>| after.iter().all(|new| new.plugin.version.name != old.plugin.version.name);
    let gone = before.iter().filter(is_gone);
    words.extend(gone.map(|old| format!("{} (removed)", old.plugin.version.name)));
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
