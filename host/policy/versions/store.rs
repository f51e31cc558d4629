//! Where versions are kept: a folder with the files by their hashes and one record for each
//! plugin, or memory.
//!
//! ```text
//! <state_folder>/lock                     held by the gateway that uses the folder
//! <state_folder>/versions/<sha256>.wasm   plugins' files
//! <state_folder>/versions/<sha256>.sig    their signatures, where they have one
//! <state_folder>/plugins/<name>.json      what is remembered of each plugin
//! ```
//!
//! Files are written beside and renamed, so that a crash leaves the old or the new one. What
//! is read is checked against its hash. Knows nothing of what the records mean.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

use crate::policy::file;
use crate::policy::guest::module;
use crate::policy::versions::record::Record;

/// What the name of a signature ends with.
const SIGNED: &str = ".sig";
/// The largest signature and the largest record that are read, in bytes.
const MAX_SIGNATURE: u64 = 1024;
const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// Where versions are kept.
#[derive(Debug)]
pub(super) enum Store {
    Folder(Folder),
    /// The files by their hashes.
    Memory(BTreeMap<String, Arc<[u8]>>),
}

/// A folder, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens a folder, which is made where there is none, and reads what is in it.
    ///
    /// # Errors
    /// When it cannot be used, or another gateway uses it.
    pub(super) fn open(path: &Path) -> anyhow::Result<(Self, BTreeMap<String, Record>)> {
        let failed = || format!("[policies] state_folder {} cannot be used", path.display());
        for part in ["versions", "plugins"] {
            fs::create_dir_all(path.join(part)).with_context(failed)?;
        }
        let lock = File::create(path.join("lock")).with_context(failed)?;
        if lock.try_lock().is_err() {
            anyhow::bail!(
                "[policies] state_folder {} is used by another gateway; give each its own",
                path.display()
            );
        }
        let folder = Folder { path: path.to_owned(), _lock: lock };
        let records = folder.records().with_context(failed)?;
        Ok((Self::Folder(folder), records))
    }

    /// Keeps a plugin's file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn put(&mut self, hash: &str, bytes: &Arc<[u8]>) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => folder.put(hash, bytes),
            Self::Memory(files) => {
                files.entry(hash.to_owned()).or_insert_with(|| Arc::clone(bytes));
                Ok(())
            }
        }
    }

    /// Keeps the signature of a plugin's file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn put_signature(&mut self, hash: &str, signature: &Arc<[u8]>) -> anyhow::Result<()> {
        if self.signature(hash).as_ref() == Some(signature) {
            return Ok(());
        }
        match self {
            Self::Folder(folder) => write(&folder.signature(hash), signature),
            Self::Memory(files) => {
                files.insert(format!("{hash}{SIGNED}"), Arc::clone(signature));
                Ok(())
            }
        }
    }

    /// The signature of a plugin's file, where one is kept.
    pub(super) fn signature(&self, hash: &str) -> Option<Arc<[u8]>> {
        match self {
            Self::Folder(folder) => file::read(&folder.signature(hash), MAX_SIGNATURE).ok().map(Arc::from),
            Self::Memory(files) => files.get(&format!("{hash}{SIGNED}")).cloned(),
        }
    }

    /// Reads a plugin's file.
    ///
    /// # Errors
    /// When it is not there, or is not what was kept.
    pub(super) fn get(&self, hash: &str) -> Result<Arc<[u8]>, String> {
        match self {
            Self::Folder(folder) => folder.get(hash),
            Self::Memory(files) => {
                files.get(hash).cloned().ok_or_else(|| format!("version {hash} is not kept"))
            }
        }
    }

    /// Writes what is remembered of a plugin.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn remember(&self, plugin: &str, record: &Record) -> anyhow::Result<()> {
        let Self::Folder(folder) = self else { return Ok(()) };
        let text = serde_json::to_vec_pretty(record)?;
        write(&folder.path.join("plugins").join(format!("{plugin}.json")), &text)
    }

    /// Forgets the files that no record speaks of.
    pub(super) fn sweep(&mut self, used: &HashSet<&str>) {
        match self {
            Self::Folder(folder) => folder.sweep(used),
            Self::Memory(files) => files.retain(|name, _| used.contains(name.trim_end_matches(SIGNED))),
        }
    }
}

impl Folder {
    fn file(&self, hash: &str) -> PathBuf {
        self.path.join("versions").join(format!("{hash}.wasm"))
    }

    fn signature(&self, hash: &str) -> PathBuf {
        self.path.join("versions").join(format!("{hash}{SIGNED}"))
    }

    fn put(&self, hash: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if self.get(hash).is_ok() {
            return Ok(());
        }
        write(&self.file(hash), bytes)
    }

    fn get(&self, hash: &str) -> Result<Arc<[u8]>, String> {
        let path = self.file(hash);
        let bytes = module::read(&path).map_err(|why| format!("{} {why}", path.display()))?;
        if module::hash(&bytes) != hash {
            return Err(format!("{} was changed by somebody: its content has another hash", path.display()));
        }
        Ok(bytes.into())
    }

    /// A record that cannot be read is left out and told of: the plugin's file decides then.
    fn records(&self) -> anyhow::Result<BTreeMap<String, Record>> {
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(self.path.join("plugins"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let read = file::read(&path, MAX_RECORD).map_err(anyhow::Error::from);
            match read.and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(record) => drop(records.insert(name, record)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot be read; the plugin's file decides");
                }
            }
        }
        Ok(records)
    }

    fn sweep(&self, used: &HashSet<&str>) {
        let Ok(entries) = fs::read_dir(self.path.join("versions")) else { return };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let hash = path.file_stem().unwrap_or_default().to_string_lossy();
            if !used.contains(&*hash) {
                // It is tried again with the next version.
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// Writes a file as a whole or not at all, on the disk before it has its name.
fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_extension("tmp");
    let written = File::create(&beside)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    written.with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_what_was_tampered_with_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Arc<[u8]> = Arc::from(*b"wasm");
        let hash = module::hash(&bytes);
        let (mut store, records) = Store::open(folder.path()).unwrap();
        assert!(records.is_empty());
        store.put(&hash, &bytes).unwrap();
        let record = Record { in_force: Some(hash.clone()), ..Record::default() };
        store.remember("p", &record).unwrap();
        assert!(Store::open(folder.path()).unwrap_err().to_string().contains("another gateway"));
        drop(store);

        let (mut store, records) = Store::open(folder.path()).unwrap();
        assert_eq!(records, BTreeMap::from([("p".to_owned(), record)]));
        assert_eq!(*store.get(&hash).unwrap(), *b"wasm");
        fs::write(folder.path().join(format!("versions/{hash}.wasm")), b"evil").unwrap();
        assert!(store.get(&hash).unwrap_err().contains("changed by somebody"));
        store.put(&hash, &bytes).unwrap();
        assert_eq!(*store.get(&hash).unwrap(), *b"wasm", "what is broken is written again");
        store.sweep(&HashSet::new());
        assert!(store.get(&hash).is_err());
    }

    #[test]
    fn a_broken_record_costs_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        fs::write(folder.path().join("plugins/a.json"), b"{").unwrap();
        fs::write(
            folder.path().join("plugins/b.json"),
            b"{\"versions\":[],\"in_force\":null,\"instead\":null}",
        )
        .unwrap();
        let (_store, records) = Store::open(folder.path()).unwrap();
        assert_eq!(records.keys().collect::<Vec<_>>(), ["b"]);
    }
}
