//! Hot swap by files: when a plugin, the configuration or the plugin directory changes, the desired
//! set is prepared and activated.
//!
//! File system events are only hints. Directories are watched instead of files, so that renames over
//! files and switched links (ConfigMaps' `..data`) are noticed. After an event the files must be
//! unchanged for a while; their content decides whether anything changed; and everything is read
//! again periodically, in case events were lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::artifact::PluginSource;
use crate::blocking::run_blocking;
use crate::policy::config::PluginConfig;
use crate::policy::entry::SetEntry;
use crate::policy::policies::Policies;
use crate::policy::problem::{PluginProblem, PolicyError};

/// The maximum delay by further events, as a multiple of the debounce time.
const MAX_DEBOUNCES: u32 = 20;
/// How long files must keep their size and time to count as written, as a fraction of the debounce time.
const STABLE_FRACTION: u32 = 2;
/// How often that is checked before waiting for the next event or rescan.
const STABLE_ATTEMPTS: usize = 100;

/// Returns the desired plugins, and the paths to watch.
type ReadSources = dyn Fn() -> anyhow::Result<(Vec<PluginConfig>, Vec<PathBuf>)> + Send + Sync;

/// Where the desired plugins come from.
pub struct PolicySources {
    /// Reads the configuration again. Returns the desired plugins and the paths to watch: the
    /// configuration file, the plugins' files and signatures, the plugin directory. May block.
    pub files: Box<ReadSources>,
    /// How long there must be no events before the files are read.
    pub debounce: Duration,
    /// How often everything is read without an event.
    pub rescan_interval: Duration,
}

impl std::fmt::Debug for PolicySources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("debounce", &self.debounce)
            .field("rescan_interval", &self.rescan_interval)
            .finish_non_exhaustive()
    }
}

/// Keeps the policies in sync with their sources until shutdown. Never fails: problems with the
/// sources are logged and shown in [`Policies::status`].
pub async fn watch(policies: Arc<Policies>, sources: PolicySources, shutdown: CancellationToken) {
    let mut policy_watcher = PolicyWatcher::new(policies, sources);
    let work = async {
        loop {
            policy_watcher.check_sources().await;
            policy_watcher.wait_for_change().await;
        }
    };
    // Cancelling at any point is harmless: sets change in one step.
    shutdown.run_until_cancelled(work).await;
}

/// The desired plugins, each with fingerprints of its file and its candidate's (including signatures
/// and keys, if they are required); `None` for a file that could not be read.
type WatchedPlugins = Vec<(PluginConfig, Vec<Option<String>>)>;

struct PolicyWatcher {
    policies: Arc<Policies>,
    sources: Arc<PolicySources>,
    events: FileEvents,
    /// What was activated last, or refused for a reason that another attempt does not mend: not tried
    /// again until it changes.
    settled: Option<WatchedPlugins>,
    /// If that was refused, how many changes operators had made by then: with another one, its override
    /// may decide.
    refused_after: Option<u64>,
}

impl PolicyWatcher {
    fn new(policies: Arc<Policies>, sources: PolicySources) -> Self {
        let active = policies.current();
        // If signatures are required, the first check verifies the current ones.
        let hashes = |entry: &SetEntry| {
            let candidate = entry.rollout.as_ref().map(|rollout| &rollout.candidate.module.hash);
            [Some(&entry.plugin.module.hash), candidate]
                .into_iter()
                .flatten()
                .map(|hash| Some(hash.to_string()))
                .collect()
        };
        let wanted = |entry: &Arc<SetEntry>| (entry.plugin.config.clone(), hashes(entry));
        let settled = Some(active.entries().iter().map(wanted).collect());
        Self {
            policies,
            sources: Arc::new(sources),
            events: FileEvents::start(),
            settled,
            refused_after: None,
        }
    }

    /// Waits for an event and the debounce time after it, or for the next rescan.
    async fn wait_for_change(&self) {
        let (debounce, event) = (self.sources.debounce, self.events.happened.notified());
        if tokio::time::timeout(self.sources.rescan_interval, event).await.is_err() {
            return;
        }
        let latest = Instant::now() + debounce * MAX_DEBOUNCES;
        loop {
            let until = (Instant::now() + debounce).min(latest);
            if timeout_at(until, self.events.happened.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Reads the sources once, and replaces the set if they changed.
    async fn check_sources(&mut self) {
        let plugins = match self.read_when_stable().await {
            Ok(Some(plugins)) => plugins,
            Ok(None) => {
                tracing::warn!("a plugin's file keeps changing; checking again later");
                return;
            }
            Err(why) => {
                let problems = vec![PluginProblem::general(format!("{why:#}"))];
                self.policies.record_refusal(&PolicyError { problems });
                // The next set is applied even if it equals the active one, which clears the refusal.
                self.settled = None;
                return;
            }
        };
        let policies = Arc::clone(&self.policies);
        let check_sources = move || with_fingerprints(&policies, plugins);
        let Ok(wanted) = run_blocking("looking at the plugins' files", check_sources).await else { return };
        let operator_changes = self.policies.operator_changes();
        let is_known = self.refused_after.is_none_or(|before| before == operator_changes);
        if is_known && self.settled.as_ref() == Some(&wanted) {
            return;
        }
        let plugins = wanted.iter().map(|(config, _)| config.clone()).collect();
        // Refusals are logged and stored by the policies themselves. What may pass (a registry that is
        // unreachable, a start that took too long on a busy machine) is tried again at the next rescan;
        // what lasts (a wrong signature, a wrong digest) is not even fetched again.
        let replaced = self.policies.replace(plugins).await;
        self.refused_after = replaced.is_err().then_some(operator_changes);
        let is_settled = match replaced {
            Ok(_) => !self.policies.may_complete(),
            Err(refused) => !refused.is_transient(),
        };
        self.settled = is_settled.then_some(wanted);
    }

    /// The desired plugins, once no file changes its size or time any more: the writers are done.
    /// `None` if that takes too long.
    async fn read_when_stable(&mut self) -> anyhow::Result<Option<Vec<PluginConfig>>> {
        for _ in 0..STABLE_ATTEMPTS {
            let (plugins, paths) = self.read_sources().await?;
            self.events.follow(&paths);
            let sources = || plugins.iter().flat_map(PluginConfig::sources);
            let files = || paths.iter().map(PathBuf::as_path).chain(sources().filter_map(PluginSource::file));
            let before: Vec<_> = files().map(stamp).collect();
            sleep(self.sources.debounce / STABLE_FRACTION).await;
            if files().map(stamp).eq(before) {
                return Ok(Some(plugins));
            }
        }
        Ok(None)
    }

    async fn read_sources(&self) -> anyhow::Result<(Vec<PluginConfig>, Vec<PathBuf>)> {
        let sources = Arc::clone(&self.sources);
        run_blocking("reading the configuration", move || (sources.files)()).await?
    }
}

fn with_fingerprints(policies: &Policies, plugins: Vec<PluginConfig>) -> WatchedPlugins {
    let with_fingerprint = |config: PluginConfig| {
        let fingerprints = config.sources().map(|source| policies.loader().fingerprint(source)).collect();
        (config, fingerprints)
    };
    plugins.into_iter().map(with_fingerprint).collect()
}

fn stamp(path: &Path) -> Option<(u64, Option<SystemTime>)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()))
}

/// File system events as one flag: something happened.
struct FileEvents {
    happened: Arc<Notify>,
    /// `None` if this machine has no watcher; only rescans remain then.
    watcher: Option<RecommendedWatcher>,
    /// The directories to watch, and whether each is watched.
    directories: BTreeMap<PathBuf, bool>,
}

impl FileEvents {
    fn start() -> Self {
        let happened = Arc::new(Notify::new());
        let flag = Arc::clone(&happened);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if is_change(&event) {
                flag.notify_one();
            }
        });
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(%error, "file events are not available; plugins are read every `[policies] rescan_interval`");
            })
            .ok();
        Self { happened, watcher, directories: BTreeMap::new() }
    }

    /// Watches the directories of these paths and no others.
    fn follow(&mut self, paths: &[PathBuf]) {
        let wanted = directories(paths);
        let Some(watcher) = &mut self.watcher else { return };
        let gone: Vec<PathBuf> =
            self.directories.keys().filter(|known| !wanted.contains(*known)).cloned().collect();
        for directory in gone {
            if self.directories.remove(&directory) == Some(true) {
                // It may be gone from the disk as well.
                let _ = watcher.unwatch(&directory);
            }
        }
        for directory in wanted {
            // Includes directories that are watched already: one that was removed and created again
            // is a different one to the kernel.
            let result = watcher.watch(&directory, RecursiveMode::NonRecursive);
            let before = self.directories.insert(directory.clone(), result.is_ok());
            if let (Err(error), None | Some(true)) = (result, before) {
                let directory = directory.display();
                tracing::warn!(%directory, %error, "cannot be watched; it is read every `[policies] rescan_interval`");
            }
        }
    }
}

/// Reading files causes events too; only events that may be changes count. Errors and overflows
/// count, because they mean lost events.
fn is_change(event: &notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        EventKind::Access(kind) => event.need_rescan() || kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The directories to watch: a directory itself; for a file, its parent, and for a link also the
/// parent of its target.
fn directories(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    for path in paths {
        if path.is_dir() {
            directories.insert(path.clone());
            continue;
        }
        let target = path.canonicalize().ok();
        for file in [Some(path), target.as_ref()].into_iter().flatten() {
            let parent = file.parent().unwrap_or(Path::new(""));
            let here = parent.as_os_str().is_empty();
            directories.insert(if here { PathBuf::from(".") } else { parent.to_path_buf() });
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_watched_not_files() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("versions")).unwrap();
        std::fs::write(real.join("versions/a.wasm"), b"").unwrap();
        std::os::unix::fs::symlink("versions/a.wasm", real.join("a.wasm")).unwrap();
        let found = directories(&[real.join("a.wasm"), real.join("versions"), "b.wasm".into()]);
        assert_eq!(found, BTreeSet::from([real.clone(), real.join("versions"), ".".into()]));
    }

    #[test]
    fn read_events_are_ignored() {
        let event = |kind| Ok(Event::new(kind));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)))));
        assert!(is_change(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)))));
        assert!(is_change(&event(EventKind::Any)));
        assert!(is_change(&Ok(Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan))));
    }
}
