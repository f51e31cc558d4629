//! From what is wanted to a set of prepared plugins, or to everything that is wrong with it:
//! all of it or nothing.
//!
//! Here the file of a plugin, or what stands in for it, is read; what the new set means for the
//! versions that are kept is worked out beside, and settled before the set comes in force.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::policy::config::PluginConfig;
use crate::policy::guest::module;
use crate::policy::guest::runtime::Runtime;
use crate::policy::plugin::{Candidate, Plugin};
use crate::policy::versions::{Against, Cause, Change, Choice, Override, Tried, Versions};

/// A plugin that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) config: PluginConfig,
    /// What was said of it by hand, if anything; else its file decides, or what stands in for
    /// that already.
    pub(super) by_hand: Option<ByHand>,
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

/// Which version that is.
#[derive(Clone, Debug)]
pub(super) enum Pick {
    /// Its file, whatever stood in for it.
    File,
    /// This one, which arrived just now.
    Upload(Arc<[u8]>),
    /// The kept one with this hash.
    Kept(String),
    /// None: the chain goes on without the plugin.
    Without,
    /// What decides already.
    Same,
}

/// A prepared set.
pub(super) struct Prepared {
    pub(super) plugins: Vec<Arc<Plugin>>,
    /// What it means for the versions that are kept.
    pub(super) changes: Vec<Change>,
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

/// Prepares a whole set, reusing from the one in force what did not change.
///
/// # Errors
/// With the problems of all plugins.
pub(super) fn prepare(
    runtime: &Arc<Runtime>,
    versions: &Versions,
    wanted: &[Wanted],
    in_force: &[Arc<Plugin>],
) -> Result<Prepared, Refused> {
    let mut problems = Vec::new();
    let mut prepared =
        Prepared { plugins: Vec::with_capacity(wanted.len()), changes: gone(versions, wanted) };
    for (at, one) in wanted.iter().enumerate() {
        let config = &one.config;
        if wanted[..at].iter().any(|earlier| earlier.config.name == config.name) {
            problems.push(Problem::of(config, "has the name of a plugin before it; names are unique"));
        }
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            problems.extend(mistakes.into_iter().map(|mistake| Problem::of(config, mistake)));
            continue;
        }
        match prepare_one(runtime, versions, one, in_force, &mut prepared) {
            Ok(()) => {}
            Err(why) => problems.push(Problem::of(config, why)),
        }
    }
    if problems.is_empty() { Ok(prepared) } else { Err(Refused { problems }) }
}

fn prepare_one(
    runtime: &Arc<Runtime>,
    versions: &Versions,
    wanted: &Wanted,
    in_force: &[Arc<Plugin>],
    prepared: &mut Prepared,
) -> Result<(), String> {
    let change = decide(versions, wanted)?;
    if let Some((_, bytes)) = &change.to {
        let candidate = candidate(versions, wanted, &change)?;
        let known: Vec<Arc<Plugin>> = in_force.iter().chain(&prepared.plugins).map(Arc::clone).collect();
        // A file from outside goes through compilers here; a bug of theirs must not end us.
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            Plugin::prepare(runtime, &wanted.config, bytes, candidate.as_ref(), &known)
        }));
        let plugin = attempt.unwrap_or_else(|_| Err("made the compiler panic; is the file complete?".into()));
        prepared.plugins.push(plugin?);
    }
    prepared.changes.push(change);
    Ok(())
}

/// Which version decides from now on, and what stands in for the plugin's file.
fn decide(versions: &Versions, wanted: &Wanted) -> Result<Change, String> {
    let name = &wanted.config.name;
    let file = module::read(&wanted.config.path).map(Arc::<[u8]>::from);
    let file_hash = file.as_ref().ok().map(|bytes| module::hash(bytes));
    let known = versions.record(name).and_then(|record| record.instead);
    let change = |to, why: &str, instead| {
        let against = wanted.by_hand.as_ref().and_then(|by_hand| by_hand.against.clone());
        let tried = wanted.by_hand.as_ref().and_then(|by_hand| by_hand.tried.clone());
        Change { plugin: name.clone(), to, why: why.to_owned(), instead, against, tried }
    };
    let with_hash = |bytes: Arc<[u8]>| Some((module::hash(&bytes), bytes));
    let by_hand = wanted.by_hand.as_ref().filter(|by_hand| !matches!(by_hand.pick, Pick::Same));
    let Some(by_hand) = by_hand else {
        let why = known.as_ref().map_or("", |known| &known.why).to_owned();
        return Ok(match versions.choose(name, file_hash.as_deref()) {
            Choice::File => change(with_hash(file?), "its file", None),
            Choice::Kept(hash) => change(with_hash(versions.file(&hash)?), &why, known),
            Choice::Without => change(None, &why, known),
        });
    };
    let to = match &by_hand.pick {
        Pick::File => with_hash(file?),
        Pick::Upload(bytes) => with_hash(Arc::clone(bytes)),
        Pick::Kept(hash) => with_hash(versions.file(hash)?),
        Pick::Without | Pick::Same => None,
    };
    let with = to.as_ref().map(|(hash, _)| hash.clone());
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

/// The candidate to try, unless its trial ended already, or it is what decides anyway.
fn candidate(versions: &Versions, wanted: &Wanted, change: &Change) -> Result<Option<Candidate>, String> {
    let Some(trial) = &wanted.config.trial else { return Ok(None) };
    let read = module::read(&trial.path);
    let bytes = read.map_err(|why| format!("has a candidate ({}) that {why}", trial.path.display()))?;
    let hash = module::hash(&bytes);
    let tried = versions.record(&wanted.config.name).and_then(|record| record.tried);
    let over = [tried.as_ref(), change.tried.as_ref()].into_iter().flatten().any(|tried| tried.hash == hash);
    let decides = change.to.as_ref().is_some_and(|(deciding, _)| *deciding == hash);
    Ok((!over && !decides).then(|| Candidate { config: trial.clone(), bytes: bytes.into(), hash }))
}

/// What had a version in force and is not wanted any more.
fn gone(versions: &Versions, wanted: &[Wanted]) -> Vec<Change> {
    let is_wanted = |name: &String| wanted.iter().any(|one| one.config.name == *name);
    let gone = versions.in_force().into_keys().filter(|name| !is_wanted(name));
    let why = || "taken out of the configuration".to_owned();
    gone.map(|plugin| Change { plugin, to: None, why: why(), instead: None, against: None, tried: None })
        .collect()
}
