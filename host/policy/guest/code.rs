//! Compiled code that outlives a restart: wasmtime's cache, in a folder of the gateway's own.
//!
//! wasmtime finds an entry by the plugin's bytes, its own version and the engine's settings, and
//! runs what it finds. So nobody else may write to the folder, which is looked at when it is
//! opened; and an entry that is not, byte for byte, what was written here is taken out before
//! anything is loaded, be it a disk's doing or a person's. What is not there is compiled.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use wasmtime::{Cache, CacheConfig};

use crate::policy::guest::module::hash;

/// wasmtime's own part of the folder.
const CODE: &str = "code";
/// The SHA-256 of each entry, one a line, as `sha256sum` has it.
const DIGESTS: &str = "SHA256SUMS";
/// Beyond this, wasmtime takes out what was not used for longest.
const MOST_BYTES: u64 = 256 * 1024 * 1024;
const MOST_FILES: u64 = 2_000;

/// The cache. One gateway uses a folder.
#[derive(Debug)]
pub(in crate::policy) struct CodeCache {
    cache: Cache,
    folder: PathBuf,
    noted: Mutex<Noted>,
}

/// What was written of the digests.
#[derive(Debug, Default)]
struct Noted {
    /// By the entries' paths in the folder.
    digests: BTreeMap<String, String>,
    /// How many entries had been made then.
    made: usize,
}

impl CodeCache {
    /// Opens a folder, which is made where there is none, and takes out of it what is not as it
    /// was written.
    ///
    /// # Errors
    /// Why the folder cannot be used.
    pub(in crate::policy) fn open(folder: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{} cannot be used: {e}", folder.display());
        let code = folder.join(CODE);
        DirBuilder::new().recursive(true).mode(0o700).create(&code).map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        check_owner(&folder).map_err(failed)?;
        let around = folder.parent();
        for folder in around.into_iter().chain([&*folder, &*folder.join(CODE)]) {
            check_mode(folder).map_err(failed)?;
        }
        let digests = sweep(&folder).map_err(failed)?;
        let mut config = CacheConfig::new();
        config
            .with_directory(folder.join(CODE))
            .with_files_total_size_soft_limit(MOST_BYTES)
            .with_file_count_soft_limit(MOST_FILES)
            // Entries that are used often would be packed once more, and not be what was written.
            .with_optimized_compression_usage_counter_threshold(u64::MAX);
        let cache = Cache::new(config).map_err(|e| format!("{} cannot be used: {e:#}", folder.display()))?;
        Ok(Self { cache, folder, noted: Mutex::new(Noted { digests, made: 0 }) })
    }

    /// For the engine.
    pub(in crate::policy) fn cache(&self) -> Cache {
        self.cache.clone()
    }

    /// How often code was found.
    #[cfg(test)]
    pub(in crate::policy) fn found(&self) -> usize {
        self.cache.cache_hits()
    }

    /// How often code was compiled and kept.
    pub(in crate::policy) fn made(&self) -> usize {
        self.cache.cache_misses()
    }

    /// Notes what was written since the last time, so that it counts after a restart.
    pub(in crate::policy) fn note(&self) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.made == self.made() {
            return;
        }
        noted.made = self.made();
        if let Err(error) = note(&self.folder, &mut noted.digests) {
            let folder = self.folder.display();
            tracing::warn!(%folder, %error, "compiled code cannot be kept; the next start takes longer");
        }
    }
}

/// A file made here belongs to us; the folder has to, too.
fn check_owner(folder: &Path) -> io::Result<()> {
    let probe = folder.join(".probe");
    fs::write(&probe, b"")?;
    let ours = fs::metadata(&probe)?.uid();
    fs::remove_file(&probe)?;
    if fs::metadata(folder)?.uid() == ours {
        return Ok(());
    }
    Err(io::Error::other("it belongs to somebody else"))
}

fn check_mode(folder: &Path) -> io::Result<()> {
    if fs::metadata(folder)?.mode() & 0o022 == 0 {
        return Ok(());
    }
    let folder = folder.display();
    Err(io::Error::other(format!("others may write to {folder}; chmod go-w takes that from them")))
}

/// Takes out every entry that is not what was written, and answers with the digests of the others.
fn sweep(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut digests = read_digests(folder);
    let entries = entries(folder)?;
    for (path, file) in &entries {
        let is_as_written = fs::read(file).is_ok_and(|bytes| digests.get(path) == Some(&hash(&bytes)));
        if !is_as_written {
            tracing::warn!(file = %file.display(), "compiled code that is not as it was written is made anew");
            fs::remove_file(file)?;
        }
    }
    digests.retain(|path, _| entries.contains_key(path));
    Ok(digests)
}

/// Writes down the digests of entries that are new.
fn note(folder: &Path, digests: &mut BTreeMap<String, String>) -> io::Result<()> {
    let entries = entries(folder)?;
    digests.retain(|path, _| entries.contains_key(path));
    for (path, file) in entries {
        if let Entry::Vacant(new) = digests.entry(path) {
            new.insert(hash(&fs::read(file)?));
        }
    }
    let lines: String = digests.iter().map(|(path, digest)| format!("{digest}  {path}\n")).collect();
    let new = folder.join(format!("{DIGESTS}.new"));
    fs::write(&new, lines)?;
    fs::rename(new, folder.join(DIGESTS))
}

fn read_digests(folder: &Path) -> BTreeMap<String, String> {
    // Without them everything is compiled anew.
    let text = fs::read_to_string(folder.join(DIGESTS)).unwrap_or_default();
    let line = |line: &str| line.split_once("  ").map(|(digest, path)| (path.to_owned(), digest.to_owned()));
    text.lines().filter_map(line).collect()
}

/// The entries by their paths in the folder, which are `code/modules/<wasmtime's version>/<key>`;
/// what has an extension is wasmtime's notes on an entry, or not written to its end.
fn entries(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut entries = BTreeMap::new();
    let modules = folder.join(CODE).join("modules");
    if !modules.is_dir() {
        return Ok(entries);
    }
    for version in fs::read_dir(modules)? {
        for file in fs::read_dir(version?.path())? {
            let file = file?.path();
            if let (None, Ok(path)) = (file.extension(), file.strip_prefix(folder)) {
                entries.insert(path.display().to_string(), file);
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::policy::guest::module;
    use crate::policy::guest::runtime::{Runtime, RuntimeConfig};

    /// A component that stands for a plugin; `number` makes it one of its own.
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

    /// Starts anew, compiles, and answers how often code was found and made.
    fn restart(folder: &Path, plugins: &[Vec<u8>]) -> (usize, usize) {
        let runtime = runtime(folder);
        for plugin in plugins {
            wasmtime::component::Component::new(&runtime.engine, plugin).unwrap();
        }
        let code = runtime.code.as_ref().expect("the folder can be used");
        code.note();
        (code.found(), code.made())
    }

    fn only_entry(folder: &Path) -> PathBuf {
        let entries = entries(&folder.canonicalize().unwrap()).unwrap();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries.into_values().next().unwrap()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_second_start_finds_what_the_first_one_compiled() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        let plugins = [plugin(1), plugin(2)];
        assert_eq!(restart(&compiled, &plugins), (0, 2));
        assert_eq!(restart(&compiled, &plugins), (2, 0));
        assert_eq!(restart(&compiled, &[plugin(3), plugin(1)]), (1, 1));
        assert_eq!(fs::metadata(&compiled).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn an_entry_that_was_changed_or_cut_is_compiled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        assert_eq!(restart(&compiled, &[plugin(1)]), (0, 1));
        let entry = only_entry(&compiled);
        let whole = fs::read(&entry).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new(), b"not code".to_vec()] {
            fs::write(&entry, &damaged).unwrap();
            assert_eq!(restart(&compiled, &[plugin(1)]), (0, 1), "{} bytes", damaged.len());
            assert_eq!(restart(&compiled, &[plugin(1)]), (1, 0));
        }
        fs::remove_file(compiled.join(DIGESTS)).unwrap();
        assert_eq!(restart(&compiled, &[plugin(1)]), (0, 1), "without digests nothing is trusted");
    }

    #[test]
    fn code_of_another_plugin_or_another_wasmtime_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        let entry = only_entry(&compiled);
        // All that this wasmtime made is said to be of another one, digests and all.
        let foreign = entry.parent().unwrap().with_file_name("wasmtime-1.0.0");
        fs::rename(entry.parent().unwrap(), &foreign).unwrap();
        let (ours, theirs) = (entry.parent().unwrap().file_name().unwrap(), "wasmtime-1.0.0");
        let digests = fs::read_to_string(compiled.join(DIGESTS)).unwrap();
        let moved = digests.replace(ours.to_str().unwrap(), theirs);
        assert_ne!(digests, moved);
        fs::write(compiled.join(DIGESTS), moved).unwrap();
        assert_eq!(restart(&compiled, &[plugin(1)]), (0, 1));
        assert_eq!(restart(&compiled, &[plugin(2), plugin(1)]), (1, 1));
    }

    #[test]
    fn what_wasmtime_itself_finds_no_code_in_is_compiled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        // With a digest that says that it is right.
        let entry = only_entry(&compiled);
        fs::write(&entry, b"not code").unwrap();
        let folder = compiled.canonicalize().unwrap();
        note(&folder, &mut BTreeMap::new()).unwrap();
        assert_eq!(restart(&compiled, &[plugin(1)]), (0, 1));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        for (path, open) in [(folder.path(), 0o770), (&*compiled, 0o702), (&compiled.join(CODE), 0o720)] {
            mode(path, open);
            let why = CodeCache::open(&compiled).unwrap_err();
            assert!(why.contains("others may write to") && why.contains("chmod go-w"), "{why}");
            assert!(runtime(&compiled).code.is_none(), "the gateway starts without it");
            mode(path, 0o700);
        }
        assert_eq!(restart(&compiled, &[plugin(1)]), (1, 0));
    }

    #[test]
    fn where_no_folder_can_be_the_gateway_starts_without_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let runtime = runtime(&file.join("compiled"));
        assert!(runtime.code.is_none());
        assert!(module::compile(&runtime, &plugin(1)).err().unwrap().contains("halley:policy@0.0.1"));
        assert!(CodeCache::open(Path::new("/proc/compiled")).unwrap_err().contains("cannot be used"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = folder.path().join("compiled");
        restart(&compiled, &[plugin(1)]);
        // Root may write anywhere: a folder in the probe's place stands for one that is read-only.
        fs::create_dir(compiled.join(".probe")).unwrap();
        assert!(runtime(&compiled).code.is_none());
    }
}
