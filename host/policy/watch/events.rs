//! File system events, and when the files that they name are complete.
//!
//! A file that was renamed to its name is complete: renaming is the last step of the program that writes a new
//! version, and a link that was replaced leads to files that exist. A file that is written in place is
//! complete once nothing happens for a while. That its writer closed it says less: scripts append to a
//! file in several steps, and write its signature after it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::policy::watch::paths::WatchedPaths;

/// The maximum delay by further events, as a multiple of the debounce time.
const MAX_DEBOUNCES: u32 = 20;
/// How many files that are being written are tracked one by one.
const MAX_WRITTEN: usize = 1_000;

/// Why changed files may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Everything that changed was renamed to its name.
    Renamed,
    /// Nothing happened for a while; or nobody knows whether something changed.
    Quiet,
}

/// The watched directories, and what happened in them.
pub(super) struct FileEvents {
    changes: Arc<Changes>,
    /// `None` if this machine has no watcher; only rescans remain then.
    watcher: Option<RecommendedWatcher>,
    /// The directories to watch, and whether each is watched.
    directories: BTreeMap<PathBuf, bool>,
}

/// What happened since the sources were read.
#[derive(Default)]
struct Changes {
    happened: Notify,
    state: Mutex<ChangeState>,
}

#[derive(Default)]
struct ChangeState {
    watched: WatchedPaths,
    /// Whether a source was renamed to its name.
    renamed: bool,
    /// Sources that were written in place.
    written: BTreeSet<PathBuf>,
}

impl FileEvents {
    pub(super) fn start() -> Self {
        let changes = Arc::<Changes>::default();
        let noted = Arc::clone(&changes);
        let watcher = notify::recommended_watcher(move |event| noted.note(event));
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(%error, "file events are not available; plugins are read every `[policies] rescan_interval`");
            })
            .ok();
        Self { changes, watcher, directories: BTreeMap::new() }
    }

    /// Watches the directories of these paths and no others. True if changes of all of them have been
    /// noted since they were read last.
    pub(super) fn follow(&mut self, paths: &[PathBuf]) -> bool {
        let watched = WatchedPaths::of(paths);
        let wanted = watched.directories.clone();
        self.changes.state.lock().watched = watched;
        let Some(watcher) = &mut self.watcher else { return false };
        let gone: Vec<PathBuf> =
            self.directories.keys().filter(|known| !wanted.contains(*known)).cloned().collect();
        for directory in gone {
            if self.directories.remove(&directory) == Some(true) {
                // It may be gone from the disk as well.
                let _ = watcher.unwatch(&directory);
            }
        }
        let mut all_were_watched = true;
        for directory in wanted {
            // Includes directories that are watched already: one that was removed and created again
            // is a different one to the kernel.
            let result = watcher.watch(&directory, RecursiveMode::NonRecursive);
            let before = self.directories.insert(directory.clone(), result.is_ok());
            all_were_watched &= before == Some(true) && result.is_ok();
            if let (Err(error), None | Some(true)) = (result, before) {
                let directory = directory.display();
                tracing::warn!(%directory, %error, "cannot be watched; it is read every `[policies] rescan_interval`");
            }
        }
        all_were_watched
    }

    /// Waits for a change.
    pub(super) async fn changed(&self) {
        self.changes.happened.notified().await;
    }

    /// Waits for this time, or until the files that changed are complete because they were renamed:
    /// true in that case.
    pub(super) async fn renamed_within(&self, time: Duration) -> bool {
        self.changes.renamed_within(time).await
    }

    /// Waits until the files that changed are complete.
    pub(super) async fn ready(&self, debounce: Duration) -> Ready {
        self.changes.ready(debounce).await
    }
}

impl Changes {
    fn note(&self, event: notify::Result<Event>) {
        if is_change(&event) && self.state.lock().note(&event) {
            self.happened.notify_one();
        }
    }

    async fn renamed_within(&self, time: Duration) -> bool {
        let saw_events = AtomicBool::new(false);
        let renamed = async {
            while !self.state.lock().take_renamed() {
                self.happened.notified().await;
                saw_events.store(true, Relaxed);
            }
        };
        let is_renamed = timeout(time, renamed).await.is_ok();
        if !is_renamed && saw_events.load(Relaxed) {
            // Others wait for them as well.
            self.happened.notify_one();
        }
        is_renamed
    }

    async fn ready(&self, debounce: Duration) -> Ready {
        let latest = Instant::now() + debounce * MAX_DEBOUNCES;
        loop {
            if self.state.lock().take_renamed() {
                return Ready::Renamed;
            }
            let until = (Instant::now() + debounce).min(latest);
            if timeout_at(until, self.happened.notified()).await.is_err() {
                let mut state = self.state.lock();
                state.renamed = false;
                state.written.clear();
                return Ready::Quiet;
            }
        }
    }
}

impl ChangeState {
    /// True if the event may matter.
    fn note(&mut self, event: &notify::Result<Event>) -> bool {
        let Ok(event) = event else { return true };
        let concerns = event.need_rescan()
            || event.paths.is_empty()
            || event.paths.iter().any(|path| self.watched.concern(path));
        for path in &event.paths {
            if concerns && self.watched.contain(path) {
                self.note_source(path, event.kind);
            }
        }
        concerns
    }

    fn note_source(&mut self, path: &Path, kind: EventKind) {
        match kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                self.written.remove(path);
                self.renamed = true;
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                self.written.remove(path);
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => {}
            _ if self.written.len() < MAX_WRITTEN => drop(self.written.insert(path.to_path_buf())),
            _ => {}
        }
    }

    /// Whether sources were renamed and none is being written.
    fn take_renamed(&mut self) -> bool {
        self.renamed && self.written.is_empty() && std::mem::take(&mut self.renamed)
    }
}

/// Reading files causes events too; only events that may be changes count. Errors and overflows
/// count, because they mean lost events. A rename is reported by either name, and once more by both.
fn is_change(event: &notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        EventKind::Access(kind) => event.need_rescan() || kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => event.need_rescan(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RemoveKind};

    use super::*;

    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const FROM: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    const TO: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    const BOTH: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::Both));

    /// Whether the plugins of a directory are complete after these events.
    fn complete_after(events: &[(EventKind, &str)]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let changes = Changes::default();
        changes.state.lock().watched = WatchedPaths::of(&[folder.path().to_path_buf()]);
        for (kind, name) in events {
            changes.note(Ok(Event::new(*kind).add_path(folder.path().join(name))));
        }
        let mut state = changes.state.lock();
        state.take_renamed()
    }

    #[test]
    fn a_renamed_file_is_complete_at_once() {
        let (removed, marked) =
            (EventKind::Remove(RemoveKind::File), EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)));
        for events in [
            &[(CREATED, "p.new"), (WRITTEN, "p.new"), (CLOSED, "p.new"), (FROM, "p.new"), (TO, "p.wasm")][..],
            // Whatever it was called before, and from wherever it came.
            &[(CREATED, ".p.wasm"), (CLOSED, ".p.wasm"), (FROM, ".p.wasm"), (TO, "p.wasm")],
            &[(CREATED, "q.wasm"), (CLOSED, "q.wasm"), (FROM, "q.wasm"), (TO, "p.wasm"), (BOTH, "p.wasm")],
            &[(TO, "p.wasm")],
            // What was written is gone.
            &[(WRITTEN, "p.wasm"), (TO, "p.wasm")],
            &[(WRITTEN, "q.wasm"), (removed, "q.wasm"), (TO, "p.wasm")],
            &[(TO, "p.wasm"), (marked, "p.wasm")],
        ] {
            assert!(complete_after(events), "{events:?}");
        }
    }

    #[test]
    fn a_file_that_is_written_in_place_waits_for_quiet() {
        for events in [
            &[(CREATED, "p.wasm")][..],
            &[(CREATED, "p.wasm"), (WRITTEN, "p.wasm"), (CLOSED, "p.wasm")],
            // Another one may be half written.
            &[(WRITTEN, "q.wasm"), (TO, "p.wasm")],
            &[(TO, "p.wasm"), (WRITTEN, "p.wasm")],
            // Not a plugin.
            &[(TO, "p.new")],
            &[(EventKind::Remove(RemoveKind::File), "p.wasm")],
        ] {
            assert!(!complete_after(events), "{events:?}");
        }
    }

    #[test]
    fn read_events_are_ignored() {
        let event = |kind| Ok(Event::new(kind));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)))));
        assert!(is_change(&event(CLOSED)) && !is_change(&event(BOTH)));
        assert!(is_change(&event(EventKind::Any)));
        assert!(is_change(&Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan))));
    }
}
