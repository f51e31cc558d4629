//! From what is wanted to a set of prepared plugins, or to everything that is wrong with it:
//! all of it or nothing.
//!
//! Here the file of a plugin, or what stands in for it, is read; what the new set means for the
//! versions that are kept is worked out beside, and settled before the set comes in force.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::artifact::{
    self, Against, Arrived, Cause, Change, Choice, Intake, Override, Tried, Versions, check_order,
};
use crate::digest;
use crate::policy::config::PluginConfig;
use crate::policy::entry::{Entry, Workshop};
use crate::policy::rollout::trial::Candidate;

/// A plugin that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) config: PluginConfig,
    pub(super) want: Want,
}

/// Which version of a plugin is wanted.
#[derive(Clone, Debug)]
pub(super) enum Want {
    /// Its file, or what stands in for that already.
    File,
    /// What was said of it by hand.
    ByHand(ByHand),
    /// What is in force, whatever its file is by now: something was said of another plugin.
    AsItIs,
}

/// What an operator, or the quarantine, wants of one plugin.
#[derive(Clone, Debug)]
pub(super) struct ByHand {
    pub(super) pick: Pick,
    /// How it came about. None where it only goes on with what was in force before.
    pub(super) cause: Option<Cause>,
    pub(super) why: String,
    /// What is held against the version that was in force.
    pub(super) against: Option<Against>,
    /// The candidate whose trial ends with this.
    pub(super) tried: Option<Tried>,
}

impl ByHand {
    /// What was in force goes on.
    pub(super) fn going_on(hash: &str, why: &str) -> Self {
        let (pick, why) = (Pick::Kept(hash.to_owned()), why.to_owned());
        Self { pick, cause: None, why, against: None, tried: None }
    }
}

/// Which version that is.
#[derive(Clone, Debug)]
pub(super) enum Pick {
    /// Its file, whatever stood in for it.
    File,
    /// This one, which arrived just now.
    Upload(Arrived),
    /// The kept one with this hash.
    Kept(String),
    /// None: the chain goes on without the plugin.
    Without,
}

/// A prepared set.
pub(super) struct Prepared {
    pub(super) entries: Vec<Arc<Entry>>,
    /// What it means for the versions that are kept.
    pub(super) changes: Vec<Change>,
    /// Files of the plugin directory that cannot be read, and never were in force.
    pub(super) left_out: Vec<Problem>,
}

/// What is wrong with one plugin.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The plugin's name; empty when the problem is not one plugin's.
    pub plugin: String,
    /// The plugin's file.
    pub path: PathBuf,
    /// What is wrong and what mends it.
    pub message: String,
}

impl Problem {
    pub(super) fn of(config: &PluginConfig, message: impl Into<String>) -> Self {
        Self { plugin: config.name.clone(), path: config.path.clone(), message: message.into() }
    }

    /// A problem that is not one plugin's.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self { plugin: String::new(), path: PathBuf::new(), message: message.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.plugin.is_empty() && self.path == Path::new("") {
            return f.write_str(&self.message);
        }
        write!(f, "plugin `{}` ({}) {}", self.plugin, self.path.display(), self.message)
    }
}

/// A set that was not taken into force, with everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl Refused {
    /// With one reason that is not one plugin's.
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

/// What sets are prepared with.
pub(super) struct Means {
    pub(super) workshop: Workshop,
    /// Where plugins come from and which are trusted.
    pub(super) intake: Intake,
    pub(super) versions: Versions,
}

/// Prepares a whole set, reusing from the one in force what did not change.
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
        if wanted[..at].iter().any(|earlier| earlier.config.name == config.name) {
            problems.push(Problem::of(config, "has the name of a plugin before it; names are unique"));
        }
        let mistakes = config.validate();
        if !mistakes.is_empty() {
            problems.extend(mistakes.into_iter().map(|mistake| Problem::of(config, mistake)));
            continue;
        }
        match prepare_one(means, one, in_force, &mut prepared) {
            Ok(()) => {}
            Err(why) => problems.push(Problem::of(config, why)),
        }
    }
    if problems.is_empty() { Ok(prepared) } else { Err(Refused { problems }) }
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
        Want::File => {
            if let Some(stray) = stray(versions, &wanted.config, in_force) {
                prepared.left_out.push(stray);
                return Ok(());
            }
            None
        }
    };
    let change = decide(intake, versions, &wanted.config, by_hand)?;
    if let Some((_, Arrived { bytes, .. })) = &change.to {
        let candidate = candidate(intake, versions, &wanted.config, &change)?;
        let known: Vec<Arc<Entry>> = in_force.iter().chain(&prepared.entries).map(Arc::clone).collect();
        // A file from outside goes through compilers here; a bug of theirs must not end us.
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            Entry::prepare(workshop, &wanted.config, bytes, candidate.as_ref(), &known)
        }));
        let entry = attempt.unwrap_or_else(|_| Err("made the compiler panic; is the file complete?".into()));
        prepared.entries.push(entry?);
    }
    prepared.changes.push(change);
    Ok(())
}

/// A file that lies in the plugin directory, cannot be read, and is nobody's: it is left out, and
/// stops neither the start nor the others. One that was in force goes on, and its update is refused.
fn stray(versions: &Versions, config: &PluginConfig, in_force: &[Arc<Entry>]) -> Option<Problem> {
    let was_in_force = in_force.iter().any(|entry| entry.plugin.config.name == config.name)
        || versions.in_force().contains_key(&config.name);
    if !config.found || was_in_force {
        return None;
    }
    Some(Problem::of(config, artifact::read(&config.path).err()?))
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
    // What was active before may come back, whatever its number is: nobody but an operator, or a
    // quarantine, brings it back.
    let kept = |hash: &str, pin: Option<&str>| {
        let kept = versions.file(name, hash).and_then(|arrived| Trusted::new(intake, name, arrived, pin));
        kept.map(Some).map_err(|why| format!("has a kept version, {hash}, that {why}"))
    };
    let Some(by_hand) = by_hand else {
        let why = known.as_ref().map_or("", |known| &known.why).to_owned();
        return Ok(match versions.choose(name, file_hash.as_deref()) {
            Choice::File => change(trusted(file?, pin)?, "its file", None),
            Choice::Kept(hash) => {
                // A pin is later than the push; after a rollback or a quarantine it names what was left.
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
        // The file says the same.
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

/// What came in just now, where it may decide: it is the pinned one, trusted, and not an older one
/// than was active before.
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

/// The candidate to try, unless its trial ended already, or it is what decides anyway.
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

/// What had a version in force and is not wanted any more.
fn gone(versions: &Versions, wanted: &[Wanted]) -> Vec<Change> {
    let is_wanted = |name: &String| wanted.iter().any(|one| one.config.name == *name);
    let gone = versions.in_force().into_keys().filter(|name| !is_wanted(name));
    let why = || "taken out of the configuration".to_owned();
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
