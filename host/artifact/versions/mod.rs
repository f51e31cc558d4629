//! The versions of each plugin: their history, and the overrides of a plugin's file by a push, a
//! rollback or a quarantine.
//!
//! - `record`: the history of one plugin, and its rules. Pure.
//! - `store`: the directory (or memory) that stores it.
//!
//! An override applies to one content of the file: a new file ends it.

mod record;
mod store;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use parking_lot::Mutex;

pub(crate) use record::{EffectiveVersion, VersionError, VersionHistory};
pub use record::{
    Exclusion, OverrideCause, RolloutResult, StoredVersion, Transition, VersionEvent, VersionOverride,
};

use store::VersionStore;

use crate::artifact::error::ArtifactError;
use crate::artifact::file::Artifact;
use crate::digest::Digest;

/// How many versions of a plugin are kept in memory, without a directory.
const KEPT_IN_MEMORY: usize = 3;

/// The stored versions of all plugins. One per gateway.
#[derive(Debug)]
pub struct Versions {
    keep: usize,
    kept: Mutex<VersionTable>,
}

#[derive(Debug)]
struct VersionTable {
    store: VersionStore,
    records: BTreeMap<String, VersionHistory>,
}

/// The changes that a new policy set makes to one plugin.
#[derive(Debug, Default)]
pub(crate) struct VersionChange {
    pub(crate) plugin: String,
    /// The active version from now on, if any.
    pub(crate) to: Option<(Digest, Artifact)>,
    /// The number that it is signed with.
    pub(crate) signed: Option<u64>,
    pub(crate) why: String,
    /// The override of the file from now on; `None` if the file decides.
    pub(crate) version_override: Option<VersionOverride>,
    /// Why the version that was active is excluded from rollbacks.
    pub(crate) exclusion: Option<Exclusion>,
    /// The candidate whose rollout ends with this change.
    pub(crate) rollout_result: Option<RolloutResult>,
}

impl Versions {
    /// Stores versions in memory: the last three of each plugin.
    pub fn in_memory() -> Self {
        let kept = VersionTable { store: VersionStore::Memory(BTreeMap::new()), records: BTreeMap::new() };
        Self { keep: KEPT_IN_MEMORY, kept: Mutex::new(kept) }
    }

    /// Stores versions in a directory, which no other gateway may use: the last `keep` of each
    /// plugin, and those in use.
    ///
    /// # Errors
    /// When the directory cannot be used, or another gateway uses it.
    pub fn in_folder(folder: &Path, keep: usize) -> anyhow::Result<Self> {
        let (store, records) = VersionStore::open(folder)?;
        Ok(Self { keep, kept: Mutex::new(VersionTable { store, records }) })
    }

    /// The version that decides for a plugin whose file has this hash.
    pub(crate) fn choose(&self, plugin: &str, file: Option<Digest>) -> EffectiveVersion {
        self.kept.lock().records.get(plugin).map_or(EffectiveVersion::File, |record| record.choose(file))
    }

    /// The file of a stored version, with its signature.
    ///
    /// # Errors
    /// When it is not stored, or was modified.
    pub(crate) fn file(&self, plugin: &str, hash: Digest) -> Result<Artifact, ArtifactError> {
        let kept = self.kept.lock();
        Ok(Artifact { bytes: kept.store.get(hash)?, signature: kept.store.signature(plugin, hash) })
    }

    /// The history of a plugin.
    pub(crate) fn record(&self, plugin: &str) -> Option<VersionHistory> {
        self.kept.lock().records.get(plugin).cloned()
    }

    /// The overrides of files, by plugin.
    pub(crate) fn overrides(&self) -> Vec<(String, VersionOverride)> {
        let kept = self.kept.lock();
        let version_override = |(name, record): (&String, &VersionHistory)| {
            Some((name.clone(), record.version_override.clone()?))
        };
        kept.records.iter().filter_map(version_override).collect()
    }

    /// Stores the changes of a new set, completely or not at all.
    ///
    /// # Errors
    /// When they cannot be written to disk.
    pub(crate) fn commit(&self, changes: Vec<VersionChange>) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let mut kept = self.kept.lock();
        let VersionTable { store, records } = &mut *kept;
        let mut after = BTreeMap::new();
        for change in changes {
            let before = records.get(&change.plugin).cloned().unwrap_or_default();
            let changed = apply_change(&before, &change, self.keep, now);
            if let Some((hash, Artifact { signature: Some(signature), .. })) = &change.to {
                store.put_signature(&change.plugin, *hash, signature)?;
            }
            if changed == before {
                continue;
            }
            if let Some((hash, Artifact { bytes, .. })) = &change.to {
                store.put(*hash, bytes)?;
            }
            after.insert(change.plugin, changed);
        }
        if after.is_empty() {
            return Ok(());
        }
        write_records(store, records, &after)?;
        records.extend(after);
        let used = records.values().flat_map(|record| &record.versions);
        let used: HashSet<Digest> = used.map(|version| version.hash).collect();
        store.sweep(&used);
        Ok(())
    }

    /// The plugins with an active version, and its hash.
    pub(crate) fn active(&self) -> BTreeMap<String, Digest> {
        let kept = self.kept.lock();
        let active = |(name, record): (&String, &VersionHistory)| Some((name.clone(), record.active?));
        kept.records.iter().filter_map(active).collect()
    }
}

/// Writes all of these records. If one cannot be written, the earlier ones are restored: a restart
/// must not come up with half of a set.
fn write_records(
    store: &VersionStore,
    before: &BTreeMap<String, VersionHistory>,
    after: &BTreeMap<String, VersionHistory>,
) -> anyhow::Result<()> {
    for (at, (plugin, record)) in after.iter().enumerate() {
        let Err(error) = store.write_record(plugin, record) else { continue };
        for plugin in after.keys().take(at) {
            let was = before.get(plugin).cloned().unwrap_or_default();
            if let Err(error) = store.write_record(plugin, &was) {
                tracing::error!(plugin, %error, "its stored record names a version that was never active");
            }
        }
        return Err(error);
    }
    Ok(())
}

fn apply_change(
    before: &VersionHistory,
    change: &VersionChange,
    keep: usize,
    now: SystemTime,
) -> VersionHistory {
    let mut after = before.clone();
    let to = change.to.as_ref().map(|(hash, version)| (*hash, version.bytes.len() as u64));
    let left = before.active.filter(|left| Some(*left) != to.map(|(hash, _)| hash));
    after.transition(to, &change.why, now);
    if let (Some(left), Some(exclusion)) = (left, &change.exclusion) {
        after.exclude(left, exclusion.clone());
    }
    after.version_override = change.version_override.clone();
    after.highest_signed = after.highest_signed.max(change.signed);
    after.rollout_result = change.rollout_result.clone().or(after.rollout_result);
    after.prune(keep);
    after
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn change(plugin: &str, content: &[u8]) -> VersionChange {
        let bytes: Arc<[u8]> = Arc::from(content);
        let to = Some((Digest::of(&bytes), Artifact { bytes, signature: None }));
        VersionChange {
            plugin: plugin.into(),
            to,
            signed: None,
            why: "its file".into(),
            version_override: None,
            exclusion: None,
            rollout_result: None,
        }
    }

    #[test]
    fn pruned_versions_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let versions = Versions::in_folder(folder.path(), 2).unwrap();
        for content in [b"one", b"two", b"six"] {
            versions.commit(vec![change("p", content)]).unwrap();
        }
        let record = versions.record("p").unwrap();
        assert_eq!(record.versions.len(), 2);
        assert_eq!(std::fs::read_dir(folder.path().join("versions")).unwrap().count(), 2);
        drop(versions);
        let versions = Versions::in_folder(folder.path(), 2).unwrap();
        assert_eq!(versions.record("p"), Some(record.clone()));
        assert_eq!(versions.active().get("p"), record.active.as_ref());
        assert_eq!(
            *versions.file("p", record.rollback_candidates().next().unwrap().hash).unwrap().bytes,
            *b"two"
        );
    }

    #[test]
    fn a_failed_commit_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let versions = Versions::in_folder(folder.path(), 10).unwrap();
        versions.commit(vec![change("a", b"old"), change("b", b"old")]).unwrap();
        let before = (versions.record("a"), versions.record("b"));
        let record = folder.path().join("plugins/b.json");
        std::fs::remove_file(&record).unwrap();
        // A folder with something in it cannot be renamed over.
        std::fs::create_dir_all(record.join("in the way")).unwrap();
        versions.commit(vec![change("a", b"new"), change("b", b"new")]).unwrap_err();
        assert_eq!((versions.record("a"), versions.record("b")), before);
        drop(versions);
        let versions = Versions::in_folder(folder.path(), 10).unwrap();
        assert_eq!(versions.record("a"), before.0, "after a restart, too");
    }

    #[test]
    fn memory_keeps_the_last_three() {
        let versions = Versions::in_memory();
        for content in 0..10_u8 {
            versions.commit(vec![change("p", &[content])]).unwrap();
        }
        let record = versions.record("p").unwrap();
        assert_eq!(record.versions.len(), 3);
        assert!(record.versions.iter().all(|version| versions.file("p", version.hash).is_ok()));
    }
}
