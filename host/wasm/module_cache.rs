//! A cache of compiled code that survives restarts: one file per component and engine, in a directory
//! of the gateway.
//!
//! ```text
//! <folder>/<SHA-256 of the component>-<fingerprint of the engine>    with this content:
//! SHA-256 of the rest and of the file's name | the compiled code
//! ```
//!
//! Compiled code from the cache is executed. So nobody else may write to the directory (`files`).
//! Each file is read once, and its content is checked before it is loaded. A file that was modified
//! since it was written for this component and engine, by a disk error or a person, is removed. A
//! missing entry is compiled.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::files::{OwnedDir, ReadError};

/// The length of a SHA-256.
const CHECKSUM: usize = 32;
/// Beyond this, the oldest entries are removed. Components of Python and JavaScript are 40 MB of
/// code.
const MAX_TOTAL_BYTES: u64 = 1024 * 1024 * 1024;
const MAX_FILES: usize = 1_000;
/// The largest file that is read, in bytes.
pub(crate) const MAX_CODE: u64 = 512 * 1024 * 1024;

/// The directory. Used by one gateway.
#[derive(Debug)]
pub(crate) struct ModuleCache {
    folder: OwnedDir,
}

impl ModuleCache {
    /// Opens a directory, creating it if needed, and removes foreign files from it.
    ///
    /// # Errors
    /// Why the folder cannot be used.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.display();
        let folder = OwnedDir::create(folder).map_err(|why| anyhow::anyhow!("{path} {why}"))?;
        if let Some(shared) = folder.shared() {
            anyhow::bail!("{path} is not safe for code: others may write to {}", shared.display());
        }
        let store = Self { folder };
        store.sweep().with_context(|| format!("{path} cannot be used"))?;
        Ok(store)
    }

    /// The code of a component for an engine with this fingerprint.
    pub(crate) fn get(&self, component: Digest, engine: &str) -> Option<Vec<u8>> {
        let name = name(component, engine);
        let read = self.folder.read(&name, MAX_CODE + CHECKSUM as u64);
        if read.as_ref().is_err_and(ReadError::is_missing) {
            return None;
        }
        let is_as_written = |content: &Vec<u8>| {
            let (head, code) = content.split_at_checked(CHECKSUM).unwrap_or_default();
            head == digest(&name, code)
        };
        let content = read.ok().filter(is_as_written);
        if content.is_none() {
            let file = self.folder.path().join(&name);
            tracing::warn!(file = %file.display(), "cached code does not match its checksum; compiling it again");
            self.remove(component, engine);
        }
        let mut content = content?;
        content.drain(..CHECKSUM);
        Some(content)
    }

    /// Stores code, so that the next start need not compile it.
    pub(crate) fn put(&self, component: Digest, engine: &str, code: &[u8]) {
        let name = name(component, engine);
        let content = [&digest(&name, code)[..], code].concat();
        let kept = self.folder.replace(&name, &content).and_then(|()| Ok(self.sweep()?));
        if let Err(error) = kept {
            let error = format!("{error:#}");
            tracing::warn!(error, "compiled code cannot be cached; the next start takes longer");
        }
    }

    /// Removes code that could not be loaded.
    pub(crate) fn remove(&self, component: Digest, engine: &str) {
        // A file that stays is overwritten by the next compilation.
        let _ = fs::remove_file(self.folder.path().join(name(component, engine)));
    }

    /// Removes foreign files, and the oldest entries beyond the limits.
    fn sweep(&self) -> io::Result<()> {
        let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if !is_name(&entry.file_name().to_string_lossy()) {
                remove(&entry.path(), &metadata)?;
                continue;
            }
            entries.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        entries.sort_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (at, (_, size, path)) in entries.into_iter().enumerate() {
            bytes += size;
            if at > 0 && (at >= MAX_FILES || bytes > MAX_TOTAL_BYTES) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn name(component: Digest, engine: &str) -> String {
    format!("{component}-{engine}")
}

fn is_name(name: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    name.split_once('-')
        .is_some_and(|(component, engine)| component.len() == 64 && hex(component) && hex(engine))
}

/// Older gateways stored code in subdirectories of the same directory.
fn remove(path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn digest(name: &str, code: &[u8]) -> [u8; CHECKSUM] {
    Sha256::new().chain_update(name).chain_update(code).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::wasm::runtime::{Runtime, RuntimeConfig};

    /// A minimal component; `number` makes its bytes unique.
    fn plugin(number: u32) -> Vec<u8> {
        wat::parse_str(format!(
            r#"(component (core module (func (export "f") (result i32) (i32.const {number})))
                (instance $i) (export "halley:policy/filter@0.0.{number}" (instance $i)))"#
        ))
        .unwrap()
    }

    fn runtime(folder: &Path) -> Arc<Runtime> {
        let config = RuntimeConfig { compiled: Some(folder.to_owned()), ..Default::default() };
        Runtime::with(&mut Registry::default(), config).unwrap()
    }

    /// Restarts, loads these plugins, and returns how many of them had to be compiled.
    fn restart(folder: &Path, plugins: &[Vec<u8>]) -> u64 {
        let runtime = runtime(folder);
        assert!(runtime.module_cache.is_some(), "the folder can be used");
        plugins.iter().for_each(|plugin| drop(runtime.load("p", plugin).unwrap()));
        runtime.compilations()
    }

    fn only_entry(folder: &Path) -> PathBuf {
        let entries: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0].clone()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_restart_reuses_compiled_code() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        let plugins = [plugin(1), plugin(2)];
        assert_eq!(restart(&compiled, &plugins), 2);
        assert_eq!(restart(&compiled, &plugins), 0);
        assert_eq!(restart(&compiled, &[plugin(3), plugin(1)]), 1);
        assert_eq!(fs::metadata(&compiled).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn damaged_entries_are_recompiled() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        assert_eq!(restart(&compiled, &[plugin(1)]), 1);
        let entry = only_entry(&compiled);
        let whole = fs::read(&entry).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new(), b"not code".to_vec()] {
            fs::write(&entry, &damaged).unwrap();
            assert_eq!(restart(&compiled, &[plugin(1)]), 1, "{} bytes", damaged.len());
            assert_eq!(restart(&compiled, &[plugin(1)]), 0);
        }
    }

    #[test]
    fn code_is_bound_to_its_component_and_engine() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        let one = only_entry(&compiled);
        let other =
            compiled.join(name(Digest::of(&plugin(2)), one.to_str().unwrap().rsplit('-').next().unwrap()));
        fs::copy(&one, &other).unwrap();
        assert_eq!(restart(&compiled, &[plugin(2)]), 1, "that is another plugin's");
        let foreign = one.with_file_name(name(Digest::of(&plugin(1)), "0123456789abcdef"));
        fs::rename(&one, &foreign).unwrap();
        assert_eq!(restart(&compiled, &[plugin(1)]), 1, "that is another engine's");
    }

    #[test]
    fn code_the_engine_rejects_is_recompiled() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        // With a correct checksum.
        let entry = only_entry(&compiled);
        let name = entry.file_name().unwrap().to_str().unwrap();
        fs::write(&entry, [&digest(name, b"not code")[..], b"not code"].concat()).unwrap();
        assert_eq!(restart(&compiled, &[plugin(1)]), 1);
        assert_eq!(restart(&compiled, &[plugin(1)]), 0);
    }

    #[test]
    fn foreign_files_are_removed_and_links_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        fs::create_dir_all(compiled.join("code/modules")).unwrap();
        fs::write(compiled.join("SHA256SUMS"), b"").unwrap();
        let store = ModuleCache::open(&compiled).unwrap();
        assert_eq!(fs::read_dir(&compiled).unwrap().count(), 0);
        let (component, engine) = (Digest::of(b"a"), "0123456789abcdef");
        let precious = folder.path().join("precious");
        fs::write(&precious, b"precious").unwrap();
        std::os::unix::fs::symlink(&precious, compiled.join(name(component, engine))).unwrap();
        store.put(component, engine, b"code");
        assert_eq!(store.get(component, engine).unwrap(), b"code");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
    }

    #[test]
    fn a_folder_writable_by_others_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        for (path, open) in [(folder.path(), 0o777), (&*compiled, 0o702)] {
            mode(path, open);
            let why = ModuleCache::open(&compiled).unwrap_err().to_string();
            assert!(why.contains("others may write to") && why.contains("chmod go-w"), "{why}");
            assert!(runtime(&compiled).module_cache.is_none(), "the gateway starts without it");
            mode(path, 0o700);
        }
        assert_eq!(restart(&compiled, &[plugin(1)]), 0);
    }

    #[test]
    fn the_gateway_starts_without_a_cache_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let runtime = runtime(&file.join("compiled"));
        assert!(runtime.module_cache.is_none());
        assert!(runtime.load("p", &plugin(1)).is_ok());
        let why = ModuleCache::open(Path::new("/proc/compiled")).unwrap_err().to_string();
        assert!(why.contains("cannot be created"), "{why}");
    }
}
