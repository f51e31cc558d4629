//! Turns the desired plugins into a set of prepared ones, or into a list of all problems: all or
//! nothing.
//!
//! Only files that nobody named are beside this: what lies in the plugin directory, never was in force
//! and cannot come in force is left out with its reason, and stops neither the start nor the others.
//!
//! Here the file of a plugin, or what stands in for it, is read; what the new set means for the
//! versions that are kept is worked out beside, and settled before the set comes in force.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::artifact::{
    Against, Arrived, Cause, Change, Choice, Intake, Override, Tried, Versions, check_order,
};
use crate::digest;
use crate::policy::config::PluginConfig;
use crate::policy::entry::{Entry, Workshop};
use crate::policy::plugin::Plugin;
use crate::policy::rollout::trial::Candidate;
use crate::wasm;

/// A desired plugin.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) config: PluginConfig,
    pub(super) want: Want,
}

/// Which version of a plugin is desired.
#[derive(Clone, Debug)]
pub(super) enum Want {
    /// Its file, or its current override.
    File,
    /// An operator's change.
    ByHand(ByHand),
    /// The active version, whatever its file is now: an operator changed another plugin.
    AsItIs,
}

/// A change that an operator or the quarantine makes to one plugin.
#[derive(Clone, Debug)]
pub(super) struct ByHand {
    pub(super) pick: Pick,
    /// Its cause; `None` if it only keeps what was active before.
    pub(super) cause: Option<Cause>,
    pub(super) why: String,
    /// Why the version that was active is excluded from rollbacks.
    pub(super) against: Option<Against>,
    /// The candidate whose rollout ends with this change.
    pub(super) tried: Option<Tried>,
}

impl ByHand {
    /// Keeps the version that was active.
    pub(super) fn going_on(hash: &str, why: &str) -> Self {
        let (pick, why) = (Pick::Kept(hash.to_owned()), why.to_owned());
        Self { pick, cause: None, why, against: None, tried: None }
    }
}

/// The version that a change selects.
#[derive(Clone, Debug)]
pub(super) enum Pick {
    /// Its file, discarding any override.
    File,
    /// This version, which was uploaded.
    Upload(Arrived),
    /// The stored version with this hash.
    Kept(String),
    /// None: the chain continues without the plugin.
    Without,
}

/// A prepared set.
pub(super) struct Prepared {
    pub(super) entries: Vec<Arc<Entry>>,
    /// The changes to stored versions.
    pub(super) changes: Vec<Change>,
    /// Files of the plugin directory that cannot be plugins, and never were in force.
    pub(super) left_out: Vec<Problem>,
}

/// A problem with one plugin.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The plugin's name; empty if the problem does not belong to one plugin.
    pub plugin: String,
    /// The plugin's file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The problem and its remedy.
    pub message: String,
}

impl Problem {
    pub(super) fn of(config: &PluginConfig, message: impl Into<String>) -> Self {
        Self { plugin: config.name.clone(), path: config.path.clone(), message: message.into() }
    }

    /// A problem that does not belong to one plugin.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self { plugin: String::new(), path: PathBuf::new(), message: message.into() }
    }
}

/// A file's name may be no text at all; what is wrong with it is told all the same.
fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.plugin.is_empty() && self.path == Path::new("") {
            return f.write_str(&self.message);
        }
        write!(f, "plugin `{}` ({}) {}", self.plugin, self.path.display(), self.message)
    }
}

/// A set that was refused, with all its problems.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl Refused {
    /// With one reason that does not belong to one plugin.
    pub fn because(why: impl Into<String>) -> Self {
        Self { problems: vec![Problem::general(why)] }
    }
}

impl std::fmt::Display for Refused {
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

/// The dependencies of preparing a set.
pub(super) struct Means {
    pub(super) workshop: Workshop,
    /// Loads plugins, and knows the trusted keys.
    pub(super) intake: Intake,
    pub(super) versions: Versions,
}

/// Prepares a whole set, reusing the unchanged plugins of the active one.
///
/// # Errors
/// With the problems of all plugins.
pub(super) fn prepare(
    means: &Means,
    wanted: &[Wanted],
    in_force: &[Arc<Entry>],
) -> Result<Prepared, Refused> {
    let mut problems = Vec::new();
    let mut prepared = Prepared {
        entries: Vec::with_capacity(wanted.len()),
        changes: gone(&means.versions, wanted),
        left_out: vec![],
    };
    for (at, one) in wanted.iter().enumerate() {
        let config = &one.config;
        let mut mistakes = config.validate();
        let is_double = wanted[..at].iter().any(|earlier| earlier.config.name == config.name);
        if is_double {
            mistakes.push("has the name of a plugin before it; names are unique".to_owned());
        }
        if mistakes.is_empty() {
            mistakes.extend(prepare_one(means, one, in_force, &mut prepared).err());
        }
        let mistakes = mistakes.into_iter().map(|mistake| Problem::of(config, mistake));
        // The name that a double has is another one's.
        let may_be_left_out = (is_double && config.found) || is_stray(&means.versions, config, in_force);
        // At the process's end nothing is compiled any more, which says nothing of the files.
        if may_be_left_out && !wasm::compile::is_ending() {
            prepared.left_out.extend(mistakes);
        } else {
            problems.extend(mistakes);
        }
    }
    if problems.is_empty() { Ok(prepared) } else { Err(Refused { problems }) }
}

/// A file that lies in the plugin directory, and is nobody's. One that was in force is not: its last
/// good version goes on, and its update is refused.
fn is_stray(versions: &Versions, config: &PluginConfig, in_force: &[Arc<Entry>]) -> bool {
    let is_in_force = || in_force.iter().any(|entry| entry.plugin.config.name == config.name);
    config.found && !is_in_force() && !versions.in_force().contains_key(&config.name)
}

impl Prepared {
    /// Whether each of so many workers will have room for its instances of the set. Leaves out
    /// what has none, where it is a stray.
    ///
    /// # Errors
    /// The plugin that has none. What a worker cannot start must not come in force.
    pub(super) fn fit(
        &mut self,
        versions: &Versions,
        in_force: &[Arc<Entry>],
        workers: usize,
    ) -> Result<(), Refused> {
        while let Err((plugin, why)) = check_room(&self.entries, workers.max(1)) {
            let problem = Problem::of(&plugin.config, why);
            if !is_stray(versions, &plugin.config, in_force) {
                return Err(Refused { problems: vec![problem] });
            }
            let name = &plugin.config.name;
            self.entries.retain(|entry| entry.plugin.config.name != *name);
            self.changes.retain(|change| change.plugin != *name);
            self.left_out.push(problem);
        }
        Ok(())
    }
}

fn check_room(entries: &[Arc<Entry>], workers: usize) -> Result<(), (Arc<Plugin>, String)> {
    let candidate = |entry: &Arc<Entry>| entry.trial.as_ref().map(|trial| Arc::clone(&trial.candidate));
    let plugins = entries.iter().map(|entry| Arc::clone(&entry.plugin));
    let all: Vec<Arc<Plugin>> = plugins.chain(entries.iter().filter_map(candidate)).collect();
    let mut held = Vec::new();
    for _ in 0..workers {
        for plugin in &all {
            held.push(plugin.reserve().map_err(|failure| {
                let why = format!("cannot be started once for each of {workers} workers: it {failure}");
                (Arc::clone(plugin), why)
            })?);
        }
    }
    Ok(())
}

fn prepare_one(
    means: &Means,
    wanted: &Wanted,
    in_force: &[Arc<Entry>],
    prepared: &mut Prepared,
) -> Result<(), String> {
    let Means { workshop, intake, versions } = means;
    let by_hand = match &wanted.want {
        Want::AsItIs => {
            let same = in_force.iter().filter(|entry| entry.plugin.config.name == wanted.config.name);
            prepared.entries.extend(same.cloned());
            return Ok(());
        }
        Want::ByHand(by_hand) => Some(by_hand),
        Want::File => None,
    };
    let change = decide(intake, versions, &wanted.config, by_hand)?;
    if let Some((_, Arrived { bytes, .. })) = &change.to {
        let candidate = candidate(intake, versions, &wanted.config, &change)?;
        let known: Vec<Arc<Entry>> = in_force.iter().chain(&prepared.entries).map(Arc::clone).collect();
        // The file is untrusted and goes through compilers here; a panic in one of them must not end
        // the process.
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            Entry::prepare(workshop, &wanted.config, bytes, candidate.as_ref(), &known)
        }));
        let entry = attempt.unwrap_or_else(|_| Err("made the compiler panic; is the file complete?".into()));
        prepared.entries.push(entry?);
    }
    prepared.changes.push(change);
    Ok(())
}

/// Which version decides from now on, and what stands in for the plugin's file. Whatever came in
/// just now has to be the pinned one; what decides has to be trusted, each time.
fn decide(
    intake: &Intake,
    versions: &Versions,
    config: &PluginConfig,
    by_hand: Option<&ByHand>,
) -> Result<Change, String> {
    let (name, pin) = (&config.name, config.sha256.as_deref());
    let file = intake.fetch(&config.path);
    let file_hash = file.as_ref().ok().map(|file| digest::hash(&file.bytes));
    let known = versions.record(name).and_then(|record| record.instead);
    let change = |decides: Option<Trusted>, why: &str, instead| {
        let against = by_hand.and_then(|by_hand| by_hand.against.clone());
        let tried = by_hand.and_then(|by_hand| by_hand.tried.clone());
        let signed = decides.as_ref().and_then(|trusted| trusted.signed);
        let to = decides.map(|trusted| (trusted.hash, trusted.arrived));
        Change { plugin: name.clone(), to, signed, why: why.to_owned(), instead, against, tried }
    };
    let trusted =
        |arrived: Arrived, pin: Option<&str>| trust_new(intake, versions, config, arrived, pin).map(Some);
    // A version that was active before may come back whatever its number is: only an operator or a
    // quarantine brings it back.
    let kept = |hash: &str, pin: Option<&str>| {
        let kept = versions.file(name, hash).and_then(|arrived| Trusted::new(intake, name, arrived, pin));
        kept.map(Some).map_err(|why| format!("has a stored version, {hash}, that {why}"))
    };
    let Some(by_hand) = by_hand else {
        let why = known.as_ref().map_or("", |known| &known.why).to_owned();
        return Ok(match versions.choose(name, file_hash.as_deref()) {
            Choice::File => change(trusted(file?, pin)?, "its file", None),
            Choice::Kept(hash) => {
                // A pin is newer than a push; after a rollback or a quarantine it names the abandoned
                // version.
                let pushed = known.as_ref().is_some_and(|known| known.cause == Cause::Pushed);
                change(kept(&hash, pin.filter(|_| pushed))?, &why, known)
            }
            Choice::Without => change(None, &why, known),
        });
    };
    let to = match &by_hand.pick {
        Pick::File => trusted(file?, pin)?,
        Pick::Upload(upload) => trusted(upload.clone(), pin)?,
        Pick::Kept(hash) => kept(hash, None)?,
        Pick::Without => None,
    };
    let with = to.as_ref().map(|trusted| trusted.hash.clone());
    let instead = match by_hand.cause {
        // The file has the same content.
        _ if with.is_some() && with == file_hash => None,
        None => known,
        Some(cause) => {
            let (why, since) = (by_hand.why.clone(), SystemTime::now());
            Some(Override { file: file_hash, with, cause, why, since })
        }
    };
    Ok(change(to, &by_hand.why, instead))
}

/// A version that may decide.
struct Trusted {
    hash: String,
    arrived: Arrived,
    /// The number that it is signed with.
    signed: Option<u64>,
}

impl Trusted {
    fn new(intake: &Intake, name: &str, arrived: Arrived, pin: Option<&str>) -> Result<Self, String> {
        let signed = intake.check(name, &arrived, pin)?;
        Ok(Self { hash: digest::hash(&arrived.bytes), arrived, signed })
    }
}

/// Checks a new version: it has to match the pin, be trusted, and not be older than a version that
/// was active.
fn trust_new(
    intake: &Intake,
    versions: &Versions,
    config: &PluginConfig,
    arrived: Arrived,
    pin: Option<&str>,
) -> Result<Trusted, String> {
    let trusted = Trusted::new(intake, &config.name, arrived, pin)?;
    if intake.asks_for_signatures() && !config.allow_downgrade {
        let highest = versions.record(&config.name).and_then(|record| record.highest);
        check_order(&config.name, trusted.signed, highest)?;
    }
    Ok(trusted)
}

/// The candidate to try, unless its rollout has ended already, or it is the deciding version.
fn candidate(
    intake: &Intake,
    versions: &Versions,
    config: &PluginConfig,
    change: &Change,
) -> Result<Option<Candidate>, String> {
    let Some(trial) = &config.trial else { return Ok(None) };
    let pin = trial.sha256.as_deref();
    let trusted =
        intake.fetch(&trial.path).and_then(|arrived| trust_new(intake, versions, config, arrived, pin));
    let trusted = trusted.map_err(|why| format!("has a candidate ({}) that {why}", trial.path.display()))?;
    let Trusted { hash, arrived, .. } = trusted;
    let tried = versions.record(&config.name).and_then(|record| record.tried);
    let over = [tried.as_ref(), change.tried.as_ref()].into_iter().flatten().any(|tried| tried.hash == hash);
    let decides = change.to.as_ref().is_some_and(|(deciding, _)| *deciding == hash);
    Ok((!over && !decides).then(|| Candidate { config: trial.clone(), arrived, hash }))
}

/// Plugins that had an active version and are not desired any more.
fn gone(versions: &Versions, wanted: &[Wanted]) -> Vec<Change> {
    let is_wanted = |name: &String| wanted.iter().any(|one| one.config.name == *name);
    let gone = versions.in_force().into_keys().filter(|name| !is_wanted(name));
    let why = || "removed from the configuration".to_owned();
    let change = |plugin| Change {
        plugin,
        to: None,
        signed: None,
        why: why(),
        instead: None,
        against: None,
        tried: None,
    };
    gone.map(change).collect()
}
