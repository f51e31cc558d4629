//! One `[[plugin]]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use crate::artifact;
use crate::message::NamedBy;
use crate::policy::on_error::OnErrors;
use crate::policy::rollout::config::{Fraction, QuarantineConfig, RolloutConfig, RolloutMode};

/// Who sees the values that a plugin keeps with `host.state-set`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateScope {
    /// All workers of this process.
    #[default]
    Local,
    /// All gateways with the same `[redis]`, through it: fetched and written once for a batch.
    /// For `filter` only.
    Shared,
}

/// Which comets a plugin may name, in `also`, redirects and moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CometScope {
    /// Comets that the gateway knows: configured, discovered, or named by the directory.
    #[default]
    Known,
    /// Any address that a record may name, too: see `[comets] allow`.
    Any,
}

impl CometScope {
    /// How the comets that such a plugin names are looked at.
    pub(in crate::policy) fn named_by(self) -> NamedBy {
        match self {
            Self::Known => NamedBy::Plugin,
            Self::Any => NamedBy::TrustedPlugin,
        }
    }
}

/// One `[[plugin]]`. The order in the configuration is the order of the chain.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginConfig {
    /// The plugin's name in logs, metrics, guards and state. Unique, 1 to 64 of
    /// `a-z A-Z 0-9 - _ .`.
    pub name: String,
    /// The file: a component, or a plain wasm module made with wit-bindgen. Or what a registry
    /// has: `oci://registry/repository@sha256:...`.
    pub path: PathBuf,
    /// The SHA-256 of the file, in hex: nothing else is taken in for this plugin, by file, from a
    /// registry or by push. Versions that are kept from before may be gone back to. A candidate then
    /// needs a pin of its own, `rollout.sha256`.
    pub sha256: Option<String>,
    /// Whether a version may come in force that is signed with a lower number than the highest that
    /// was active.
    pub allow_downgrade: bool,
    /// What happens to a message when the plugin fails on it: one word, or a table by kind of
    /// error. For `grouping`, `drop` and `dead-letter` mean `pass` (a room cannot be dropped);
    /// for `offline`, everything but `stall` means that the plugin has no opinion.
    pub on_error: OnErrors,
    /// A candidate that decides for some rooms, or only looks on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutConfig>,
    /// When a version that fails goes out of force by itself, and what decides then.
    pub quarantine: QuarantineConfig,
    /// The most that one call may take, whatever the size of its batch. Rounded up to the
    /// next 5 ms.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// How much of a worker's time may go into calls that run past their deadline, while no other
    /// version can come in the plugin's place: beyond it the plugin is not called for a while, and
    /// `on_error` decides at once. `100%` is no limit.
    pub time_budget: Fraction,
    /// The most linear memory that one instance may have, in bytes, with 8 bytes for each element of
    /// its tables. Every worker has an instance. Bounds the data of one answer too.
    pub memory: ByteSize,
    /// Who sees the values that the plugin keeps: all workers of this process, or all gateways
    /// with the same `[redis]`.
    pub state: StateScope,
    /// The most that its keys and values take in Redis with `state = "shared"`, as far as this gateway
    /// wrote them and they have not run out. What would be more is refused to the plugin.
    pub max_shared_state: ByteSize,
    /// Which comets it may name: those that the gateway knows, or any that a record may name.
    pub comets: CometScope,
    /// Reaches the plugin as JSON, through `lifecycle.init` and `host.config`.
    pub config: serde_json::Value,
    /// Nobody named it: its file lies in `[policies] directory`.
    #[serde(skip)]
    pub found: bool,
}

impl Default for PluginConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            path: PathBuf::new(),
            sha256: None,
            allow_downgrade: false,
            on_error: OnErrors::default(),
            rollout: None,
            quarantine: QuarantineConfig::default(),
            deadline: Duration::from_millis(50),
            time_budget: Fraction(0.1),
            memory: ByteSize::mib(64),
            state: StateScope::default(),
            max_shared_state: ByteSize::mib(64),
            comets: CometScope::default(),
            config: serde_json::Value::Object(serde_json::Map::new()),
            found: false,
        }
    }
}

impl PluginConfig {
    /// A plugin with default settings.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), path: path.into(), ..Self::default() }
    }

    /// Makes relative paths relative to this folder.
    pub fn resolve_paths(&mut self, base: &Path) {
        for path in [Some(&mut self.path), self.rollout.as_mut().map(|rollout| &mut rollout.path)] {
            if let Some(path) = path.filter(|path| !artifact::is_reference(path)) {
                *path = base.join(&*path);
            }
        }
    }

    /// The files that it is made of: its own, and its candidate's.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.path.as_path()).chain(self.rollout.iter().map(|rollout| rollout.path.as_path()))
    }

    /// What is wrong with these settings by themselves, each with its remedy.
    pub fn validate(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !is_name(&self.name) {
            mistakes.push("`name` must be 1 to 64 letters, digits, `-`, `_` or `.`".to_owned());
        }
        if self.path.as_os_str().is_empty() {
            mistakes.push("`path` is missing; give the plugin's .wasm file".to_owned());
        }
        mistakes.extend(self.paths().filter_map(|path| artifact::reference(path)?.err()));
        let is_hash = |pin: &String| pin.len() == 64 && pin.bytes().all(|b| b.is_ascii_hexdigit());
        let candidate = self.rollout.as_ref().and_then(|rollout| rollout.sha256.as_ref());
        for (key, pin) in [("sha256", self.sha256.as_ref()), ("rollout.sha256", candidate)] {
            if !pin.is_none_or(is_hash) {
                mistakes.push(format!("`{key}` must be 64 hex digits, as `sha256sum` prints them"));
            }
        }
        if self.rollout.is_some() && self.sha256.is_some() && candidate.is_none() {
            mistakes.push(
                "`sha256` pins the plugin, and its candidate is not pinned; give it `rollout.sha256`"
                    .to_owned(),
            );
        }
        if self.deadline.is_zero() || self.deadline > LONGEST_DEADLINE {
            mistakes.push("`deadline` must be more than 0 and at most 60s".to_owned());
        }
        if !(0.01..=1.0).contains(&self.time_budget.0) {
            mistakes.push("`time_budget` must be 1% to 100%".to_owned());
        }
        if self.memory < ByteSize::kib(64) || self.memory > ByteSize::gib(4) {
            mistakes.push("`memory` must be 64KiB to 4GiB".to_owned());
        }
        if self.max_shared_state < LEAST_SHARED_STATE {
            mistakes.push(format!("`max_shared_state` must be at least {LEAST_SHARED_STATE}"));
        }
        if !self.config.is_object() {
            mistakes.push("`config` must be a table".to_owned());
        }
        mistakes.extend(self.on_error.validate());
        mistakes.extend(self.quarantine.validate());
        mistakes.extend(self.rollout.iter().flat_map(RolloutConfig::validate));
        let is_shadow = self.rollout.as_ref().is_some_and(|rollout| rollout.mode == RolloutMode::Shadow);
        if is_shadow && self.state == StateScope::Shared {
            mistakes.push(
                "`rollout.mode = \"shadow\"` cannot see `state = \"shared\"`; try it as a canary".to_owned(),
            );
        }
        mistakes
    }
}

/// Each value takes 128 bytes beside itself and its key: below this, not one would fit.
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
        let shadow =
            RolloutConfig { path: "y.wasm".into(), mode: RolloutMode::Shadow, ..RolloutConfig::default() };
        let blind = PluginConfig { rollout: Some(shadow), state: StateScope::Shared, ..good };
        assert_eq!(blind.validate().len(), 1, "{:?}", blind.validate());
    }
}
