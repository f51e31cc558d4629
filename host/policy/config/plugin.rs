//! One `[[plugin]]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use smart_default::SmartDefault;

use crate::artifact::PluginSource;
use crate::digest::Digest;
use crate::message::NamedBy;
use crate::mistake::{Mistake, mistake};
use crate::policy::on_error::OnErrors;
use crate::policy::rollout::config::{Fraction, QuarantineConfig, RolloutConfig, RolloutMode};
use crate::schema;

/// Who sees the values that a plugin stores with `host.state-set`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum StateScope {
    /// All workers of this process.
    #[default]
    Local,
    /// All gateways with the same `[redis]`. Values are fetched and written once per batch. For
    /// `filter` only.
    Shared,
}

/// Which comets a plugin may name in `also`, redirects and moves.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CometScope {
    /// Comets that the gateway knows: configured, discovered, or named by the directory.
    #[default]
    Known,
    /// Also any address that a record may name: see `[comets] allow`.
    Any,
}

impl CometScope {
    /// How an address that such a plugin names is checked.
    pub(in crate::policy) fn named_by(self) -> NamedBy {
        match self {
            Self::Known => NamedBy::Plugin,
            Self::Any => NamedBy::TrustedPlugin,
        }
    }
}

/// One `[[plugin]]`. Plugins run in the order of the configuration.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct PluginConfig {
    /// The plugin's name in logs, metrics, guards and state. Unique, 1 to 64 of `a-z A-Z 0-9 - _ .`.
    pub name: String,
    /// The file: a component, or a plain wasm module built with wit-bindgen. Or a reference into a
    /// registry: `oci://registry/repository@sha256:...`.
    #[schemars(with = "String")]
    pub path: PluginSource,
    /// The SHA-256 of the file, in hex. No other content is accepted for this plugin, whether from a
    /// file, a registry or a push. A rollback to a stored version is still possible. A candidate
    /// needs a pin of its own, `rollout.sha256`.
    #[schemars(with = "Option<String>")]
    pub sha256: Option<Digest>,
    /// Whether a version may become active whose signed number is lower than the highest that was
    /// active.
    pub allow_downgrade: bool,
    /// What happens to a message when the plugin fails on it: one word, or a table by kind of
    /// failure. For `grouping`, `drop` and `dead-letter` mean `pass` (a room cannot be dropped); for
    /// `offline`, everything but `stall` means that the plugin has no opinion.
    #[schemars(with = "schema::WordOrTable")]
    pub on_error: OnErrors,
    /// A candidate that decides for some rooms, or observes without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutConfig>,
    /// When a failing version is deactivated automatically, and what replaces it.
    pub quarantine: QuarantineConfig,
    /// The maximum duration of one call, whatever the size of its batch. Rounded up to the next 5 ms.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_millis(50))]
    pub deadline: Duration,
    /// The share of a worker's time that calls past their deadline may use, while no other version
    /// can replace the plugin. Beyond it, the plugin is not called for a while and `on_error` decides
    /// at once. `100%` is unlimited.
    #[schemars(with = "schema::Fraction")]
    #[default(Fraction(0.1))]
    pub time_budget: Fraction,
    /// The maximum linear memory of one instance, in bytes, plus 8 bytes for each element of its
    /// tables. Every worker has an instance. Also bounds the data of one answer.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(64))]
    pub memory: ByteSize,
    /// Who sees the values that the plugin stores: all workers of this process, or all gateways with
    /// the same `[redis]`.
    pub state: StateScope,
    /// The maximum size of its keys and values in Redis with `state = "shared"`, counted over what
    /// this gateway wrote and what has not expired. Writes beyond it are refused to the plugin.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(64))]
    pub max_shared_state: ByteSize,
    /// Which comets it may name: those that the gateway knows, or any that a record may name.
    pub comets: CometScope,
    /// Passed to the plugin as JSON, through `lifecycle.init` and `host.config`.
    #[default(serde_json::Value::Object(serde_json::Map::new()))]
    pub config: serde_json::Value,
    /// Found in `[policies] directory`, not configured.
    #[serde(skip)]
    pub found: bool,
}

impl PluginConfig {
    /// A plugin from a file, with default settings.
    pub fn new(name: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), path: PluginSource::File(file.into()), ..Self::default() }
    }

    /// Resolves relative paths against this directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        self.path.resolve(base);
        if let Some(rollout) = &mut self.rollout {
            rollout.path.resolve(base);
        }
    }

    /// Its own source and its candidate's.
    pub fn sources(&self) -> impl Iterator<Item = &PluginSource> {
        std::iter::once(&self.path).chain(self.rollout.iter().map(|rollout| &rollout.path))
    }

    /// Mistakes in these settings, each with its remedy.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if !is_name(&self.name) {
            mistakes.push(mistake!("name", "must be 1 to 64 letters, digits, `-`, `_` or `.`"));
        }
        if self.path.is_empty() {
            mistakes.push(mistake!("path", "is missing; give the plugin's .wasm file"));
        }
        let is_unpinned = self.rollout.as_ref().is_some_and(|rollout| rollout.sha256.is_none());
        if is_unpinned && self.sha256.is_some() {
            mistakes.push(
                mistake!(
                    "sha256",
                    "pins the plugin, and its candidate is not pinned; give it `rollout.sha256`"
                )
                .and("rollout"),
            );
        }
        if self.deadline.is_zero() || self.deadline > LONGEST_DEADLINE {
            mistakes.push(mistake!("deadline", "must be more than 0 and at most 60s"));
        }
        if !(0.01..=1.0).contains(&self.time_budget.0) {
            mistakes.push(mistake!("time_budget", "must be 1% to 100%"));
        }
        if self.memory < ByteSize::kib(64) || self.memory > ByteSize::gib(4) {
            mistakes.push(mistake!("memory", "must be 64KiB to 4GiB"));
        }
        if self.max_shared_state < LEAST_SHARED_STATE {
            mistakes.push(mistake!("max_shared_state", "must be at least {LEAST_SHARED_STATE}"));
        }
        if !self.config.is_object() {
            mistakes.push(mistake!("config", "must be a table"));
        }
        mistakes.extend(self.on_error.validate());
        mistakes.extend(self.quarantine.validate());
        mistakes.extend(self.rollout.iter().flat_map(RolloutConfig::validate));
        let is_shadow = self.rollout.as_ref().is_some_and(|rollout| rollout.mode == RolloutMode::Shadow);
        if is_shadow && self.state == StateScope::Shared {
            mistakes.push(
                mistake!("rollout.mode", "= \"shadow\" cannot see `state = \"shared\"`; try it as a canary")
                    .and("state"),
            );
        }
        mistakes
    }
}

/// Each value takes 128 bytes in addition to its key and itself: below this, not even one would fit.
const LEAST_SHARED_STATE: ByteSize = ByteSize::b(256);
const LONGEST_DEADLINE: Duration = Duration::from_secs(60);

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_all_named() {
        let bad = PluginConfig {
            name: "a b".into(),
            deadline: Duration::ZERO,
            time_budget: Fraction(0.0),
            memory: ByteSize::b(1),
            max_shared_state: ByteSize::b(255),
            config: serde_json::Value::Null,
            ..Default::default()
        };
        assert_eq!(bad.validate().len(), 7, "{:?}", bad.validate());
        let good = PluginConfig::new("a-b_c.d", "x.wasm");
        assert!(good.validate().is_empty());
        let shadow = RolloutConfig {
            path: "y.wasm".parse().unwrap(),
            mode: RolloutMode::Shadow,
            ..RolloutConfig::default()
        };
        let blind = PluginConfig { rollout: Some(shadow), state: StateScope::Shared, ..good };
        assert_eq!(blind.validate().len(), 1, "{:?}", blind.validate());
    }
}
