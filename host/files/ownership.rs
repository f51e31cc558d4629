//! Who else may write to a directory, or replace it.
//!
//! Every directory from `/` on, and every link, has to belong to root or to this process's user.
//! Other users may write to one in these cases only: it is sticky (`/tmp`), where nobody can rename
//! files of others (not accepted for the last directory); it is writable by the owner's private
//! group, whose id equals the owner's; or it is the root of a mount: container volumes are `root:root
//! 0777` or `root:<fsGroup> 2775`, and the operator decides who shares them. (Kubernetes gives an
//! `fsGroup` ownership of and write access to everything in its volume.) In such a directory files
//! are checked one by one, and no native code is cached.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::read::is_trusted;

/// Maximum number of links in a path; the same as Linux.
const MOST_LINKS: usize = 40;

/// What a directory can be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DirAccess {
    /// No other user can write to it or replace it.
    Private,
    /// Others may write to this directory, which is the directory itself or one above it.
    Shared {
        /// That directory.
        path: PathBuf,
        /// The group that the volume was created for, if any: it may write to everything in it.
        group: Option<u32>,
    },
}

impl DirAccess {
    pub(super) fn group(&self) -> Option<u32> {
        match self {
            Self::Private => None,
            Self::Shared { group, .. } => *group,
        }
    }
}

/// Who may write to a directory. If it does not exist, the existing part of its path counts.
///
/// # Errors
/// If it must not be used. The message continues a sentence that begins with the directory, and
/// contains the remedy.
pub(crate) fn dir_access(path: &Path) -> Result<DirAccess, DirError> {
    walk(&std::path::absolute(path).map_err(DirError::Unusable)?)
}

/// Why a directory must not be used: the second half of a sentence that begins with the directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirError {
    #[error("cannot be created: {0}")]
    Create(io::Error),
    #[error("cannot be used: {0}")]
    Unusable(io::Error),
    #[error("is not safe: it now belongs to user {0}")]
    Replaced(u32),
    #[error("cannot be used: {1} at {0}")]
    System(PathBuf, io::Error),
    #[error("cannot be used: {0} is not a directory")]
    NotAFolder(PathBuf),
    #[error("cannot be used: more than {MOST_LINKS} links")]
    Links,
    #[error(
        "is not safe: {path} belongs to user {owner}, who can replace files there; this process runs as user {ours}: run it as {owner}, or `chown {ours} {path}`", path = .0.display(), owner = .1, ours = rustix::process::geteuid().as_raw()
    )]
    Owner(PathBuf, u32),
    #[error(
        "is not safe: others may write to {path} (mode {mode:04o}); `chmod go-w {path}`", path = .0.display(), mode = .1
    )]
    Writable(PathBuf, u32),
}

fn walk(path: &Path) -> Result<DirAccess, DirError> {
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let mut here = PathBuf::from("/");
    let mut device = lstat(&here)?.map_or(0, |root| root.dev());
    let (mut access, mut links) = (DirAccess::Private, 0);
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            here.pop();
            device = lstat(&here)?.map_or(0, |above| above.dev());
            continue;
        }
        let next = here.join(&part);
        let Some(metadata) = lstat(&next)? else { break };
        if !is_trusted(metadata.uid()) {
            return Err(DirError::Owner(next, metadata.uid()));
        }
        if metadata.is_symlink() {
            links += 1;
            let target = std::fs::read_link(&next).map_err(|error| DirError::System(next, error))?;
            if links > MOST_LINKS {
                return Err(DirError::Links);
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
                device = lstat(&here)?.map_or(0, |root| root.dev());
            }
            for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part);
            }
            continue;
        }
        if !metadata.is_dir() {
            return Err(DirError::NotAFolder(next));
        }
        let is_mount = metadata.dev() != device;
        match writers(&metadata, is_mount, rest.is_empty(), access.group()) {
            ForeignWriters::Nobody => {}
            ForeignWriters::Some => {
                let by_group = metadata.mode() & 0o020 != 0;
                let group = access.group().or((is_mount && by_group).then_some(metadata.gid()));
                access = DirAccess::Shared { path: next.clone(), group };
            }
            ForeignWriters::Anybody => return Err(DirError::Writable(next, metadata.mode() & 0o7777)),
        }
        device = metadata.dev();
        here = next;
    }
    Ok(access)
}

/// Who may write to a directory besides its owner.
enum ForeignWriters {
    Nobody,
    /// Those whom the operator admitted.
    Some,
    Anybody,
}

fn writers(metadata: &Metadata, is_mount: bool, is_last: bool, let_in: Option<u32>) -> ForeignWriters {
    let mode = metadata.mode();
    let (by_group, by_all, sticky) = (mode & 0o020 != 0, mode & 0o002 != 0, mode & 0o1000 != 0);
    let own_group = metadata.gid() == metadata.uid();
    let is_let_in = let_in == Some(metadata.gid());
    match () {
        () if !by_all && (!by_group || own_group) => ForeignWriters::Nobody,
        () if sticky && !is_last => ForeignWriters::Nobody,
        () if is_mount || !by_all && (!is_last || is_let_in) => ForeignWriters::Some,
        () => ForeignWriters::Anybody,
    }
}

/// The metadata of a path; `None` if it does not exist.
fn lstat(path: &Path) -> Result<Option<Metadata>, DirError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(DirError::NotAFolder(path.into())),
        Err(error) => Err(DirError::System(path.to_owned(), error)),
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;
    use crate::files::OwnedDir;

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        dir_access(path).unwrap_err().to_string()
    }

    /// `above/state`, private.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().join("above");
        let state = above.join("state");
        assert_eq!(OwnedDir::create(&state).unwrap().shared(), None);
        assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        (folder, above, state)
    }

    #[test]
    fn a_directory_writable_by_others_is_refused() {
        let (_folder, above, state) = folders();
        for open in [0o777, 0o1777, 0o702] {
            mode(&state, open);
            let why = refusal(&state);
            assert!(why.contains("others may write") && why.contains("chmod go-w"), "{why}");
            assert!(why.contains(&format!("{open:04o}")), "{why}");
        }
        mode(&state, 0o700);
        mode(&above, 0o777);
        assert!(refusal(&state).contains("above (mode 0777)"));
        assert!(OwnedDir::create(&above.join("new")).is_err() && !above.join("new").exists());
        mode(&above, 0o1777);
        assert_eq!(dir_access(&state).unwrap(), DirAccess::Private, "as in /tmp");
    }

    #[test]
    fn foreign_owners_are_refused_also_above_and_of_links() {
        let (folder, above, state) = folders();
        let theirs = |path: &Path| std::os::unix::fs::lchown(path, Some(4321), None);
        if theirs(&state).is_err() {
            return; // Needs root; tests in containers run as root.
        }
        let why = refusal(&state);
        assert!(why.contains("belongs to user 4321") && why.contains("chown 0"), "{why}");
        chown(&state, Some(0), None).unwrap();
        theirs(&above).unwrap();
        assert!(refusal(&state).contains("above belongs to user 4321"));
        chown(&above, Some(0), None).unwrap();
        let link = folder.path().join("link");
        symlink("above/../above", &link).unwrap();
        assert_eq!(dir_access(&link.join("state")).unwrap(), DirAccess::Private);
        theirs(&link).unwrap();
        assert!(refusal(&link.join("state")).contains("link belongs to user 4321"));
        std::fs::remove_file(&link).unwrap();
        symlink("link", &link).unwrap();
        assert!(refusal(&link).contains("links"));
    }

    #[test]
    fn a_private_group_is_private_and_others_are_shared() {
        let (_folder, above, state) = folders();
        mode(&above, 0o775);
        let owner = std::fs::metadata(&above).unwrap().uid();
        if chown(&above, None, Some(owner)).is_ok() {
            assert_eq!(dir_access(&state).unwrap(), DirAccess::Private);
        }
        if chown(&above, None, Some(4321)).is_ok() {
            let shared = DirAccess::Shared { path: above.clone(), group: None };
            assert_eq!(dir_access(&state).unwrap(), shared);
            mode(&state, 0o770);
            chown(&state, None, Some(4321)).unwrap();
            assert!(refusal(&state).contains("mode 0770"));
        }
    }

    #[test]
    fn a_volume_may_be_shared() {
        let folder = tempfile::tempdir().unwrap();
        mode(folder.path(), 0o777);
        let metadata = std::fs::metadata(folder.path()).unwrap();
        for is_last in [false, true] {
            assert!(matches!(writers(&metadata, true, is_last, None), ForeignWriters::Some));
            assert!(matches!(writers(&metadata, false, is_last, None), ForeignWriters::Anybody));
        }
        // What an fsGroup gets in a volume of its own.
        mode(folder.path(), 0o770);
        if chown(folder.path(), None, Some(4321)).is_ok() {
            let metadata = std::fs::metadata(folder.path()).unwrap();
            assert!(matches!(writers(&metadata, false, true, Some(4321)), ForeignWriters::Some));
            assert!(matches!(writers(&metadata, false, true, Some(4322)), ForeignWriters::Anybody));
        }
    }
}
