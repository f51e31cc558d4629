//! Why a set of plugins is refused: all problems of all plugins, with what helps.

use crate::artifact::PluginSource;
use crate::mistake::Mistake;
use crate::policy::config::PluginConfig;

/// A problem with one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
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
    /// The key below its `[[plugin]]`; empty if it is about all of it.
    #[serde(skip)]
    pub key: Vec<String>,
}

/// What helps with a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProblemKind {
    /// Perhaps another attempt, although neither the configuration nor a file changes.
    #[default]
    Transient,
    /// Only a change of the configuration or of a file.
    Lasting,
    /// Only a change of the configuration or of a file: the configuration does not fit the schema of the
    /// plugin's settings.
    Settings,
    /// The plugin refused its own configuration. A plugin may decide that by the time, so another attempt
    /// may help.
    Configuration,
}

impl ProblemKind {
    /// Whether another attempt may succeed although neither the configuration nor a file changes.
    pub(super) fn is_transient(self) -> bool {
        !matches!(self, Self::Lasting | Self::Settings)
    }
}

impl PluginProblem {
    pub(super) fn of(config: &PluginConfig, message: impl Into<String>) -> Self {
        let (plugin, path) = (config.name.clone(), config.path.clone());
        Self { plugin, path, message: message.into(), ..Self::default() }
    }

    /// A mistake in its configuration: it stays until that changes.
    pub(super) fn mistake(config: &PluginConfig, mistake: Mistake) -> Self {
        let key = mistake.keys.into_iter().next().unwrap_or_default();
        Self { kind: ProblemKind::Lasting, key, ..Self::of(config, mistake.text) }
    }

    /// A problem that does not belong to one plugin.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
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
#[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
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
