//! `[policies]`: where plugins come from, are kept and compiled.
//!
//! Plain data. Whether a plugin's file exists and works is checked when the set is prepared, where
//! all problems are reported at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use smart_default::SmartDefault;

use crate::artifact::{self, PluginLoader, PluginTrust, RegistryConfig, TrustedKey, Versions};
use crate::files::{DirError, OwnedDir};
use crate::mistake::{Mistake, mistake};
use crate::policy::config::plugin::PluginConfig;
use crate::schema;
use crate::wasm::{CompileLimits, RuntimeConfig, WasmFeature};

/// `[policies]`: sources of plugins apart from the configured ones, and their limits.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct PoliciesConfig {
    /// Every `*.wasm` in this folder that no `[[plugin]]` names is a plugin too: named after
    /// its file, with default settings, in the order of the file names, after the configured ones.
    /// One that cannot be loaded is skipped with a warning, unless it was active before. Configure
    /// plugins as `[[plugin]]` if messages must not pass without them.
    pub directory: Option<PathBuf>,
    /// How long files that are written in place must be unchanged before they are read. A file or a link
    /// that is renamed to its name is complete, and is read at once.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_millis(100))]
    pub debounce: Duration,
    /// How often all files are read again, in case the file system's events were lost.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(10))]
    pub rescan_interval: Duration,
    /// Where the versions of plugins are stored, and which are active, so that a restart restores
    /// them. Compiled code is stored there as well, unless others may write to the folder. Created if
    /// it does not exist; gateways must not share it. Without one, the last three versions of each
    /// plugin are kept in memory, and a restart takes the files as they are.
    pub state_dir: Option<PathBuf>,
    /// How many versions of each plugin are stored.
    #[default(10)]
    pub keep_versions: usize,
    /// Files with ed25519 public keys in PEM, or PEM texts. Once there is one, only plugins are
    /// activated that one of the keys has signed for their name, with a version number that does not
    /// decrease. The files are watched.
    #[schemars(with = "Vec<String>")]
    pub trusted_keys: Vec<TrustedKey>,
    /// Whether signatures of the file's bytes alone are accepted too, as in earlier versions of
    /// Halley. They cover neither the plugin's name nor its version.
    pub bare_signatures: bool,
    /// Limits on registries.
    pub registry: RegistryConfig,
    /// The maximum memory for compiling one plugin, which happens in a process of its own. A plugin
    /// that needs more is refused and not compiled again.
    #[schemars(with = "schema::Size")]
    #[default(CompileLimits::default().memory)]
    pub compile_memory: ByteSize,
    /// The maximum processor time for it. The wall-clock limit is four times as long.
    #[serde(with = "schema::Duration")]
    #[default(CompileLimits::default().timeout)]
    pub compile_timeout: Duration,
    /// The WebAssembly features that plugins may use.
    pub wasm: WasmConfig,
}

/// `[policies.wasm]`.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct WasmConfig {
    /// Proposals to enable in addition to what compilers to WebAssembly emit by default.
    pub features: Vec<WasmFeature>,
}

impl PoliciesConfig {
    /// Opens the store of plugin versions.
    ///
    /// # Errors
    /// When the directory cannot be used, or another gateway uses it.
    pub(in crate::policy) fn versions(&self) -> anyhow::Result<Versions> {
        match &self.state_dir {
            Some(folder) => Versions::in_folder(folder, self.keep_versions),
            None => Ok(Versions::in_memory()),
        }
    }

    /// Creates the state folder if it does not exist, accessible to its owner only.
    ///
    /// # Errors
    /// When it cannot be created, or is unsafe to use.
    pub(crate) fn make_state_folder(&self) -> Result<(), DirError> {
        let Some(folder) = &self.state_dir else { return Ok(()) };
        OwnedDir::create(folder).map(drop)
    }

    /// Loads plugins, and knows the trusted keys.
    pub(in crate::policy) fn loader(&self) -> PluginLoader {
        PluginLoader::new(self.trust(), self.state_dir.as_deref(), self.registry.clone())
    }

    /// The configuration of a gateway's runtime.
    pub(in crate::policy) fn runtime(&self) -> RuntimeConfig {
        let inside = |name| self.state_dir.as_ref().map(|folder| folder.join(name));
        let (compiled, uncompilable) = (inside("compiled"), inside("uncompilable"));
        RuntimeConfig { compiled, uncompilable, ..self.runtime_of_a_command() }
    }

    /// The same for a command next to a gateway, without access to the gateway's state folder.
    pub fn runtime_of_a_command(&self) -> RuntimeConfig {
        let compile = CompileLimits { memory: self.compile_memory, timeout: self.compile_timeout };
        RuntimeConfig { compile, features: self.wasm.features.clone(), ..RuntimeConfig::default() }
    }

    /// The paths to watch for these plugins.
    pub fn paths(&self, plugins: &[PluginConfig]) -> Vec<PathBuf> {
        let sources = plugins.iter().flat_map(PluginConfig::sources);
        let mut paths = artifact::paths(sources, &self.trust());
        paths.extend(self.directory.clone());
        paths
    }

    /// Resolves relative paths against this directory.
    pub fn resolve_paths(&mut self, base: &Path) {
        for folder in [&mut self.directory, &mut self.state_dir].into_iter().flatten() {
            *folder = base.join(&*folder);
        }
        self.trusted_keys.iter_mut().for_each(|key| key.resolve(base));
    }

    fn trust(&self) -> PluginTrust {
        PluginTrust::new(self.trusted_keys.clone()).with_bare_signatures(self.bare_signatures)
    }

    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if !(SHORTEST_DEBOUNCE..=LONGEST_DEBOUNCE).contains(&self.debounce) {
            problems.push(mistake!("policies.debounce", "must be 10ms to 10s"));
        }
        if self.rescan_interval < SHORTEST_RESCAN {
            problems.push(mistake!(
                "policies.rescan_interval",
                "must be at least 100ms; everything is read for it"
            ));
        }
        if !(2..=MOST_VERSIONS).contains(&self.keep_versions) {
            problems.push(mistake!("policies.keep_versions", "must be 2 to {MOST_VERSIONS}"));
        }
        problems.extend(self.registry.validate());
        if self.compile_memory < LEAST_COMPILE_MEMORY {
            problems.push(mistake!("policies.compile_memory", "must be at least {LEAST_COMPILE_MEMORY}"));
        }
        if !(SHORTEST_COMPILE..=LONGEST_COMPILE).contains(&self.compile_timeout) {
            problems.push(mistake!("policies.compile_timeout", "must be 1s to 1h"));
        }
        problems
    }
}

const SHORTEST_DEBOUNCE: Duration = Duration::from_millis(10);
const LONGEST_DEBOUNCE: Duration = Duration::from_secs(10);
const SHORTEST_RESCAN: Duration = Duration::from_millis(100);
const MOST_VERSIONS: usize = 1000;
const LEAST_COMPILE_MEMORY: ByteSize = ByteSize::mib(64);
const SHORTEST_COMPILE: Duration = Duration::from_secs(1);
const LONGEST_COMPILE: Duration = Duration::from_secs(3600);

/// The desired plugins: the configured ones, then the ones in the directory.
///
/// # Errors
/// When the directory cannot be read. A missing directory is an error too: a volume that is not
/// mounted must not look like "no policies".
pub fn expand(configured: &[PluginConfig], policies: &PoliciesConfig) -> anyhow::Result<Vec<PluginConfig>> {
    let mut wanted = configured.to_vec();
    let Some(directory) = &policies.directory else {
        return Ok(wanted);
    };
    let named: Vec<PathBuf> =
        configured.iter().filter_map(|plugin| plugin.path.file()).map(canonical).collect();
    for path in wasm_files(directory)? {
        if named.contains(&canonical(&path)) {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        wanted.push(PluginConfig { found: true, ..PluginConfig::new(name, path) });
    }
    Ok(wanted)
}

/// The folder's `*.wasm` in the order of their names. Hidden files are skipped: editors and
/// ConfigMaps use them as temporary files.
fn wasm_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_read = |e: std::io::Error| {
        anyhow::anyhow!(
            "[policies] directory {} cannot be read: {e}; create it, or remove the key",
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

/// For comparison only: a path that does not resolve is used as it is.
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
        let never = PoliciesConfig {
            debounce: Duration::ZERO,
            rescan_interval: Duration::ZERO,
            keep_versions: 0,
            compile_memory: ByteSize::mib(1),
            compile_timeout: Duration::ZERO,
            ..PoliciesConfig::default()
        };
        assert_eq!(never.validate().len(), 5, "{:?}", never.validate());
        assert!(PoliciesConfig::default().validate().is_empty());
    }
}
