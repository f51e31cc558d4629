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

pub use record::{Against, Cause, Event, KeptVersion, Override, Tried, Turn};
pub(crate) use record::{Choice, Record};

use store::Store;

use crate::artifact::file::Arrived;

/// How many versions of a plugin are kept in memory, without a directory.
const KEPT_IN_MEMORY: usize = 3;

/// The stored versions of all plugins. One per gateway.
#[derive(Debug)]
pub struct Versions {
    keep: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    store: Store,
    records: BTreeMap<String, Record>,
}

/// The changes that a new policy set makes to one plugin.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) plugin: String,
    /// The active version from now on, if any.
    pub(crate) to: Option<(String, Arrived)>,
    /// The number that it is signed with.
    pub(crate) signed: Option<u64>,
    pub(crate) why: String,
    /// The override of the file from now on; `None` if the file decides.
    pub(crate) instead: Option<Override>,
    /// Why the version that was active is excluded from rollbacks.
    pub(crate) against: Option<Against>,
    /// The candidate whose rollout ends with this change.
    pub(crate) tried: Option<Tried>,
}

impl Versions {
    /// Stores versions in memory: the last three of each plugin.
    pub fn in_memory() -> Self {
        let kept = Kept { store: Store::Memory(BTreeMap::new()), records: BTreeMap::new() };
        Self { keep: KEPT_IN_MEMORY, kept: Mutex::new(kept) }
    }

    /// Stores versions in a directory, which no other gateway may use: the last `keep` of each
    /// plugin, and those in use.
    ///
    /// # Errors
    /// When the directory cannot be used, or another gateway uses it.
    pub fn in_folder(folder: &Path, keep: usize) -> anyhow::Result<Self> {
        let (store, records) = Store::open(folder)?;
        Ok(Self { keep, kept: Mutex::new(Kept { store, records }) })
    }

    /// The version that decides for a plugin whose file has this hash.
    pub(crate) fn choose(&self, plugin: &str, file: Option<&str>) -> Choice {
        self.kept.lock().records.get(plugin).map_or(Choice::File, |record| record.choose(file))
    }

    /// The file of a stored version, with its signature.
    ///
    /// # Errors
    /// When it is not stored, or was modified.
    pub(crate) fn file(&self, plugin: &str, hash: &str) -> Result<Arrived, String> {
        let kept = self.kept.lock();
        Ok(Arrived { bytes: kept.store.get(hash)?, signature: kept.store.signature(plugin, hash) })
    }

    /// The history of a plugin.
    pub(crate) fn record(&self, plugin: &str) -> Option<Record> {
        self.kept.lock().records.get(plugin).cloned()
    }

    /// The overrides of files, by plugin.
    pub(crate) fn overrides(&self) -> Vec<(String, Override)> {
        let kept = self.kept.lock();
        let instead = |(name, record): (&String, &Record)| Some((name.clone(), record.instead.clone()?));
        kept.records.iter().filter_map(instead).collect()
    }

    /// Stores the changes of a new set, completely or not at all.
    ///
    /// # Errors
    /// When they cannot be written to disk.
    pub(crate) fn settle(&self, changes: Vec<Change>) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let mut kept = self.kept.lock();
        let Kept { store, records } = &mut *kept;
        let mut after = BTreeMap::new();
        for change in changes {
            let before = records.get(&change.plugin).cloned().unwrap_or_default();
            let changed = applied(&before, &change, self.keep, now);
            if let Some((hash, Arrived { signature: Some(signature), .. })) = &change.to {
                store.put_signature(&change.plugin, hash, signature)?;
            }
            if changed == before {
                continue;
            }
            if let Some((hash, Arrived { bytes, .. })) = &change.to {
                store.put(hash, bytes)?;
            }
            after.insert(change.plugin, changed);
        }
        if after.is_empty() {
            return Ok(());
        }
        remember(store, records, &after)?;
        records.extend(after);
        let used = records.values().flat_map(|record| &record.versions);
        let used: HashSet<&str> = used.map(|version| version.hash.as_str()).collect();
        store.sweep(&used);
        Ok(())
    }

    /// The plugins with an active version, and its hash.
    pub(crate) fn in_force(&self) -> BTreeMap<String, String> {
        let kept = self.kept.lock();
        let in_force = |(name, record): (&String, &Record)| Some((name.clone(), record.in_force.clone()?));
        kept.records.iter().filter_map(in_force).collect()
    }
}

/// Writes all of these records. If one cannot be written, the earlier ones are restored: a restart
/// must not come up with half of a set.
fn remember(
    store: &Store,
    before: &BTreeMap<String, Record>,
    after: &BTreeMap<String, Record>,
) -> anyhow::Result<()> {
    for (at, (plugin, record)) in after.iter().enumerate() {
        let Err(error) = store.remember(plugin, record) else { continue };
        for plugin in after.keys().take(at) {
            let was = before.get(plugin).cloned().unwrap_or_default();
            if let Err(error) = store.remember(plugin, &was) {
                tracing::error!(plugin, %error, "its stored record names a version that was never active");
            }
        }
        return Err(error);
    }
    Ok(())
}

fn applied(before: &Record, change: &Change, keep: usize, now: SystemTime) -> Record {
    let mut after = before.clone();
    let to = change.to.as_ref().map(|(hash, version)| (hash.as_str(), version.bytes.len() as u64));
    let left = before.in_force.clone().filter(|left| Some(left.as_str()) != to.map(|(hash, _)| hash));
    after.turn(to, &change.why, now);
    if let (Some(left), Some(against)) = (left, &change.against) {
        after.hold_against(&left, against.clone());
    }
    after.instead = change.instead.clone();
    after.highest = after.highest.max(change.signed);
    after.tried = change.tried.clone().or(after.tried);
    after.prune(keep);
    after
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn change(plugin: &str, content: &[u8]) -> Change {
        let bytes: Arc<[u8]> = Arc::from(content);
        let to = Some((crate::digest::hash(&bytes), Arrived { bytes, signature: None }));
        Change {
            plugin: plugin.into(),
            to,
            signed: None,
            why: "its file".into(),
            instead: None,
            against: None,
            tried: None,
        }
    }

    #[test]
    fn what_is_forgotten_leaves_the_folder_and_what_is_kept_survives() {
        let folder = tempfile::tempdir().unwrap();
        let versions = Versions::in_folder(folder.path(), 2).unwrap();
        for content in [b"one", b"two", b"six"] {
            versions.settle(vec![change("p", content)]).unwrap();
        }
        let record = versions.record("p").unwrap();
        assert_eq!(record.versions.len(), 2);
        assert_eq!(std::fs::read_dir(folder.path().join("versions")).unwrap().count(), 2);
        drop(versions);
        let versions = Versions::in_folder(folder.path(), 2).unwrap();
        assert_eq!(versions.record("p"), Some(record.clone()));
        assert_eq!(versions.in_force().get("p"), record.in_force.as_ref());
        assert_eq!(*versions.file("p", &record.good().next().unwrap().hash).unwrap().bytes, *b"two");
    }

    #[test]
    fn what_cannot_be_kept_as_a_whole_is_not_kept_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let versions = Versions::in_folder(folder.path(), 10).unwrap();
        versions.settle(vec![change("a", b"old"), change("b", b"old")]).unwrap();
        let before = (versions.record("a"), versions.record("b"));
        let record = folder.path().join("plugins/b.json");
        std::fs::remove_file(&record).unwrap();
        // A folder with something in it cannot be renamed over.
        std::fs::create_dir_all(record.join("in the way")).unwrap();
        versions.settle(vec![change("a", b"new"), change("b", b"new")]).unwrap_err();
        assert_eq!((versions.record("a"), versions.record("b")), before);
        drop(versions);
        let versions = Versions::in_folder(folder.path(), 10).unwrap();
        assert_eq!(versions.record("a"), before.0, "after a restart, too");
    }

    #[test]
    fn memory_keeps_the_last_three() {
        let versions = Versions::in_memory();
        for content in 0..10_u8 {
            versions.settle(vec![change("p", &[content])]).unwrap();
        }
        let record = versions.record("p").unwrap();
        assert_eq!(record.versions.len(), 3);
        assert!(record.versions.iter().all(|version| versions.file("p", &version.hash).is_ok()));
    }
}
