//! Stores versions: in a directory with the files by hash and one record per plugin, or in memory.
//!
//! ```text
//! <state_dir>/lock                     held by the gateway that uses the folder
//! <state_dir>/versions/<sha256>.wasm   plugins' files
//! <state_dir>/versions/<sha256>.<name>.sig   their signatures, by plugin, where they have one
//! <state_dir>/plugins/<name>.json      what is remembered of each plugin
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
use crate::artifact::versions::record::VersionHistory;
use crate::digest;
use crate::files::OwnedDir;

/// The extension of signatures.
const SIGNED: &str = ".sig";
/// The maximum size of a signature and of a record that are read, in bytes.
const MAX_SIGNATURE: u64 = 1024;
const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// The place where versions are stored.
#[derive(Debug)]
pub(super) enum VersionStore {
    VersionFolder(VersionFolder),
    /// The files by hash.
    Memory(BTreeMap<String, Arc<[u8]>>),
}

/// A directory, locked until this is dropped.
#[derive(Debug)]
pub(super) struct VersionFolder {
    versions: OwnedDir,
    plugins: OwnedDir,
    _lock: File,
}

impl VersionStore {
    /// Opens a directory, creating it if needed, and reads its records.
    ///
    /// # Errors
    /// When it cannot be used, or another gateway uses it.
    pub(super) fn open(path: &Path) -> anyhow::Result<(Self, BTreeMap<String, VersionHistory>)> {
        let name = || format!("[policies] state_dir {}", path.display());
        let create = |path: &Path| {
            OwnedDir::create(path)
                .map_err(|why| anyhow::anyhow!("[policies] state_dir {} {why}", path.display()))
        };
        let whole = create(path)?;
        let lock = whole.open_lock("lock").with_context(|| format!("{} cannot be locked", name()))?;
        if lock.try_lock().is_err() {
            anyhow::bail!(
                "[policies] state_dir {} is used by another gateway; give each its own",
                path.display()
            );
        }
        if let Some(shared) = whole.shared() {
            tracing::warn!(
                state_dir = %path.display(),
                "others may write to {}: compiled code is not cached, and stored versions can be removed; \
                 give the gateway a directory or a volume of its own",
                shared.display()
            );
        }
        let (versions, plugins) = (create(&path.join("versions"))?, create(&path.join("plugins"))?);
        versions.remove_temporary();
        plugins.remove_temporary();
        let folder = VersionFolder { versions, plugins, _lock: lock };
        let records = folder.records().with_context(name)?;
        Ok((Self::VersionFolder(folder), records))
    }

    /// Stores a plugin's file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn put(&mut self, hash: &str, bytes: &Arc<[u8]>) -> anyhow::Result<()> {
        match self {
            Self::VersionFolder(folder) => folder.put(hash, bytes),
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
            Self::VersionFolder(folder) => folder.versions.replace(&name, signature),
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
            Self::VersionFolder(folder) => {
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
            Self::VersionFolder(folder) => folder.get(hash),
            Self::Memory(files) => {
                files.get(hash).cloned().ok_or_else(|| format!("version {hash} is not stored"))
            }
        }
    }

    /// Writes the record of a plugin.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write_record(&self, plugin: &str, record: &VersionHistory) -> anyhow::Result<()> {
        let Self::VersionFolder(folder) = self else { return Ok(()) };
        let text = serde_json::to_vec_pretty(record)?;
        folder.plugins.replace(&format!("{plugin}.json"), &text)
    }

    /// Removes the files that no record refers to.
    pub(super) fn sweep(&mut self, used: &HashSet<&str>) {
        match self {
            Self::VersionFolder(folder) => folder.sweep(used),
            Self::Memory(files) => files.retain(|name, _| used.contains(hash_of(name))),
        }
    }
}

impl VersionFolder {
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
    fn records(&self) -> anyhow::Result<BTreeMap<String, VersionHistory>> {
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
    fn stored_versions_survive_and_tampering_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Arc<[u8]> = Arc::from(*b"wasm");
        let hash = digest::hash(&bytes);
        let (mut store, records) = VersionStore::open(folder.path()).unwrap();
        assert!(records.is_empty());
        store.put(&hash, &bytes).unwrap();
        let record = VersionHistory { active: Some(hash.clone()), ..VersionHistory::default() };
        store.write_record("p", &record).unwrap();
        assert!(VersionStore::open(folder.path()).unwrap_err().to_string().contains("another gateway"));
        drop(store);

        let (mut store, records) = VersionStore::open(folder.path()).unwrap();
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
        drop(VersionStore::open(folder.path()).unwrap());
        fs::write(folder.path().join("plugins/a.json"), b"{").unwrap();
        fs::write(
            folder.path().join("plugins/b.json"),
            b"{\"versions\":[],\"in_force\":null,\"version_override\":null}",
        )
        .unwrap();
        let (_store, records) = VersionStore::open(folder.path()).unwrap();
        assert_eq!(records.keys().collect::<Vec<_>>(), ["b"]);
    }
}
