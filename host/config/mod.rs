//! The whole configuration: the modules' own `Config`s by section, loaded from a file and the
//! environment, and checked across sections.
//!
//! Loading collects every mistake with its location instead of stopping at the first.

mod active;
pub mod admin;
pub mod api;
mod environment;
pub mod listen;
mod load;
mod mistake;
mod origins;
mod tables;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use crate::mistake::{Mistake, mistake};
use crate::{archive, comets, history, inbox, kafka, pipeline, policy, redis_client, sandbox, telemetry};

pub use active::ActiveValue;
pub use environment::ENVIRONMENT_PREFIX;
pub use load::ConfigReport;
pub use mistake::{ConfigError, ConfigErrors};

/// Everything that can be configured. Every key is optional; unknown keys are rejected.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
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
    /// Deadlines, batch sizes and limits of delivery.
    pub delivery: pipeline::DeliveryConfig,
    /// What happens to messages for absent users.
    pub offline: inbox::Config,
    /// The messages of rooms, each once.
    pub history: history::Config,
    /// Stored messages in MySQL, for longer than Redis keeps them.
    pub archive: archive::Config,
    /// The plugin directory and how it is watched.
    pub policies: policy::PoliciesConfig,
    /// The policies, in the order in which they run.
    pub plugin: Vec<policy::PluginConfig>,
    /// The admin listener.
    pub admin: admin::Config,
    /// The API for comets and backends.
    pub api: api::Config,
    /// The log.
    pub log: telemetry::Config,
    /// Traces of messages.
    pub traces: telemetry::traces::Config,
    /// Process-level settings.
    pub process: sandbox::Config,
}

impl Config {
    /// The configured plugins: those of [[plugin]], then those of the plugin directory.
    ///
    /// # Errors
    /// If the plugin directory cannot be read.
    pub fn plugins(&self) -> anyhow::Result<Vec<policy::PluginConfig>> {
        policy::expand(&self.plugin, &self.policies)
    }

    /// What to watch for policy changes at run time: the configuration file, its plugins and the
    /// plugin directory. Without a file, the plugins of this configuration.
    pub fn sources(&self, file: Option<PathBuf>) -> policy::PolicySources {
        let (started_with, debounce, rescan_interval) =
            (self.clone(), self.policies.debounce, self.policies.rescan_interval);
        // Files are read every few seconds; each change is reported once.
        let last_reported = Mutex::new(self.without_policies());
        let files = move || {
            let config = match &file {
                Some(file) => Self::load(Some(file))?,
                None => started_with.clone(),
            };
            let rest = config.without_policies();
            let mut last_reported = last_reported.lock();
            if *last_reported != rest {
                warn!(
                    keys = last_reported.differences(&rest).join(", "),
                    "the configuration changed outside [[plugin]] and policies.directory; restart to apply it"
                );
                *last_reported = rest;
            }
            drop(last_reported);
            let plugins = config.plugins()?;
            let mut paths = config.policies.paths(&plugins);
            paths.extend(file.clone());
            Ok((plugins, paths))
        };
        let reload = Arc::default();
        policy::PolicySources { files: Box::new(files), debounce, rescan_interval, reload }
    }

    fn without_policies(&self) -> Self {
        let policies = policy::PoliciesConfig { directory: None, ..self.policies.clone() };
        Self { plugin: Vec::new(), policies, ..self.clone() }
    }

    fn resolve_paths(&mut self, base: &Path) {
        for plugin in &mut self.plugin {
            plugin.resolve_paths(base);
        }
        self.policies.resolve_paths(base);
        self.comets.discovery.resolve_paths(base);
        self.comets.tls.resolve_paths(base);
        self.admin.resolve_paths(base);
        self.api.resolve_paths(base);
        self.traces.resolve_paths(base);
    }

    /// Invalid values of the right type.
    fn validate(&self) -> Vec<Mistake> {
        let sections = [
            self.kafka.validate(),
            self.redis.validate(),
            self.routing.cache.validate(),
            self.delivery.validate(),
            self.comets.validate(),
            self.offline.validate(),
            self.archive.validate(),
            self.history.validate(),
            self.policies.validate(),
            self.admin.validate(),
            self.api.validate(),
            self.log.validate(),
            self.traces.validate(),
        ];
        sections.concat()
    }

    /// Values that are valid by themselves and not together.
    fn contradictions(&self) -> Vec<Mistake> {
        let mut problems = listen::overlaps(&self.listeners());
        if self.redis.is_memory() && !self.history.rooms.is_empty() {
            let text = "needs Redis: `redis.url` is memory://, which keeps no history";
            problems.push(mistake!("history.rooms", "{text}").and("redis.url"));
        }
        if self.routing.rooms == pipeline::RoomSource::EveryComet && !self.comets.names_comets() {
            let text = "= \"every-comet\" needs `comets.nodes` or `comets.discovery`: comets are not learned from a directory that is not queried";
            problems.push(mistake!("routing.rooms", "{text}").and("comets"));
        }
        let notify = &self.offline.notify_topic;
        if self.kafka.topics.contains(notify) {
            let mistake = mistake!("offline.notify_topic", "is `{notify}`, which is also consumed");
            problems.push(mistake.and("kafka.topics"));
        }
        if self.kafka.dead_letter_topic == *notify {
            let text = format!("are both `{notify}`: notifications would be read as dead letters");
            let mistake = mistake!("offline.notify_topic", "and `kafka.dead_letter_topic` {text}");
            problems.push(mistake.and("kafka.dead_letter_topic"));
        }
        if self.archive.enabled || self.archive.has_database() {
            problems.extend(self.archive_problems());
        }
        problems
    }

    fn archive_problems(&self) -> Vec<Mistake> {
        let (topic, group) = (&self.archive.topic, &self.archive.group);
        let mut problems = Vec::new();
        if self.kafka.topics.contains(topic) || topic == &self.offline.notify_topic {
            let mistake = mistake!("archive.topic", "is `{topic}`, which is also used for other records");
            problems.push(mistake.and("kafka.topics").and("offline.notify_topic"));
        }
        if topic == &self.kafka.dead_letter_topic {
            let mistake = mistake!("archive.topic", "and `kafka.dead_letter_topic` are both `{topic}`");
            problems.push(mistake.and("kafka.dead_letter_topic"));
        }
        if group == &self.kafka.group {
            let text = format!("are both `{group}`: archivers consume another topic");
            problems.push(mistake!("archive.group", "and `kafka.group` {text}").and("kafka.group"));
        }
        problems
    }

    /// The keys and addresses of all TCP listeners.
    pub fn listeners(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("admin.listen", Some(&self.admin.listen)),
            ("admin.probe_listen", self.admin.probe_listen.as_ref()),
            ("api.listen", self.api.listen.as_ref()),
        ];
        all.into_iter().filter_map(|(key, listen)| Some((key, listen?.as_str()))).collect()
    }

    /// Valid values that are probably not intended.
    fn warnings(&self) -> Vec<Mistake> {
        let mut warnings = self.kafka.warnings();
        warnings.extend(self.delivery.warnings());
        warnings.extend(self.admin.warnings());
        warnings.extend(self.api.warnings());
        warnings.extend(self.traces.warnings());
        warnings.extend(self.archive.warnings());
        if self.comets.connect_timeout > self.delivery.request_timeout {
            let warning = mistake!(
                "comets.connect_timeout",
                "({:?}) has no effect beyond `delivery.request_timeout` ({:?}), the deadline of a call",
                self.comets.connect_timeout,
                self.delivery.request_timeout
            );
            warnings.push(warning.and("delivery.request_timeout"));
        }
        if self.offline.default == inbox::DefaultDisposition::Store
            && self.routing.knows_no_users(self.comets.dialect)
        {
            warnings.push(
                mistake!(
                    "offline.default",
                    "is \"store\", but nothing is stored: keys are connections (`routing.push_keys`) and rooms are not looked up (`routing.rooms`), so no user is known to be absent; set `offline.default = \"drop\"`, or `routing.push_keys = \"users\"` where keys are users"
                ).and("routing").and("comets.dialect"),
            );
        }
        if self.archive.has_database() && !self.archive.enabled {
            warnings.push(mistake!(
                "archive.url",
                "is set, but `archive.enabled` is not: gateways write nothing to the archive"
            ));
        }
        if self.archive.enabled && !self.archive.has_database() {
            let text = "is true, but `archive.url` is not set: this gateway only writes to `archive.topic`; set `archive.url`, or run `halley archive` with it elsewhere";
            warnings.push(mistake!("archive.enabled", "{text}").and("archive.url"));
        }
        if self.comets.breaker_window >= self.delivery.delivery_timeout {
            let warning = mistake!(
                "comets.breaker_window",
                "({:?}) is not below `delivery.delivery_timeout` ({:?}): every message to a dead comet waits that long before its breaker opens",
                self.comets.breaker_window,
                self.delivery.delivery_timeout
            );
            warnings.push(warning.and("delivery.delivery_timeout"));
        }
        warnings
    }
}

#[cfg(test)]
mod tests;
