//! Where changes of some paths happen: in which directories, and to which names in them.
//!
//! Directories are watched instead of files, so that renames over files are noticed. A path may lead
//! through links (ConfigMaps switch `..data`, releases switch `current`), so every link on the way
//! counts as well.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The maximum number of links in a path; the same as Linux.
const MAX_LINKS: usize = 40;

/// What some paths depend on. All directories here have their links resolved.
#[derive(Debug, Default)]
pub(super) struct WatchedPaths {
    /// The directories in which changes happen.
    pub(super) directories: BTreeSet<PathBuf>,
    /// The files, and the links on the way to them.
    entries: BTreeSet<PathBuf>,
    /// Directories that are sources: every plugin in them counts.
    folders: BTreeSet<PathBuf>,
}

impl WatchedPaths {
    /// For files, and directories with plugins.
    pub(super) fn of(paths: &[PathBuf]) -> Self {
        let mut watched = Self::default();
        for path in paths {
            let (links, end) = resolve(path);
            watched.entries.extend(links);
            if end.is_dir() {
                watched.directories.insert(end.clone());
                watched.folders.insert(end);
            } else {
                watched.entries.insert(end);
            }
        }
        let parents = watched.entries.iter().filter_map(|entry| entry.parent());
        watched.directories.extend(parents.map(Path::to_path_buf));
        watched
    }

    /// Whether a change of this path may matter.
    pub(super) fn concern(&self, path: &Path) -> bool {
        if self.directories.contains(path) {
            return true;
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return true };
        // A directory that is gone.
        let Ok(parent) = parent.canonicalize() else { return true };
        self.folders.contains(&parent) || self.entries.contains(&parent.join(name))
    }

    /// Whether this is the path of a source, or of a link to one; not a file next to them.
    pub(super) fn contain(&self, path: &Path) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let Ok(parent) = parent.canonicalize() else { return false };
        let is_hidden = name.to_string_lossy().starts_with('.');
        let is_plugin = !is_hidden && path.extension().is_some_and(|extension| extension == "wasm");
        is_plugin && self.folders.contains(&parent) || self.entries.contains(&parent.join(name))
    }
}

/// The links on the way to a path, and where it leads. In each, the directory has no links.
fn resolve(path: &Path) -> (Vec<PathBuf>, PathBuf) {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut rest: VecDeque<OsString> = names(&absolute).collect();
    let (mut at, mut links) = (PathBuf::from("/"), Vec::new());
    while let Some(name) = rest.pop_front() {
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => at.push(name),
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
        if links.len() < MAX_LINKS
            && let Ok(target) = std::fs::read_link(&at)
        {
            links.push(at.clone());
            at.pop();
            names(&target).rev().for_each(|name| rest.push_front(name));
        }
    }
    (links, at)
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().map(|component| component.as_os_str().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directories_are_watched_not_files() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("versions")).unwrap();
        std::fs::write(real.join("versions/a.wasm"), b"").unwrap();
        symlink("versions/a.wasm", real.join("a.wasm")).unwrap();
        let watched = WatchedPaths::of(&[real.join("a.wasm"), real.join("versions"), "b.wasm".into()]);
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(watched.directories, BTreeSet::from([real.clone(), real.join("versions"), here]));
        assert!(watched.contain(&real.join("a.wasm")) && watched.contain(&real.join("versions/new.wasm")));
        assert!(watched.contain(Path::new("./b.wasm")) && watched.concern(&real.join("versions")));
        for other in ["versions/a.tmp", "versions/.a.wasm"] {
            assert!(!watched.contain(&real.join(other)) && watched.concern(&real.join(other)), "{other}");
        }
        assert!(
            !watched.concern(&real.join("a.wasm.new")),
            "next to a source, but not in a plugin directory"
        );
    }

    #[test]
    fn every_link_on_the_way_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        for directory in ["etc", "releases/7", "links"] {
            std::fs::create_dir_all(real.join(directory)).unwrap();
        }
        symlink("../links/current", real.join("etc/plugins")).unwrap();
        symlink(real.join("releases/7"), real.join("links/current")).unwrap();
        // Through one of the links, and not there yet.
        let watched = WatchedPaths::of(&[real.join("etc/plugins/p.wasm")]);
        let directories = ["etc", "links", "releases/7"].map(|directory| real.join(directory));
        assert_eq!(watched.directories, BTreeSet::from(directories));
        for entry in ["etc/plugins", "links/current", "releases/7/p.wasm", "etc/plugins/p.wasm"] {
            assert!(watched.contain(&real.join(entry)), "{entry}");
        }
        symlink("round", real.join("round")).unwrap();
        assert_eq!(resolve(&real.join("round")).0.len(), MAX_LINKS, "a circle ends");
    }
}
