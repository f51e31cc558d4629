//! Stores versions: in a directory with the files by hash and one record per plugin, or in memory.
//!
//! ```text
//! <state_folder>/lock                     held by the gateway that uses the folder
//! <state_folder>/versions/<sha256>.wasm   plugins' files
//! <state_folder>/versions/<sha256>.<name>.sig   their signatures, by plugin, where they have one
//! <state_folder>/plugins/<name>.json      what is remembered of each plugin
//! ```
//!
//! Files are replaced atomically, so a crash leaves the old or the new content. Everything that is
//! read is verified: against its hash, and that nobody else can have written it (`files`). Knows
//! nothing of the meaning of records.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use crate::artifact::file::MAX_SIZE;
use crate::artifact::versions::record::Record;
use crate::digest;
use crate::files::OwnFolder;

/// The extension of signatures.
const SIGNED: &str = ".sig";
/// The maximum size of a signature and of a record that are read, in bytes.
const MAX_SIGNATURE: u64 = 1024;
const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// The place where versions are stored.
#[derive(Debug)]
pub(super) enum Store {
    Folder(Folder),
    /// The files by hash.
    Memory(BTreeMap<String, Arc<[u8]>>),
}

/// A directory, locked until this is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    versions: OwnFolder,
    plugins: OwnFolder,
    _lock: File,
}

impl Store {
    /// Opens a directory, creating it if needed, and reads its records.
    ///
    /// # Errors
    /// When it cannot be used, or another gateway uses it.
    pub(super) fn open(path: &Path) -> anyhow::Result<(Self, BTreeMap<String, Record>)> {
        let name = || format!("[policies] state_folder {}", path.display());
        let create = |path: &Path| {
            OwnFolder::create(path)
                .map_err(|why| anyhow::anyhow!("[policies] state_folder {} {why}", path.display()))
        };
        let whole = create(path)?;
        let lock = whole.open_lock("lock").with_context(|| format!("{} cannot be locked", name()))?;
        if lock.try_lock().is_err() {
            anyhow::bail!(
                "[policies] state_folder {} is used by another gateway; give each its own",
                path.display()
            );
        }
        if let Some(shared) = whole.shared() {
            tracing::warn!(
                state_folder = %path.display(),
                "others may write to {}: compiled code is not cached, and stored versions can be removed; \
                 give the gateway a directory or a volume of its own",
                shared.display()
            );
        }
        let (versions, plugins) = (create(&path.join("versions"))?, create(&path.join("plugins"))?);
        versions.tidy();
        plugins.tidy();
        let folder = Folder { versions, plugins, _lock: lock };
        let records = folder.records().with_context(name)?;
        Ok((Self::Folder(folder), records))
    }

    /// Stores a plugin's file.
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

    /// Stores the signature of a plugin's file: another plugin has another signature for the same
    /// file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn put_signature(
        &mut self,
        plugin: &str,
        hash: &str,
        signature: &Arc<[u8]>,
    ) -> anyhow::Result<()> {
        if self.signature(plugin, hash).as_ref() == Some(signature) {
            return Ok(());
        }
        let name = format!("{hash}.{plugin}{SIGNED}");
        match self {
            Self::Folder(folder) => folder.versions.replace(&name, signature),
            Self::Memory(files) => {
                files.insert(name, Arc::clone(signature));
                Ok(())
            }
        }
    }

    /// The signature of a plugin's file, if one is stored.
    pub(super) fn signature(&self, plugin: &str, hash: &str) -> Option<Arc<[u8]>> {
        let name = format!("{hash}.{plugin}{SIGNED}");
        match self {
            Self::Folder(folder) => {
                let read = |name: &str| folder.versions.read(name, MAX_SIGNATURE).ok().map(Arc::from);
                // Earlier gateways stored one signature for all plugins.
                read(&name).or_else(|| read(&format!("{hash}{SIGNED}")))
            }
            Self::Memory(files) => files.get(&name).cloned(),
        }
    }

    /// Reads a plugin's file.
    ///
    /// # Errors
    /// When it is missing, or its content has changed.
    pub(super) fn get(&self, hash: &str) -> Result<Arc<[u8]>, String> {
        match self {
            Self::Folder(folder) => folder.get(hash),
            Self::Memory(files) => {
                files.get(hash).cloned().ok_or_else(|| format!("version {hash} is not stored"))
            }
        }
    }

    /// Writes the record of a plugin.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn remember(&self, plugin: &str, record: &Record) -> anyhow::Result<()> {
        let Self::Folder(folder) = self else { return Ok(()) };
        let text = serde_json::to_vec_pretty(record)?;
        folder.plugins.replace(&format!("{plugin}.json"), &text)
    }

    /// Removes the files that no record refers to.
    pub(super) fn sweep(&mut self, used: &HashSet<&str>) {
        match self {
            Self::Folder(folder) => folder.sweep(used),
            Self::Memory(files) => files.retain(|name, _| used.contains(hash_of(name))),
        }
    }
}

impl Folder {
    fn put(&self, hash: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if self.get(hash).is_ok() {
            return Ok(());
        }
        self.versions.replace(&format!("{hash}.wasm"), bytes)
    }

    fn get(&self, hash: &str) -> Result<Arc<[u8]>, String> {
        let name = format!("{hash}.wasm");
        let path = self.versions.path().join(&name);
        let read = self.versions.read(&name, MAX_SIZE);
        let bytes = read.map_err(|why| format!("{} {why}", path.display()))?;
        if digest::hash(&bytes) != hash {
            return Err(format!("{} was modified: its content has another hash", path.display()));
        }
        Ok(bytes.into())
    }

    /// A record that cannot be read is skipped with a warning: the plugin's file decides then.
    fn records(&self) -> anyhow::Result<BTreeMap<String, Record>> {
        let mut records = BTreeMap::new();
        for file in self.plugins.names()? {
            let Some(name) = file.strip_suffix(".json") else { continue };
            let read = self.plugins.read(&file, MAX_RECORD).map_err(anyhow::Error::from);
            match read.and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(record) => drop(records.insert(name.to_owned(), record)),
                Err(error) => {
                    let path = self.plugins.path().join(&file);
                    tracing::warn!(path = %path.display(), %error, "the record cannot be read; the plugin's file decides");
                }
            }
        }
        Ok(records)
    }

    fn sweep(&self, used: &HashSet<&str>) {
        for name in self.versions.names().unwrap_or_default() {
            if !used.contains(hash_of(&name)) {
                // The next version tries again.
                let _ = self.versions.remove(&name);
            }
        }
    }
}

/// The hash at the beginning of a file's name.
fn hash_of(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_what_was_tampered_with_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Arc<[u8]> = Arc::from(*b"wasm");
        let hash = digest::hash(&bytes);
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
        assert!(store.get(&hash).unwrap_err().contains("was modified"));
        store.put(&hash, &bytes).unwrap();
        assert_eq!(*store.get(&hash).unwrap(), *b"wasm", "a modified file is written again");
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
