//! Hot swap by files: when a plugin, the configuration or the plugin directory changes, the desired
//! set is prepared and activated.
//!
//! File system events are only hints. After a rename the files are read at once; after any other
//! event they must be unchanged for a while (`events`). Their content decides whether anything
//! changed; and everything is read again periodically, in case events were lost.
//!
//! Several renames may belong together: a plugin and its signature, a plugin and its configuration. A
//! set that is read at once and refused is read again after the debounce time, and only then reported.

mod events;
mod paths;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::artifact::PluginSource;
use crate::blocking::run_blocking;
use crate::policy::config::PluginConfig;
use crate::policy::entry::SetEntry;
use crate::policy::policies::Policies;
use crate::policy::problem::{PluginProblem, PolicyError};
use crate::policy::set::Generation;
use crate::policy::watch::events::{FileEvents, Ready};

/// How long files must keep their size and time to count as written, as a fraction of the debounce time.
const STABLE_FRACTION: u32 = 2;
/// How often that is checked before waiting for the next event or rescan.
const STABLE_ATTEMPTS: usize = 100;

/// Returns the desired plugins, and the paths to watch.
type ReadSources = dyn Fn() -> anyhow::Result<(Vec<PluginConfig>, Vec<PathBuf>)> + Send + Sync;

/// Where the desired plugins come from.
#[derive(derive_more::Debug)]
pub struct PolicySources {
    /// Reads the configuration again. Returns the desired plugins and the paths to watch: the
    /// configuration file, the plugins' files and signatures, the plugin directory. May block.
    #[debug(skip)]
    pub files: Box<ReadSources>,
    /// How long there must be no events before the files are read, unless files were renamed.
    pub debounce: Duration,
    /// How often everything is read without an event.
    pub rescan_interval: Duration,
    /// Has everything read at once when it is notified.
    pub reload: Arc<Notify>,
}

/// Keeps the policies in sync with their sources until shutdown. Never fails: problems with the
/// sources are logged and shown in [`Policies::status`].
pub async fn watch(policies: Arc<Policies>, sources: PolicySources, shutdown: CancellationToken) {
    let mut policy_watcher = PolicyWatcher::new(policies, sources);
    let work = async {
        let mut ready = Ready::Quiet;
        loop {
            let check = policy_watcher.check_sources(ready).await;
            ready = policy_watcher.wait_for_change(check).await;
        }
    };
    // Cancelling at any point is harmless: sets change in one step.
    shutdown.run_until_cancelled(work).await;
}

/// The desired plugins, each with fingerprints of its file and its candidate's (including signatures
/// and keys, if they are required); `None` for a file that could not be read.
type WatchedPlugins = Vec<(PluginConfig, Vec<Option<String>>)>;

/// The result of reading the sources once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Done,
    /// They were refused, perhaps because not all of them are in place yet.
    Early,
}

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

    /// Waits for a change and until it is complete, or for the next rescan.
    async fn wait_for_change(&self, last: Check) -> Ready {
        let change = async {
            tokio::select! {
                () = self.events.changed() => {}
                () = self.sources.reload.notified() => {}
            }
        };
        let change = tokio::time::timeout(self.sources.rescan_interval, change);
        if last == Check::Done && change.await.is_err() {
            return Ready::Quiet;
        }
        self.events.ready(self.sources.debounce).await
    }

    /// Reads the sources once, and replaces the set if they changed.
    async fn check_sources(&mut self, ready: Ready) -> Check {
        let (plugins, ready) = match self.read_when_complete(ready).await {
            Ok(Some(complete)) => complete,
            Ok(None) => {
                tracing::warn!("a plugin's file keeps changing; checking again later");
                return Check::Done;
            }
            Err(_) if ready == Ready::Renamed => return Check::Early,
            Err(why) => {
                let problems = vec![PluginProblem::general(format!("{why:#}"))];
                self.policies.record_refusal(&PolicyError { problems });
                // The next set is applied even if it equals the active one, which clears the refusal.
                self.settled = None;
                return Check::Done;
            }
        };
        let policies = Arc::clone(&self.policies);
        let check_sources = move || with_fingerprints(&policies, plugins);
        let Ok(wanted) = run_blocking("looking at the plugins' files", check_sources).await else {
            return Check::Done;
        };
        let operator_changes = self.policies.operator_changes();
        let is_known = self.refused_after.is_none_or(|before| before == operator_changes);
        if is_known && self.settled.as_ref() == Some(&wanted) {
            return Check::Done;
        }
        let plugins = wanted.iter().map(|(config, _)| config.clone()).collect();
        let replaced = self.policies.try_replace(plugins).await;
        if replaced.is_err() && ready == Ready::Renamed {
            return Check::Early;
        }
        self.settle(wanted, replaced, operator_changes);
        Check::Done
    }

    /// Remembers what was activated or refused. What may pass (a registry that is unreachable, a start
    /// that took too long on a busy machine) is tried again at the next rescan; what lasts (a wrong
    /// signature, a wrong digest) is not even fetched again.
    fn settle(
        &mut self,
        wanted: WatchedPlugins,
        replaced: Result<Generation, PolicyError>,
        operator_changes: u64,
    ) {
        self.refused_after = replaced.is_err().then_some(operator_changes);
        let is_settled = match replaced {
            Ok(_) => !self.policies.may_complete(),
            Err(refused) => {
                self.policies.record_refusal(&refused);
                !refused.is_transient()
            }
        };
        self.settled = is_settled.then_some(wanted);
    }

    /// The desired plugins: at once if all that changed was renamed, else once no file changes its size
    /// or time any more. `None` if that takes too long.
    async fn read_when_complete(
        &mut self,
        mut ready: Ready,
    ) -> anyhow::Result<Option<(Vec<PluginConfig>, Ready)>> {
        for _ in 0..STABLE_ATTEMPTS {
            let (plugins, paths) = self.read_sources().await?;
            // Where there were no events, files may be written right now.
            let had_events = self.events.follow(&paths);
            if had_events && ready == Ready::Renamed {
                return Ok(Some((plugins, ready)));
            }
            let sources = || plugins.iter().flat_map(PluginConfig::sources);
            let files = || paths.iter().map(PathBuf::as_path).chain(sources().filter_map(PluginSource::file));
            let before: Vec<_> = files().map(stamp).collect();
            if self.events.renamed_within(self.sources.debounce / STABLE_FRACTION).await {
                ready = Ready::Renamed;
            } else if files().map(stamp).eq(before) {
                return Ok(Some((plugins, Ready::Quiet)));
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
