//! A policy set: the plugins that decide together, prepared as a whole or not at all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decision::PluginVersion;
use crate::policy::chain::Chain;
use crate::policy::config::{OnError, PluginConfig};
use crate::policy::guest::runtime::Runtime;
use crate::policy::plugin::Plugin;

/// Which policy set: counts the swaps of a process, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Generation(pub u64);

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Plugins in configured order. Immutable; freed with the last of its chains.
pub struct PolicySet {
    generation: Generation,
    plugins: Vec<Arc<Plugin>>,
    versions: Vec<PluginVersion>,
}

impl PolicySet {
    pub(super) fn new(generation: Generation, plugins: Vec<Arc<Plugin>>) -> Self {
        let versions = plugins.iter().map(|plugin| plugin.version.clone()).collect();
        Self { generation, plugins, versions }
    }

    /// Which set this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The plugins' names and hashes, in configured order.
    pub fn versions(&self) -> &[PluginVersion] {
        &self.versions
    }

    /// Whether any plugin filters.
    pub fn has_filter(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.module.hooks.filter.is_some())
    }

    /// Whether any plugin regroups rooms.
    pub fn has_grouping(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.module.hooks.grouping.is_some())
    }

    /// Whether any plugin decides about the absent.
    pub fn has_offline(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.module.hooks.offline.is_some())
    }

    /// Whether any plugin has `on_error = "stall"`. Where none has, nothing stalls, and a
    /// caller need not keep its batch to try it again.
    pub fn may_stall(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.config.on_error == OnError::Stall)
    }

    /// A chain of this set, for one worker. Instances are made when they are needed.
    pub fn chain(self: &Arc<Self>) -> Chain {
        Chain::new(Arc::clone(self))
    }

    pub(super) fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }
}

impl std::fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicySet")
            .field("generation", &self.generation)
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
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
    fn of(config: &PluginConfig, message: impl Into<String>) -> Self {
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
    wanted: &[PluginConfig],
    in_force: &[Arc<Plugin>],
) -> Result<Vec<Arc<Plugin>>, Refused> {
    let mut problems = Vec::new();
    let mut prepared = Vec::with_capacity(wanted.len());
    for (at, config) in wanted.iter().enumerate() {
        if wanted[..at].iter().any(|earlier| earlier.name == config.name) {
            problems.push(Problem::of(config, "has the name of a plugin before it; names are unique"));
        }
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            problems.extend(mistakes.into_iter().map(|mistake| Problem::of(config, mistake)));
            continue;
        }
        let known: Vec<Arc<Plugin>> = in_force.iter().chain(&prepared).map(Arc::clone).collect();
        // A file from outside goes through compilers here; a bug of theirs must not end us.
        let attempt = catch_unwind(AssertUnwindSafe(|| Plugin::prepare(runtime, config, &known)));
        match attempt {
            Ok(Ok(plugin)) => prepared.push(plugin),
            Ok(Err(why)) => problems.push(Problem::of(config, why)),
            Err(_) => problems.push(Problem::of(config, "made the compiler panic; is the file complete?")),
        }
    }
    if problems.is_empty() { Ok(prepared) } else { Err(Refused { problems }) }
}
