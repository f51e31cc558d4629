//! The policies' part of the configuration: `[[plugin]]` and `[policies]`.
//!
//! Plain data. Whether a plugin's file exists and works is found out when the set is
//! prepared, where all problems are reported at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

use crate::files::OwnFolder;
use crate::message::NamedBy;
use crate::policy::guest::compile::CompileLimits;
use crate::policy::guest::engine::WasmFeature;
use crate::policy::guest::runtime::RuntimeConfig;
use crate::policy::intake::{self, Intake};
use crate::policy::on_error::OnErrors;
use crate::policy::registry::{self, RegistryConfig};
use crate::policy::trial::{Mode, Share, TrialConfig};
use crate::policy::trust::Trust;
use crate::policy::versions::{QuarantineConfig, Versions};

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
    pub(super) fn named_by(self) -> NamedBy {
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
    /// needs a pin of its own, `trial.sha256`.
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
    pub trial: Option<TrialConfig>,
    /// When a version that fails goes out of force by itself, and what decides then.
    pub quarantine: QuarantineConfig,
    /// The most that one call may take, whatever the size of its batch. Rounded up to the
    /// next 5 ms.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// How much of a worker's time may go into calls that run past their deadline, while no other
    /// version can come in the plugin's place: beyond it the plugin is not called for a while, and
    /// `on_error` decides at once. `100%` is no limit.
    pub time_budget: Share,
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
            trial: None,
            quarantine: QuarantineConfig::default(),
            deadline: Duration::from_millis(50),
            time_budget: Share(0.1),
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
    pub fn take_paths_from(&mut self, base: &Path) {
        for path in [Some(&mut self.path), self.trial.as_mut().map(|trial| &mut trial.path)] {
            if let Some(path) = path.filter(|path| !registry::is_reference(path)) {
                *path = base.join(&*path);
            }
        }
    }

    /// The files that it is made of: its own, and its candidate's.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.path.as_path()).chain(self.trial.iter().map(|trial| trial.path.as_path()))
    }

    /// What is wrong with these settings by themselves, each with its remedy.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !is_name(&self.name) {
            mistakes.push("`name` must be 1 to 64 letters, digits, `-`, `_` or `.`".to_owned());
        }
        if self.path.as_os_str().is_empty() {
            mistakes.push("`path` is missing; give the plugin's .wasm file".to_owned());
        }
        mistakes.extend(self.paths().filter_map(|path| registry::reference(path)?.err()));
        let is_hash = |pin: &String| pin.len() == 64 && pin.bytes().all(|b| b.is_ascii_hexdigit());
        let candidate = self.trial.as_ref().and_then(|trial| trial.sha256.as_ref());
        for (key, pin) in [("sha256", self.sha256.as_ref()), ("trial.sha256", candidate)] {
            if !pin.is_none_or(is_hash) {
                mistakes.push(format!("`{key}` must be 64 hex digits, as `sha256sum` prints them"));
            }
        }
        if self.trial.is_some() && self.sha256.is_some() && candidate.is_none() {
            mistakes.push(
                "`sha256` pins the plugin, and its candidate is not pinned; give it `trial.sha256`"
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
        mistakes.extend(self.on_error.mistakes());
        mistakes.extend(self.quarantine.mistakes());
        mistakes.extend(self.trial.iter().flat_map(TrialConfig::mistakes));
        let looks_on = self.trial.as_ref().is_some_and(|trial| trial.mode == Mode::Shadow);
        if looks_on && self.state == StateScope::Shared {
            mistakes.push(
                "`trial.mode = \"shadow\"` cannot see `state = \"shared\"`; try it as a canary".to_owned(),
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

/// `[policies]`: where plugins come from, apart from the ones that are named one by one.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoliciesConfig {
    /// Every `*.wasm` in this folder that no `[[plugin]]` names is a plugin too: named after
    /// its file, with default settings, in the order of the file names, after the
    /// configured ones. One that cannot be read is left out, with a warning, unless it is in force:
    /// name what messages must not pass without.
    pub directory: Option<PathBuf>,
    /// How long files have to be left alone after a change before they are looked at: what
    /// changes one after the other within this time is swapped as one.
    #[serde(with = "humantime_serde")]
    pub quiet: Duration,
    /// How often all files are looked at again, in case the file system's events were lost.
    #[serde(with = "humantime_serde")]
    pub rescan: Duration,
    /// Where the versions of plugins are kept, with what is in force: a restart comes up with
    /// it. Compiled code is kept there, too, unless others may write to the folder. Made where
    /// there is none; no other gateway may use it. Without one, the last three versions of each
    /// plugin are kept in memory, and a restart takes the files as they are.
    pub state_folder: Option<PathBuf>,
    /// How many versions of each plugin are kept in the folder.
    pub keep_versions: usize,
    /// Files with ed25519 public keys in PEM, or such texts themselves. Once there is one, only
    /// plugins decide that one of the keys has signed: under their name, with a number that does not
    /// fall. The files are followed.
    pub trusted_keys: Vec<String>,
    /// Whether signatures of the file alone count, too, as earlier versions of Halley took them. They
    /// tell neither for which plugin nor which version it is.
    pub bare_signatures: bool,
    /// What registries may do.
    pub registry: RegistryConfig,
    /// The most memory that compiling one plugin may take. It is compiled in a process of its own;
    /// what takes more is refused, and not tried again.
    pub compile_memory: ByteSize,
    /// The most time of the processor that it may take; four times that by the clock.
    #[serde(with = "humantime_serde")]
    pub compile_timeout: Duration,
    /// Of which WebAssembly plugins may be made.
    pub wasm: WasmConfig,
}

/// `[policies.wasm]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WasmConfig {
    /// Proposals that are on beside what compilers to WebAssembly emit by default.
    pub features: Vec<WasmFeature>,
}

impl Default for PoliciesConfig {
    fn default() -> Self {
        Self {
            directory: None,
            quiet: Duration::from_millis(100),
            rescan: Duration::from_secs(10),
            state_folder: None,
            keep_versions: 10,
            trusted_keys: Vec::new(),
            bare_signatures: false,
            registry: RegistryConfig::default(),
            compile_memory: CompileLimits::default().memory,
            compile_timeout: CompileLimits::default().timeout,
            wasm: WasmConfig::default(),
        }
    }
}

impl PoliciesConfig {
    /// Opens what keeps the versions of plugins.
    ///
    /// # Errors
    /// When the folder cannot be used, or another gateway uses it.
    pub fn versions(&self) -> anyhow::Result<Versions> {
        match &self.state_folder {
            Some(folder) => Versions::in_folder(folder, self.keep_versions),
            None => Ok(Versions::in_memory()),
        }
    }

    /// Makes the state folder where there is none, for its owner alone.
    ///
    /// # Errors
    /// When it cannot be made, or should not be used.
    pub fn make_state_folder(&self) -> Result<(), String> {
        let Some(folder) = &self.state_folder else { return Ok(()) };
        OwnFolder::create(folder).map(drop)
    }

    /// Where plugins come from and which are trusted.
    pub fn intake(&self) -> Intake {
        Intake::new(self.trust(), self.state_folder.as_deref(), self.registry.clone())
    }

    /// What a gateway's runtime is made with.
    pub fn runtime(&self) -> RuntimeConfig {
        let inside = |name| self.state_folder.as_ref().map(|folder| folder.join(name));
        let (compiled, uncompilable) = (inside("compiled"), inside("uncompilable"));
        RuntimeConfig { compiled, uncompilable, ..self.runtime_of_a_command() }
    }

    /// The same for a command next to a gateway, which leaves the gateway's folder alone.
    pub fn runtime_of_a_command(&self) -> RuntimeConfig {
        RuntimeConfig { intake: self.intake(), ..self.runtime_of_an_author() }
    }

    /// The same for a file that is being worked on, which nobody has signed yet: what compiles there
    /// compiles in the gateway.
    pub fn runtime_of_an_author(&self) -> RuntimeConfig {
        let compile = CompileLimits { memory: self.compile_memory, timeout: self.compile_timeout };
        RuntimeConfig { compile, features: self.wasm.features.clone(), ..RuntimeConfig::default() }
    }

    /// What to watch for these plugins.
    pub fn paths(&self, plugins: &[PluginConfig]) -> Vec<PathBuf> {
        let mut paths = intake::paths(plugins, &self.trust());
        paths.extend(self.directory.clone());
        paths
    }

    /// Makes relative paths relative to this folder.
    pub fn take_paths_from(&mut self, base: &Path) {
        for folder in [&mut self.directory, &mut self.state_folder].into_iter().flatten() {
            *folder = base.join(&*folder);
        }
        for key in self.trusted_keys.iter_mut().filter(|key| !Trust::is_text(key)) {
            *key = base.join(&*key).display().to_string();
        }
    }

    fn trust(&self) -> Trust {
        Trust::new(self.trusted_keys.clone()).with_bare_signatures(self.bare_signatures)
    }

    /// What is wrong with the values, one sentence for each mistake.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(SHORTEST_QUIET..=LONGEST_QUIET).contains(&self.quiet) {
            problems.push("`policies.quiet` must be 10ms to 10s".to_owned());
        }
        if self.rescan < SHORTEST_RESCAN {
            problems.push("`policies.rescan` must be at least 100ms; everything is read for it".to_owned());
        }
        if !(2..=MOST_VERSIONS).contains(&self.keep_versions) {
            problems.push(format!("`policies.keep_versions` must be 2 to {MOST_VERSIONS}"));
        }
        problems.extend(self.registry.problems());
        if self.compile_memory < LEAST_COMPILE_MEMORY {
            problems.push(format!("`policies.compile_memory` must be at least {LEAST_COMPILE_MEMORY}"));
        }
        if !(SHORTEST_COMPILE..=LONGEST_COMPILE).contains(&self.compile_timeout) {
            problems.push("`policies.compile_timeout` must be 1s to 1h".to_owned());
        }
        problems
    }
}

const SHORTEST_QUIET: Duration = Duration::from_millis(10);
const LONGEST_QUIET: Duration = Duration::from_secs(10);
const SHORTEST_RESCAN: Duration = Duration::from_millis(100);
const MOST_VERSIONS: usize = 1000;
const LEAST_COMPILE_MEMORY: ByteSize = ByteSize::mib(64);
const SHORTEST_COMPILE: Duration = Duration::from_secs(1);
const LONGEST_COMPILE: Duration = Duration::from_secs(3600);

/// The plugins that are wanted now: the configured ones, then the ones in the directory.
///
/// # Errors
/// When the directory cannot be read. A directory that does not exist is an error too: a
/// volume that is not mounted must not look like "no policies".
pub fn expand(configured: &[PluginConfig], policies: &PoliciesConfig) -> anyhow::Result<Vec<PluginConfig>> {
    let mut wanted = configured.to_vec();
    let Some(directory) = &policies.directory else {
        return Ok(wanted);
    };
    let named: Vec<PathBuf> = configured.iter().map(|plugin| canonical(&plugin.path)).collect();
    for path in wasm_files(directory)? {
        if named.contains(&canonical(&path)) {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        wanted.push(PluginConfig { found: true, ..PluginConfig::new(name, path) });
    }
    Ok(wanted)
}

/// The folder's `*.wasm` in the order of their names. Hidden files are left out: they are
/// what editors and ConfigMaps work with.
fn wasm_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_read = |e: std::io::Error| {
        anyhow::anyhow!(
            "[policies] directory {} cannot be read: {e}; create it or take the key out",
            directory.display()
        )
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot_read)? {
        let path = entry.map_err(cannot_read)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|e| e == "wasm") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Only for comparing: a path that does not resolve stands for itself.
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_adds_what_is_not_named() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["b.wasm", "a.wasm", "c.wasm", ".d.wasm", "notes.txt"] {
            std::fs::write(folder.path().join(file), b"").unwrap();
        }
        let configured = [PluginConfig::new("mine", folder.path().join("b.wasm"))];
        let policies = PoliciesConfig { directory: Some(folder.path().into()), ..Default::default() };
        let names: Vec<String> =
            expand(&configured, &policies).unwrap().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["mine", "a", "c"]);
        assert_eq!(expand(&configured, &PoliciesConfig::default()).unwrap(), configured);
    }

    #[test]
    fn a_missing_directory_is_not_an_empty_one() {
        let policies = PoliciesConfig { directory: Some("/nowhere/at/all".into()), ..Default::default() };
        assert!(expand(&[], &policies).unwrap_err().to_string().contains("[policies] directory"));
    }

    #[test]
    fn settings_that_make_no_sense_are_all_named() {
        let bad = PluginConfig {
            name: "a b".into(),
            deadline: Duration::ZERO,
            time_budget: Share(0.0),
            memory: ByteSize::b(1),
            max_shared_state: ByteSize::b(255),
            config: serde_json::Value::Null,
            ..Default::default()
        };
        assert_eq!(bad.mistakes().len(), 7, "{:?}", bad.mistakes());
        let good = PluginConfig::new("a-b_c.d", "x.wasm");
        assert!(good.mistakes().is_empty());
        let shadow = TrialConfig { path: "y.wasm".into(), mode: Mode::Shadow, ..TrialConfig::default() };
        let blind = PluginConfig { trial: Some(shadow), state: StateScope::Shared, ..good };
        assert_eq!(blind.mistakes().len(), 1, "{:?}", blind.mistakes());
        let never = PoliciesConfig {
            quiet: Duration::ZERO,
            rescan: Duration::ZERO,
            keep_versions: 0,
            compile_memory: ByteSize::mib(1),
            compile_timeout: Duration::ZERO,
            ..PoliciesConfig::default()
        };
        assert_eq!(never.problems().len(), 5, "{:?}", never.problems());
        assert!(PoliciesConfig::default().problems().is_empty());
    }
}
