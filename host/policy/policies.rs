//! The policy set in force, and its replacement: off to the side, as a whole, in one step.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use tokio::sync::watch;

use crate::policy::config::{OnError, PluginConfig};
use crate::policy::guest::aside::outside_async;
use crate::policy::guest::runtime::Runtime;
use crate::policy::plugin::Plugin;
use crate::policy::set::{Generation, PolicySet, Problem, Refused, prepare};
use crate::policy::switch::Switch;

/// The set in force. Workers take [`Policies::current`] for each batch: one set decides all
/// of it.
pub struct Policies {
    runtime: Arc<Runtime>,
    current: Switch<PolicySet>,
    /// One replacement at a time.
    replacing: tokio::sync::Mutex<()>,
    generation: watch::Sender<Generation>,
    standing: Mutex<Standing>,
}

/// What the status tells beside the set.
#[derive(Debug)]
struct Standing {
    since: SystemTime,
    refusal: Option<Refusal>,
}

impl Policies {
    /// Prepares the first set and puts it in force as generation 1.
    ///
    /// # Errors
    /// With everything that is wrong with any plugin.
    pub fn start(runtime: Arc<Runtime>, plugins: &[PluginConfig]) -> Result<Arc<Self>, Refused> {
        let prepared = outside_async(|| prepare(&runtime, plugins, &[]))?;
        let first = Generation(1);
        let policies = Self {
            current: Switch::new(PolicySet::new(first, prepared)),
            replacing: tokio::sync::Mutex::new(()),
            generation: watch::Sender::new(first),
            standing: Mutex::new(Standing { since: SystemTime::now(), refusal: None }),
            runtime,
        };
        policies.runtime.metrics.swapped(first.0);
        tracing::info!(generation = %first, plugins = %changes(&[], policies.current().plugins()), "policies in force");
        Ok(Arc::new(policies))
    }

    /// The set in force. Cheap.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.get()
    }

    /// Replaces the whole set, or nothing of it. Compiles away from the threads that carry
    /// messages. A set that equals the one in force changes nothing and makes no generation.
    ///
    /// # Errors
    /// With everything that is wrong with any plugin; the set in force stays.
    pub async fn replace(&self, plugins: Vec<PluginConfig>) -> Result<Generation, Refused> {
        let _one_at_a_time = self.replacing.lock().await;
        let before = self.current();
        let prepared = self.prepare_aside(plugins, Arc::clone(&before)).await;
        let prepared = prepared.inspect_err(|refused| self.refuse(refused))?;
        self.standing().refusal = None;
        if is_same(before.plugins(), &prepared) {
            return Ok(before.generation());
        }
        let generation = Generation(before.generation().0 + 1);
        tracing::info!(%generation, plugins = %changes(before.plugins(), &prepared), "policies swapped");
        self.current.put(PolicySet::new(generation, prepared));
        self.standing().since = SystemTime::now();
        self.runtime.metrics.swapped(generation.0);
        self.generation.send_replace(generation);
        Ok(generation)
    }

    /// What is in force, and what was refused: for `GET /v1/plugins`.
    pub fn status(&self) -> Status {
        let set = self.current();
        let standing = self.standing();
        let plugins = set.plugins().iter().map(|plugin| plugin_status(plugin, &standing.refusal)).collect();
        Status {
            generation: set.generation(),
            since: standing.since,
            plugins,
            last_refusal: standing.refusal.clone(),
        }
    }

    /// Tells of every new generation.
    pub fn subscribe(&self) -> watch::Receiver<Generation> {
        self.generation.subscribe()
    }

    async fn prepare_aside(
        &self,
        plugins: Vec<PluginConfig>,
        before: Arc<PolicySet>,
    ) -> Result<Vec<Arc<Plugin>>, Refused> {
        let runtime = Arc::clone(&self.runtime);
        let aside = tokio::task::spawn_blocking(move || prepare(&runtime, &plugins, before.plugins()));
        aside.await.unwrap_or_else(|e| {
            Err(Refused {
                problems: vec![Problem::general(format!("preparing the plugins ended early: {e}"))],
            })
        })
    }

    /// Keeps a refusal for the status. One that says the same as the last is not logged
    /// again: the files are looked at every few seconds.
    pub(super) fn refuse(&self, refused: &Refused) {
        self.runtime.metrics.refused();
        let errors: Vec<String> = refused.problems.iter().map(Problem::to_string).collect();
        let mut standing = self.standing();
        if standing.refusal.as_ref().is_some_and(|last| last.errors == errors) {
            return;
        }
        let generation = self.current.get().generation();
        tracing::warn!(problems = %refused, %generation, "policies refused; the set in force stays");
        let plugins = refused.problems.iter().map(|problem| problem.plugin.clone()).collect();
        standing.refusal = Some(Refusal { at: SystemTime::now(), errors, plugins });
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies").field("current", &self.current()).finish_non_exhaustive()
    }
}

fn is_same(before: &[Arc<Plugin>], after: &[Arc<Plugin>]) -> bool {
    before.len() == after.len() && before.iter().zip(after).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// The swap in one line: `a 1234 -> 5678, b 9abc, c (new) def0, d (gone)`.
fn changes(before: &[Arc<Plugin>], after: &[Arc<Plugin>]) -> String {
    let mut words = Vec::new();
    for plugin in after {
        let (name, hash) = (&plugin.version.name, &plugin.version.hash);
        let old = before.iter().find(|old| old.version.name == *name);
        words.push(match old {
            None => format!("{name} (new) {hash}"),
            Some(old) if old.version.hash != *hash => format!("{name} {} -> {hash}", old.version.hash),
            Some(old) if old.config != plugin.config => format!("{name} {hash} (new settings)"),
            Some(_) => format!("{name} {hash}"),
        });
    }
    let gone = before.iter().filter(|old| after.iter().all(|new| new.version.name != old.version.name));
    words.extend(gone.map(|old| format!("{} (gone)", old.version.name)));
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// What `GET /v1/plugins` shows.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// The set in force.
    pub generation: Generation,
    /// Since when it is in force.
    #[serde(with = "humantime_serde")]
    pub since: SystemTime,
    /// Its plugins, in configured order.
    pub plugins: Vec<PluginStatus>,
    /// The candidate that was refused and has not been replaced by a good one since.
    pub last_refusal: Option<Refusal>,
}

/// One plugin in force.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PluginStatus {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The SHA-256 of the file that is in force, in hex. Versions show the first 12 digits.
    pub hash: String,
    /// The interfaces that it exports.
    pub hooks: Vec<&'static str>,
    /// The version of the contract it was built for.
    pub wit_version: String,
    /// The file's size.
    pub size: ByteSize,
    /// What happens when it fails.
    pub on_error: OnError,
    /// The most that one call may take.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// The most memory of an instance.
    pub memory: ByteSize,
    /// Whether a newer version waits that was refused.
    pub state: PluginState,
}

/// How a plugin in force stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginState {
    /// It is what the configuration and the files want.
    Running,
    /// Its newer version, or its newer settings, were refused; see the last refusal.
    UpdateRefused,
}

/// A candidate set that was refused.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// When it was refused first.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// Everything that is wrong with it.
    pub errors: Vec<String>,
    /// The names of the plugins with problems.
    #[serde(skip)]
    plugins: Vec<String>,
}

fn plugin_status(plugin: &Plugin, refusal: &Option<Refusal>) -> PluginStatus {
    let refused = refusal.as_ref().is_some_and(|refusal| refusal.plugins.contains(&plugin.config.name));
    PluginStatus {
        name: plugin.config.name.clone(),
        path: plugin.path().to_path_buf(),
        hash: plugin.module.hash.clone(),
        hooks: plugin.module.hooks.names(),
        wit_version: plugin.module.wit_version.clone(),
        size: ByteSize::b(plugin.module.size as u64),
        on_error: plugin.config.on_error,
        deadline: plugin.config.deadline,
        memory: plugin.config.memory,
        state: if refused { PluginState::UpdateRefused } else { PluginState::Running },
    }
}
