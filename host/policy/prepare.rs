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
use std::time::SystemTime;

use crate::artifact::{
    Artifact, ArtifactError, EffectiveVersion, Exclusion, OverrideCause, PluginLoader, PluginSource,
    RolloutResult, VersionChange, VersionOverride, Versions, check_order,
};
use crate::digest::Digest;
use crate::policy::config::PluginConfig;
use crate::policy::entry::{EntryContext, EntryError, SetEntry};
use crate::policy::plugin::Plugin;
use crate::policy::rollout::candidate::Candidate;
use crate::wasm::compile::{self, CompileError};

/// A desired plugin.
#[derive(Clone, Debug)]
pub(super) struct DesiredPlugin {
    pub(super) config: PluginConfig,
    pub(super) desired: DesiredVersion,
}

/// Which version of a plugin is desired.
#[derive(Clone, Debug)]
pub(super) enum DesiredVersion {
    /// Its file, or its current override.
    File,
    /// An operator's change.
    OperatorChange(OperatorChange),
    /// The active version, whatever its file is now: an operator changed another plugin.
    KeepCurrent,
}

/// A change that an operator or the quarantine makes to one plugin.
#[derive(Clone, Debug)]
pub(super) struct OperatorChange {
    pub(super) pick: VersionChoice,
    /// Its cause; `None` if it only keeps what was active before.
    pub(super) cause: Option<OverrideCause>,
    pub(super) why: String,
    /// Why the version that was active is excluded from rollbacks.
    pub(super) exclusion: Option<Exclusion>,
    /// The candidate whose rollout ends with this change.
    pub(super) rollout_result: Option<RolloutResult>,
}

impl OperatorChange {
    /// Keeps the version that was active.
    pub(super) fn going_on(hash: Digest, why: &str) -> Self {
        let (pick, why) = (VersionChoice::Stored(hash), why.to_owned());
        Self { pick, cause: None, why, exclusion: None, rollout_result: None }
    }
}

/// The version that a change selects.
#[derive(Clone, Debug)]
pub(super) enum VersionChoice {
    /// Its file, discarding any override.
    File,
    /// This version, which was uploaded.
    Upload(Artifact),
    /// The stored version with this hash.
    Stored(Digest),
    /// None: the chain continues without the plugin.
    Without,
}

/// A prepared set.
pub(super) struct PreparedSet {
    pub(super) entries: Vec<Arc<SetEntry>>,
    /// The changes to stored versions.
    pub(super) changes: Vec<VersionChange>,
    /// Files of the plugin directory that cannot be loaded and were never active.
    pub(super) left_out: Vec<PluginProblem>,
}

/// A problem with one plugin.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PluginProblem {
    /// The plugin's name; empty if the problem does not belong to one plugin.
    pub plugin: String,
    /// Where it comes from.
    pub path: PluginSource,
    /// The problem and its remedy.
    pub message: String,
    /// What helps.
    #[serde(skip)]
    pub kind: ProblemKind,
}

/// What helps with a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Perhaps another attempt, although neither the configuration nor a file changes.
    Transient,
    /// Only a change of the configuration or of a file.
    Lasting,
    /// The plugin refused its own configuration. A plugin may decide that by the time, so another attempt
    /// may help.
    Configuration,
}

impl ProblemKind {
    /// Whether another attempt may succeed although neither the configuration nor a file changes.
    pub(super) fn is_transient(self) -> bool {
        self != Self::Lasting
    }
}

impl PluginProblem {
    pub(super) fn of(config: &PluginConfig, message: impl Into<String>) -> Self {
        Self {
            plugin: config.name.clone(),
            path: config.path.clone(),
            message: message.into(),
            kind: ProblemKind::Transient,
        }
    }

    /// A problem that stays until the configuration or a file changes.
    fn lasting(config: &PluginConfig, message: impl Into<String>) -> Self {
        Self { kind: ProblemKind::Lasting, ..Self::of(config, message) }
    }

    /// A problem that does not belong to one plugin.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self {
            plugin: String::new(),
            path: PluginSource::default(),
            message: message.into(),
            kind: ProblemKind::Transient,
        }
    }
}

impl std::fmt::Display for PluginProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.plugin.is_empty() && self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "plugin `{}` ({}) {}", self.plugin, self.path, self.message)
    }
}

/// A set that was refused, with all its problems.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// At least one.
    pub problems: Vec<PluginProblem>,
}

impl PolicyError {
    /// With one reason that does not belong to one plugin.
    pub fn because(why: impl Into<String>) -> Self {
        Self { problems: vec![PluginProblem::general(why)] }
    }

    /// Whether another attempt may succeed although neither the configuration nor a file changes: one
    /// problem that lasts is enough to refuse the set again.
    pub(super) fn is_transient(&self) -> bool {
        self.problems.iter().all(|problem| problem.kind.is_transient())
    }
}

impl std::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Why a plugin cannot be prepared: the second half of a sentence that begins with the plugin.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    /// Its file cannot be had, or may not decide.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// It does not compile, or does not start.
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error("made the compiler panic; is the file complete?")]
    Panicked,
}

impl PrepareError {
    fn kind(&self) -> ProblemKind {
        match self {
            Self::Artifact(why) if why.is_transient() => ProblemKind::Transient,
            Self::Entry(EntryError::Start(failure)) if failure.refused_configuration => {
                ProblemKind::Configuration
            }
            Self::Artifact(_) | Self::Entry(EntryError::Compile(CompileError::Invalid(_))) => {
                ProblemKind::Lasting
            }
            // The machine may have been busy.
            Self::Entry(_) | Self::Panicked => ProblemKind::Transient,
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
        let lasting = |mistake: String| PluginProblem::lasting(config, mistake);
        let mut mistakes: Vec<PluginProblem> = config.validate().into_iter().map(lasting).collect();
        let is_double = wanted[..at].iter().any(|earlier| earlier.config.name == config.name);
        if is_double {
            mistakes.push(lasting("has the name of an earlier plugin; names must be unique".to_owned()));
        }
        if mistakes.is_empty() {
            let refused = prepare_one(prepare_context, one, active, &mut prepared).err();
            mistakes.extend(
                refused.map(|why| PluginProblem {
                    kind: why.kind(),
                    ..PluginProblem::of(config, why.to_string())
                }),
            );
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
        let candidate = candidate(loader, versions, &wanted.config, &change)?;
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

/// Selects the version that decides from now on, and the override of the plugin's file. A new version
/// has to match the pin; a version that decides has to be trusted, every time.
fn decide(
    loader: &PluginLoader,
    versions: &Versions,
    config: &PluginConfig,
    operator_change: Option<&OperatorChange>,
) -> Result<VersionChange, ArtifactError> {
    let (name, pin) = (&config.name, config.sha256);
    let file = loader.fetch(&config.path);
    let file_hash = file.as_ref().ok().map(|file| Digest::of(&file.bytes));
    let known = versions.record(name).and_then(|record| record.version_override);
    let change = |decides: Option<Trusted>, why: &str, version_override| {
        let exclusion = operator_change.and_then(|operator_change| operator_change.exclusion.clone());
        let rollout_result =
            operator_change.and_then(|operator_change| operator_change.rollout_result.clone());
        let signed = decides.as_ref().and_then(|trusted| trusted.signed);
        let to = decides.map(|trusted| (trusted.hash, trusted.artifact));
        VersionChange {
            plugin: name.clone(),
            to,
            signed,
            why: why.to_owned(),
            version_override,
            exclusion,
            rollout_result,
        }
    };
    let trusted = |artifact: Artifact, pin: Option<Digest>| {
        trust_new(loader, versions, config, artifact, pin).map(Some)
    };
    // A version that was active before may come back whatever its number is: only an operator or a
    // quarantine brings it back.
    let kept = |hash: Digest, pin: Option<Digest>| {
        let kept = versions.file(name, hash).and_then(|artifact| Trusted::new(loader, name, artifact, pin));
        kept.map(Some).map_err(|why| why.map_text(|why| format!("has a stored version, {hash}, that {why}")))
    };
    let Some(operator_change) = operator_change else {
        let why = known.as_ref().map_or("", |known| &known.why).to_owned();
        return Ok(match versions.choose(name, file_hash) {
            EffectiveVersion::File => change(trusted(file?, pin)?, "its file", None),
            EffectiveVersion::Stored(hash) => {
                // A pin is newer than a push; after a rollback or a quarantine it names the abandoned
                // version.
                let pushed = known.as_ref().is_some_and(|known| known.cause == OverrideCause::Pushed);
                change(kept(hash, pin.filter(|_| pushed))?, &why, known)
            }
            EffectiveVersion::Without => change(None, &why, known),
        });
    };
    let to = match &operator_change.pick {
        VersionChoice::File => trusted(file?, pin)?,
        VersionChoice::Upload(upload) => trusted(upload.clone(), pin)?,
        VersionChoice::Stored(hash) => kept(*hash, None)?,
        VersionChoice::Without => None,
    };
    let with = to.as_ref().map(|trusted| trusted.hash);
    let version_override = match operator_change.cause {
        // The file has the same content.
        _ if with.is_some() && with == file_hash => None,
        None => known,
        Some(cause) => {
            let (why, since) = (operator_change.why.clone(), SystemTime::now());
            Some(VersionOverride { file: file_hash, with, cause, why, since })
        }
    };
    Ok(change(to, &operator_change.why, version_override))
}

/// A version that may decide.
struct Trusted {
    hash: Digest,
    artifact: Artifact,
    /// The number that it is signed with.
    signed: Option<u64>,
}

impl Trusted {
    fn new(
        loader: &PluginLoader,
        name: &str,
        artifact: Artifact,
        pin: Option<Digest>,
    ) -> Result<Self, ArtifactError> {
        let signed = loader.check(name, &artifact, pin)?;
        Ok(Self { hash: Digest::of(&artifact.bytes), artifact, signed })
    }
}

/// Checks a new version: it has to match the pin, be trusted, and not be older than a version that
/// was active.
fn trust_new(
    loader: &PluginLoader,
    versions: &Versions,
    config: &PluginConfig,
    artifact: Artifact,
    pin: Option<Digest>,
) -> Result<Trusted, ArtifactError> {
    let trusted = Trusted::new(loader, &config.name, artifact, pin)?;
    if loader.requires_signatures() && !config.allow_downgrade {
        let highest_signed = versions.record(&config.name).and_then(|record| record.highest_signed);
        check_order(&config.name, trusted.signed, highest_signed)?;
    }
    Ok(trusted)
}

/// The candidate to roll out, unless its rollout has ended already or it is the deciding version.
fn candidate(
    loader: &PluginLoader,
    versions: &Versions,
    config: &PluginConfig,
    change: &VersionChange,
) -> Result<Option<Candidate>, ArtifactError> {
    let Some(rollout) = &config.rollout else { return Ok(None) };
    let pin = rollout.sha256;
    let trusted =
        loader.fetch(&rollout.path).and_then(|artifact| trust_new(loader, versions, config, artifact, pin));
    let trusted = trusted
        .map_err(|why| why.map_text(|why| format!("has a candidate ({}) that {why}", rollout.path)))?;
    let Trusted { hash, artifact, .. } = trusted;
    let rollout_result = versions.record(&config.name).and_then(|record| record.rollout_result);
    let over = [rollout_result.as_ref(), change.rollout_result.as_ref()]
        .into_iter()
        .flatten()
        .any(|rollout_result| rollout_result.hash == hash);
    let decides = change.to.as_ref().is_some_and(|(deciding, _)| *deciding == hash);
    Ok((!over && !decides).then(|| Candidate { config: rollout.clone(), artifact, hash }))
}

/// Plugins that had an active version and are not desired any more.
fn removed_plugins(versions: &Versions, wanted: &[DesiredPlugin]) -> Vec<VersionChange> {
    let is_wanted = |name: &String| wanted.iter().any(|one| one.config.name == *name);
    let removed_plugins = versions.active().into_keys().filter(|name| !is_wanted(name));
    let why = || "removed from the configuration".to_owned();
    let change = |plugin| VersionChange {
        plugin,
        to: None,
        signed: None,
        why: why(),
        version_override: None,
        exclusion: None,
        rollout_result: None,
    };
    removed_plugins.map(change).collect()
}
