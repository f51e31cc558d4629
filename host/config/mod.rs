//! The configuration as a whole: the modules' own `Config`s under their section names, the
//! file, the environment, and the checks that cross sections.
//!
//! Loading collects every mistake it can find, each with its place, instead of stopping at
//! the first.

mod environment;
mod load;

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tracing::warn;

use crate::{admin, comets, gateway, kafka, offline, pipeline, policy, redis_client, sandbox, telemetry};

pub use load::{Mistake, Mistakes};

/// Everything that can be configured. Every key is optional; unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where records come from.
    pub kafka: kafka::Config,
    /// The directory's Redis, and the gateway's own keys in it.
    pub redis: redis_client::Config,
    /// How recipients are found.
    pub routing: pipeline::RoutingConfig,
    /// The comets and how they are called.
    pub comets: comets::Config,
    /// How long and how much.
    pub delivery: pipeline::DeliveryConfig,
    /// What becomes of the absent.
    pub offline: offline::Config,
    /// The plugin directory and how it is watched.
    pub policies: policy::PoliciesConfig,
    /// The policies, in the order in which they are asked.
    pub plugin: Vec<policy::PluginConfig>,
    /// The admin listener.
    pub admin: admin::Config,
    /// The log.
    pub log: telemetry::Config,
    /// The process as the system sees it.
    pub process: sandbox::Config,
}

/// The prefix of environment overrides: `HALLEY__SECTION__KEY`.
pub const ENVIRONMENT_PREFIX: &str = "HALLEY__";

impl Config {
    /// Reads a file (none means the defaults) and the environment on top of it. Relative
    /// paths are taken from the file's folder.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(file: Option<&Path>) -> Result<Self, Mistakes> {
        Self::load_with(file, environment::variables())
    }

    /// As [`Config::load`], with these environment variables.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        let Inspected { config, mistakes, .. } = Self::inspect_with(file, environment);
        if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
    }

    /// What can be read of a configuration, what is wrong with it and what is probably wrong.
    pub fn inspect(file: Option<&Path>) -> Inspected {
        Self::inspect_with(file, environment::variables())
    }

    fn inspect_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Inspected {
        let load::Loaded { mut config, mut mistakes, mut warnings } = load::load(file, environment);
        let base = file.and_then(Path::parent).map_or_else(PathBuf::new, Path::to_path_buf);
        config.take_paths_from(&base);
        let place = load::name_of(file);
        let placed = |text| Mistake { place: place.clone(), text };
        mistakes.extend(config.problems().into_iter().map(placed));
        warnings.extend(config.warnings().into_iter().map(placed));
        Inspected { config, mistakes, warnings }
    }

    /// What the gateway is built from.
    ///
    /// # Errors
    /// When the plugin directory cannot be read.
    pub fn gateway(&self) -> anyhow::Result<gateway::Config> {
        Ok(self.parts(self.plugins()?))
    }

    /// As [`Config::gateway`], without any plugin: nothing has to be read for it.
    pub fn without_plugins(&self) -> gateway::Config {
        self.parts(Vec::new())
    }

    fn parts(&self, plugins: Vec<policy::PluginConfig>) -> gateway::Config {
        gateway::Config {
            kafka: self.kafka.clone(),
            redis: self.redis.clone(),
            routing: self.routing.clone(),
            comets: self.comets.clone(),
            delivery: self.delivery.clone(),
            offline: self.offline.clone(),
            policies: self.policies.clone(),
            plugins,
        }
    }

    /// The wanted plugins: those of [[plugin]], then those of the plugin directory.
    ///
    /// # Errors
    /// When the plugin directory cannot be read.
    pub fn plugins(&self) -> anyhow::Result<Vec<policy::PluginConfig>> {
        policy::expand(&self.plugin, &self.policies)
    }

    /// What to watch for changes of policies while the gateway runs: the file itself, the
    /// plugins that it names, the plugin directory. Without a file, what this one names.
    pub fn sources(&self, file: Option<PathBuf>) -> policy::Sources {
        let (started_with, quiet, rescan) = (self.clone(), self.policies.quiet, self.policies.rescan);
        // Files are read again every few seconds; the operator is told once of each change.
        let told_of = Mutex::new(self.without_policies());
        let files = move || {
            let config = match &file {
                Some(file) => Self::load(Some(file))?,
                None => started_with.clone(),
            };
            let rest = config.without_policies();
            let mut told_of = told_of.lock();
            if *told_of != rest {
                warn!(
                    "the configuration changed outside of [[plugin]] and policies.directory; restart for that"
                );
                *told_of = rest;
            }
            drop(told_of);
            let plugins = config.plugins()?;
            let mut paths = config.policies.paths(&plugins);
            paths.extend(file.clone());
            Ok((plugins, paths))
        };
        policy::Sources { files: Box::new(files), quiet, rescan }
    }

    /// What the process may still do once it has restricted itself. Folders that it makes itself are
    /// made where there are none: only what exists can be named.
    pub fn allowed(&self) -> sandbox::Allowed {
        let mut writable: Vec<_> = self.policies.state_folder.iter().cloned().collect();
        writable.extend(self.admin.socket_folders());
        sandbox::Allowed { writable, ports: self.admin.ports() }
    }

    fn without_policies(&self) -> Self {
        let policies = policy::PoliciesConfig { directory: None, ..self.policies.clone() };
        Self { plugin: Vec::new(), policies, ..self.clone() }
    }

    fn take_paths_from(&mut self, base: &Path) {
        for plugin in &mut self.plugin {
            plugin.take_paths_from(base);
        }
        self.policies.take_paths_from(base);
        self.comets.discovery.take_paths_from(base);
        self.admin.take_paths_from(base);
    }

    /// What is wrong with values that have the right type.
    fn problems(&self) -> Vec<String> {
        let mut problems = self.kafka.problems();
        problems.extend(self.redis.problems());
        problems.extend(self.delivery.problems());
        problems.extend(self.comets.problems());
        problems.extend(self.offline.problems());
        problems.extend(self.policies.problems());
        problems.extend(self.admin.problems());
        problems.extend(self.log.problems());
        if self.routing.rooms == pipeline::Rooms::EveryComet && !self.comets.names_comets() {
            problems.push(
                "`routing.rooms = \"every-comet\"` needs `comets.nodes` or `comets.discovery`: no comet is ever learned from a directory that is not asked".into(),
            );
        }
        if self.kafka.topics.contains(&self.offline.notify_topic) {
            let topic = &self.offline.notify_topic;
            problems.push(format!("`offline.notify_topic` is `{topic}`, which is also consumed"));
        }
        let topics = [&self.kafka.dead_letter_topic, &self.offline.notify_topic];
        if topics[0] == topics[1] && !topics[0].is_empty() {
            problems.push(format!(
                "`kafka.dead_letter_topic` and `offline.notify_topic` are both `{}`: notifications would be read as dead letters",
                topics[0]
            ));
        }
        problems
    }

    /// What works, and was probably not meant.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.kafka.warnings();
        warnings.extend(self.delivery.warnings());
        if self.comets.connect_timeout > self.delivery.timeout {
            warnings.push(format!(
                "`comets.connect_timeout` ({:?}) has no effect beyond `delivery.timeout` ({:?}), the deadline of a call",
                self.comets.connect_timeout, self.delivery.timeout
            ));
        }
        if self.offline.default == offline::DefaultDisposition::Store
            && self.routing.knows_no_users(self.comets.dialect)
        {
            warnings.push(
                "`offline.default` is \"store\", and nothing is stored: keys are connections (`routing.push_keys`) and rooms are not looked up (`routing.rooms`), so that no user is known who could be away; set `offline.default = \"drop\"`, or `routing.push_keys = \"users\"` where keys are users".to_owned(),
            );
        }
        if self.comets.breaker_patience >= self.delivery.give_up_after {
            warnings.push(format!(
                "`comets.breaker_patience` ({:?}) is not below `delivery.give_up_after` ({:?}): every message to a dead comet waits for as long before its breaker opens",
                self.comets.breaker_patience, self.delivery.give_up_after
            ));
        }
        warnings
    }
}

/// A configuration as far as it can be read.
#[derive(Debug, Clone)]
pub struct Inspected {
    /// What could be read; defaults stand in for the rest.
    pub config: Config,
    /// Every mistake.
    pub mistakes: Vec<Mistake>,
    /// What works, and was probably not meant.
    pub warnings: Vec<Mistake>,
}

#[cfg(test)]
mod tests;
