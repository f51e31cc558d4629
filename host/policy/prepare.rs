//! Turns the desired plugins into a set of prepared ones, or into a list of all problems: all or
//! nothing.
//!
//! The exception are files of the plugin directory that the configuration does not name: one that
//! was never active and cannot be loaded is skipped with its reason. It does not prevent the start or
//! the activation of other plugins.
//!
//! A plugin's file, or its override, is read here. The resulting changes to the stored versions are
//! computed as well, and committed before the set becomes active.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::artifact::{Artifact, ArtifactError, PluginLoader, VersionChange, Versions};
use crate::mistake::Mistake;
use crate::policy::config::PluginConfig;
use crate::policy::desired::{DesiredPlugin, DesiredVersion, OperatorChange, candidate, decide};
use crate::policy::entry::{EntryContext, EntryError, SetEntry};
use crate::policy::plugin::{Plugin, SettingsProblem};
use crate::policy::problem::{PluginProblem, PolicyError, ProblemKind};
use crate::wasm::compile::{self, CompileError};
use crate::wasm::described::DescribeError;

/// A prepared set.
#[derive(Default)]
pub(super) struct PreparedSet {
    pub(super) entries: Vec<Arc<SetEntry>>,
    /// The changes to stored versions.
    pub(super) changes: Vec<VersionChange>,
    /// Files of the plugin directory that cannot be loaded and were never active.
    pub(super) left_out: Vec<PluginProblem>,
}

/// A set that may become active.
pub(super) struct CommittedSet {
    pub(super) entries: Vec<Arc<SetEntry>>,
    pub(super) left_out: Vec<PluginProblem>,
}

/// Why a plugin cannot be prepared: the second half of a sentence that begins with the plugin.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// Its file cannot be had, or may not decide.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The same of its candidate.
    #[error("{0}")]
    Candidate(ArtifactError),
    /// It does not compile, or does not start.
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error("made the compiler panic; is the file complete?")]
    Panicked,
}

impl PrepareError {
    fn kind(&self) -> ProblemKind {
        match self {
            Self::Artifact(why) | Self::Candidate(why) if why.is_transient() => ProblemKind::Transient,
            Self::Entry(EntryError::Start(failure)) if failure.refused_configuration => {
                ProblemKind::Configuration
            }
            Self::Entry(EntryError::Settings(SettingsProblem::Violated(_))) => ProblemKind::Settings,
            Self::Artifact(_)
            | Self::Candidate(_)
            | Self::Entry(
                EntryError::Compile(CompileError::Invalid(_))
                | EntryError::Settings(SettingsProblem::Unknown(DescribeError::Schema(_))),
            ) => ProblemKind::Lasting,
            // The machine may have been busy.
            Self::Entry(_) | Self::Panicked => ProblemKind::Transient,
        }
    }

    /// One problem for each setting that violates the schema; otherwise one.
    fn problems(&self, config: &PluginConfig) -> Vec<PluginProblem> {
        let problem =
            |key, message| PluginProblem { kind: self.kind(), key, ..PluginProblem::of(config, message) };
        match self {
            Self::Entry(EntryError::Settings(SettingsProblem::Violated(violated))) => {
                violated.each().into_iter().map(|(key, one)| problem(key, one.to_string())).collect()
            }
            Self::Artifact(_) | Self::Entry(EntryError::Compile(_)) | Self::Panicked => {
                vec![problem(vec!["path".to_owned()], self.to_string())]
            }
            Self::Candidate(_) => vec![problem(vec!["rollout".to_owned()], self.to_string())],
            Self::Entry(_) => vec![problem(Vec::new(), self.to_string())],
        }
    }
}

/// The dependencies of preparing a set.
pub(super) struct PrepareContext {
    pub(super) entry_context: EntryContext,
    /// Loads plugins, and knows the trusted keys.
    pub(super) loader: PluginLoader,
    pub(super) versions: Versions,
}

/// Prepares a whole set, reusing the unchanged plugins of the active one.
///
/// # Errors
/// With the problems of all plugins.
pub(super) fn prepare(
    prepare_context: &PrepareContext,
    wanted: &[DesiredPlugin],
    active: &[Arc<SetEntry>],
) -> Result<PreparedSet, PolicyError> {
    let mut problems = Vec::new();
    let mut prepared = PreparedSet {
        entries: Vec::with_capacity(wanted.len()),
        changes: removed_plugins(&prepare_context.versions, wanted),
        left_out: vec![],
    };
    for (at, one) in wanted.iter().enumerate() {
        let config = &one.config;
        let lasting = |mistake| PluginProblem::mistake(config, mistake);
        let mut mistakes: Vec<PluginProblem> = config.validate().into_iter().map(lasting).collect();
        let is_double = wanted[..at].iter().any(|earlier| earlier.config.name == config.name);
        if is_double {
            let text = "has the name of an earlier plugin; names must be unique";
            mistakes.push(lasting(Mistake::about("name", text)));
        }
        if mistakes.is_empty() {
            let refused = prepare_one(prepare_context, one, active, &mut prepared).err();
            mistakes.extend(refused.into_iter().flat_map(|why| why.problems(config)));
        } else if !is_double || (active.is_empty() && !config.found) {
            // A duplicate would run under the name of the active plugin, with its state.
            mistakes.extend(further_problems(prepare_context, one));
        }
        // The name of a duplicate belongs to the earlier plugin.
        let may_be_left_out =
            (is_double && config.found) || is_stray(&prepare_context.versions, config, active);
        // While the process stops nothing is compiled any more, which says nothing about the files.
        if may_be_left_out && !compile::is_stopping() {
            prepared.left_out.extend(mistakes);
        } else {
            problems.extend(mistakes);
        }
    }
    if problems.is_empty() { Ok(prepared) } else { Err(PolicyError { problems }) }
}

/// Prepares the first set: the desired one, else the one that was active before this process started,
/// with the reasons for the fallback.
pub(super) fn prepare_first(
    prepare_context: &PrepareContext,
    plugins: &[PluginConfig],
) -> Result<(CommittedSet, Option<PolicyError>), PolicyError> {
    let prepare_with =
        |desired: &dyn Fn(&PluginConfig) -> DesiredVersion| -> Result<PreparedSet, PolicyError> {
            let wanted: Vec<DesiredPlugin> = plugins
                .iter()
                .map(|config| DesiredPlugin { config: config.clone(), desired: desired(config) })
                .collect();
            let mut prepared = prepare(prepare_context, &wanted, &[])?;
            prepared.fit(&prepare_context.versions, &[], 1)?;
            Ok(prepared)
        };
    let (prepared, refused) = match prepare_with(&|_| DesiredVersion::File) {
        Ok(prepared) => (prepared, None),
        Err(refused) => {
            let active = prepare_context.versions.active();
            let before = |config: &PluginConfig| {
                active.get(&config.name).map_or(DesiredVersion::File, |hash| {
                    DesiredVersion::OperatorChange(OperatorChange::keep_active(*hash, "restart"))
                })
            };
            (prepare_with(&before).map_err(|_| refused.clone())?, Some(refused))
        }
    };
    Ok((commit(&prepare_context.versions, prepared, false)?, refused))
}

/// Stores the changes of a prepared set to the versions, before the set is activated.
///
/// # Errors
/// When an operator's change cannot be written to disk: a restart would not restore it. Changes that
/// come from files can be derived from the files again.
pub(super) fn commit(
    versions: &Versions,
    prepared: PreparedSet,
    operator_change: bool,
) -> Result<CommittedSet, PolicyError> {
    match versions.commit(prepared.changes) {
        Ok(()) => {}
        Err(error) if operator_change => {
            let why = format!("the version cannot be stored: {error:#}; nothing was changed");
            return Err(PolicyError::because(why));
        }
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "versions cannot be stored; a restart takes the files as they are"
            );
        }
    }
    Ok(CommittedSet { entries: prepared.entries, left_out: prepared.left_out })
}

/// Whether it is a file of the plugin directory that the configuration does not name and that was
/// never active. If one was active, its last good version stays active and the update is refused.
fn is_stray(versions: &Versions, config: &PluginConfig, active: &[Arc<SetEntry>]) -> bool {
    let is_in_force = || active.iter().any(|entry| entry.plugin.config.name == config.name);
    config.found && !is_in_force() && !versions.active().contains_key(&config.name)
}

impl PreparedSet {
    /// Checks that each of `workers` workers can start its instances of the set. Skips strays that
    /// do not fit.
    ///
    /// # Errors
    /// The plugin without room. A set that workers cannot start must not become active.
    pub(super) fn fit(
        &mut self,
        versions: &Versions,
        active: &[Arc<SetEntry>],
        workers: usize,
    ) -> Result<(), PolicyError> {
        while let Err((plugin, why)) = check_capacity(&self.entries, workers.max(1)) {
            let problem = PluginProblem::of(&plugin.config, why);
            if !is_stray(versions, &plugin.config, active) {
                return Err(PolicyError { problems: vec![problem] });
            }
            let name = &plugin.config.name;
            self.entries.retain(|entry| entry.plugin.config.name != *name);
            self.changes.retain(|change| change.plugin != *name);
            self.left_out.push(problem);
        }
        Ok(())
    }
}

fn check_capacity(entries: &[Arc<SetEntry>], workers: usize) -> Result<(), (Arc<Plugin>, String)> {
    let candidate =
        |entry: &Arc<SetEntry>| entry.rollout.as_ref().map(|rollout| Arc::clone(&rollout.candidate));
    let plugins = entries.iter().map(|entry| Arc::clone(&entry.plugin));
    let all: Vec<Arc<Plugin>> = plugins.chain(entries.iter().filter_map(candidate)).collect();
    let mut held = Vec::new();
    for _ in 0..workers {
        for plugin in &all {
            held.push(plugin.reserve().map_err(|failure| {
                let why = format!("cannot be started for each of {workers} workers: it {failure}");
                (Arc::clone(plugin), why)
            })?);
        }
    }
    Ok(())
}

fn prepare_one(
    prepare_context: &PrepareContext,
    wanted: &DesiredPlugin,
    active: &[Arc<SetEntry>],
    prepared: &mut PreparedSet,
) -> Result<(), PrepareError> {
    let PrepareContext { entry_context, loader, versions } = prepare_context;
    let operator_change = match &wanted.desired {
        DesiredVersion::KeepCurrent => {
            let same = active.iter().filter(|entry| entry.plugin.config.name == wanted.config.name);
            prepared.entries.extend(same.cloned());
            return Ok(());
        }
        DesiredVersion::OperatorChange(operator_change) => Some(operator_change),
        DesiredVersion::File => None,
    };
    let change = decide(loader, versions, &wanted.config, operator_change)?;
    if let Some((_, Artifact { bytes, .. })) = &change.to {
        let candidate =
            candidate(loader, versions, &wanted.config, &change).map_err(PrepareError::Candidate)?;
        let known: Vec<Arc<SetEntry>> = active.iter().chain(&prepared.entries).map(Arc::clone).collect();
        // The file is untrusted and goes through compilers here; a panic in one of them must not end
        // the process.
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            SetEntry::prepare(entry_context, &wanted.config, bytes, candidate.as_ref(), &known)
        }));
        prepared.entries.push(attempt.map_err(|_| PrepareError::Panicked)??);
    }
    prepared.changes.push(change);
    Ok(())
}

/// What is wrong with the file and the settings of a plugin that has mistakes: one does not hide another.
/// Values that may be mistaken are replaced by defaults; what is about no key may follow from these.
fn further_problems(prepare_context: &PrepareContext, wanted: &DesiredPlugin) -> Vec<PluginProblem> {
    let PluginConfig { name, path, sha256, config, .. } = wanted.config.clone();
    let is_known = !path.is_empty() && config.is_object() && matches!(wanted.desired, DesiredVersion::File);
    let sound = PluginConfig { name, path, sha256, config, ..PluginConfig::default() };
    let sound = DesiredPlugin { config: sound, desired: DesiredVersion::File };
    let refused = is_known.then(|| prepare_one(prepare_context, &sound, &[], &mut PreparedSet::default()));
    let mut problems =
        refused.and_then(Result::err).map_or_else(Vec::new, |why| why.problems(&wanted.config));
    problems.retain(|problem| !problem.key.is_empty());
    problems
}

/// Plugins that had an active version and are not desired any more.
fn removed_plugins(versions: &Versions, wanted: &[DesiredPlugin]) -> Vec<VersionChange> {
    let is_wanted = |name: &String| wanted.iter().any(|one| one.config.name == *name);
    let removed_plugins = versions.active().into_keys().filter(|name| !is_wanted(name));
    let why = || "removed from the configuration".to_owned();
    let change = |plugin| VersionChange { plugin, why: why(), ..VersionChange::default() };
    removed_plugins.map(change).collect()
}
