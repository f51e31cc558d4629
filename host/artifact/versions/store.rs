//! Stores versions: in a directory with the files by hash and one record per plugin, or in memory.
//!
//! ```text
//! <state_dir>/lock                     held by the gateway that uses the folder
//! <state_dir>/versions/<sha256>.wasm   plugins' files
//! <state_dir>/versions/<sha256>.<name>.sig   their signatures, by plugin, if they have one
//! <state_dir>/plugins/<name>.json      the record of each plugin
//! ```
//!
//! Files are replaced atomically, so a crash leaves the old or the new content. Everything that is
//! read is verified: against its hash, and that nobody else can have written it (`files`). It does not
//! know the meaning of records.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use crate::artifact::error::ArtifactError;
use crate::artifact::file::MAX_SIZE;
use crate::artifact::versions::record::VersionHistory;
use crate::digest::Digest;
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
    pub(super) fn put(&mut self, hash: Digest, bytes: &Arc<[u8]>) -> anyhow::Result<()> {
        match self {
            Self::VersionFolder(folder) => folder.put(hash, bytes),
            Self::Memory(files) => {
                files.entry(hash.to_string()).or_insert_with(|| Arc::clone(bytes));
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
        hash: Digest,
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
    pub(super) fn signature(&self, plugin: &str, hash: Digest) -> Option<Arc<[u8]>> {
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
    pub(super) fn get(&self, hash: Digest) -> Result<Arc<[u8]>, ArtifactError> {
        match self {
            Self::VersionFolder(folder) => folder.get(hash),
            Self::Memory(files) => {
                let missing = || ArtifactError::Unreadable(format!("version {hash} is not stored"));
                files.get(&hash.to_string()).cloned().ok_or_else(missing)
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
    pub(super) fn sweep(&mut self, used: &HashSet<Digest>) {
        match self {
            Self::VersionFolder(folder) => folder.sweep(used),
            Self::Memory(files) => files.retain(|name, _| is_used(name, used)),
        }
    }
}

impl VersionFolder {
    fn put(&self, hash: Digest, bytes: &[u8]) -> anyhow::Result<()> {
        if self.get(hash).is_ok() {
            return Ok(());
        }
        self.versions.replace(&format!("{hash}.wasm"), bytes)
    }

    fn get(&self, hash: Digest) -> Result<Arc<[u8]>, ArtifactError> {
        let name = format!("{hash}.wasm");
        let path = self.versions.path().join(&name);
        let read = self.versions.read(&name, MAX_SIZE);
        let bytes = read.map_err(|why| ArtifactError::Unreadable(format!("{} {why}", path.display())))?;
        if Digest::of(&bytes) != hash {
            let why = format!("{} was modified: its content has another hash", path.display());
            return Err(ArtifactError::Unreadable(why));
        }
        Ok(bytes.into())
    }

    /// A record that cannot be read is skipped with a warning: the plugin's file decides then.
    fn records(&self) -> anyhow::Result<BTreeMap<String, VersionHistory>> {
        let mut records = BTreeMap::new();
        for file in self.plugins.names()? {
            let Some(name) = file.strip_suffix(".json") else { continue };
            let read = self.plugins.read(&file, MAX_RECORD).map_err(anyhow::Error::from);
            let path = self.plugins.path().join(&file);
            match read.and_then(|text| parse_record(&path, &text)) {
                Ok(record) => drop(records.insert(name.to_owned(), record)),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(path = %path.display(), error, "the record cannot be read; the plugin's file decides");
                }
            }
        }
        Ok(records)
    }

    fn sweep(&self, used: &HashSet<Digest>) {
        for name in self.versions.names().unwrap_or_default() {
            if !is_used(&name, used) {
                // A failure is retried with the next version.
                let _ = self.versions.remove(&name);
            }
        }
    }
}

/// The record in a file of this name.
fn parse_record(path: &Path, text: &[u8]) -> anyhow::Result<VersionHistory> {
    serde_json::from_slice(text).with_context(|| path.display().to_string())
}

/// Whether the hash at the beginning of a file's name is one of these.
fn is_used(name: &str, used: &HashSet<Digest>) -> bool {
    let hash = name.split('.').next().unwrap_or_default();
    hash.parse().is_ok_and(|hash: Digest| used.contains(&hash))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn stored_versions_survive_and_tampering_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Arc<[u8]> = Arc::from(*b"wasm");
        let hash = Digest::of(&bytes);
        let (mut store, records) = VersionStore::open(folder.path()).unwrap();
        assert!(records.is_empty());
        store.put(hash, &bytes).unwrap();
        let record = VersionHistory { active: Some(hash), ..VersionHistory::default() };
        store.write_record("p", &record).unwrap();
        assert!(VersionStore::open(folder.path()).unwrap_err().to_string().contains("another gateway"));
        drop(store);

        let (mut store, records) = VersionStore::open(folder.path()).unwrap();
        assert_eq!(records, BTreeMap::from([("p".to_owned(), record)]));
        assert_eq!(*store.get(hash).unwrap(), *b"wasm");
        fs::write(folder.path().join(format!("versions/{hash}.wasm")), b"evil").unwrap();
        assert!(store.get(hash).unwrap_err().to_string().contains("was modified"));
        store.put(hash, &bytes).unwrap();
        assert_eq!(*store.get(hash).unwrap(), *b"wasm", "a modified file is written again");
        store.sweep(&HashSet::new());
        assert!(store.get(hash).is_err());
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

    #[test]
    fn a_shortened_hash_in_a_record_is_an_error() {
        let whole = Digest::of(b"wasm").to_string();
        let read = |hash: &str| {
            let text = format!("{{\"versions\":[],\"active\":\"{hash}\",\"version_override\":null}}");
            parse_record(Path::new("plugins/a.json"), text.as_bytes())
        };
        assert_eq!(read(&whole).unwrap().active, Some(Digest::of(b"wasm")));
        for shortened in [&whole[..8], &whole[..63], ""] {
            let why = format!("{:#}", read(shortened).unwrap_err());
            assert!(why.contains("plugins/a.json") && why.contains("64 hex digits"), "{why}");
        }
    }
}
