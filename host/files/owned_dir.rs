//! A directory of this process, held by a handle: if its name is replaced later, the checked
//! directory is still the one that is read, written and cleaned.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, statat, unlinkat};

use super::ownership::{DirAccess, DirError, dir_access};
use super::read::{ReadError, is_trusted, read_own};

/// Prefix and suffix of temporary files.
const BEGIN: &str = ".new-";
const END: &str = ".tmp";
/// How many names are tried for a temporary file.
const TRIES: usize = 8;

/// A directory of this process. Files in it are read only if no other user can have written them.
#[derive(Clone, Debug)]
pub(crate) struct OwnedDir {
    path: PathBuf,
    access: DirAccess,
    handle: Arc<OwnedFd>,
}

impl OwnedDir {
    /// Creates the directory, accessible to this user only, if it does not exist.
    ///
    /// # Errors
    /// If it cannot be created or must not be used. The message continues a sentence that begins with
    /// the directory, and contains the remedy.
    pub(crate) fn create(path: &Path) -> Result<Self, DirError> {
        // Not below a directory that others may replace.
        dir_access(path)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(DirError::Create)?;
        Self::open(path)
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    /// If it does not exist, or must not be used.
    pub(crate) fn open(path: &Path) -> Result<Self, DirError> {
        let failed = DirError::Unusable;
        let access = dir_access(path)?;
        let path = path.canonicalize().map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let opened = File::from(handle);
        // In a directory that others may write to, it may have been replaced meanwhile.
        let owner = opened.metadata().map_err(failed)?.uid();
        if !is_trusted(owner) {
            return Err(DirError::Replaced(owner));
        }
        Ok(Self { path, access, handle: Arc::new(opened.into()) })
    }

    /// The path with links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that others may write to as well: this one or one above it.
    pub(crate) fn shared(&self) -> Option<&Path> {
        match &self.access {
            DirAccess::Private => None,
            DirAccess::Shared { path, .. } => Some(path),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Also if it is a link, or another user may have written it.
    pub(crate) fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, ReadError> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        read_own(file, self.access.group(), most)
    }

    /// Replaces a file atomically. The content is written to disk under a random new name, then
    /// renamed; an existing file or link of this name is replaced. Only this process's user may read
    /// and write it.
    ///
    /// # Errors
    /// If it cannot be written; the old file stays.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.write(name, content)
            .with_context(|| format!("{} cannot be written", self.path.join(name).display()))
    }

    /// Opens a lock file, creating it if necessary; its content is unchanged.
    ///
    /// # Errors
    /// If it is a link, or cannot be opened.
    pub(crate) fn open_lock(&self, name: &str) -> io::Result<File> {
        let lock = self.open_file(name, OFlags::RDWR | OFlags::CREATE)?;
        if lock.metadata()?.is_file() { Ok(lock) } else { Err(io::Error::other("it is not a file")) }
    }

    /// The names of all files.
    ///
    /// # Errors
    /// If the system call fails.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// If the system call fails.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.handle, name, AtFlags::empty())?)
    }

    /// Removes the oldest files beyond this number. Errors are ignored: the next call retries.
    pub(crate) fn remove_oldest(&self, most: usize) {
        let written = |name: String| {
            let stat = statat(&self.handle, &*name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((stat.st_mtime, stat.st_mtime_nsec, name))
        };
        let mut all: Vec<_> = self.names().unwrap_or_default().into_iter().filter_map(written).collect();
        all.sort();
        for (.., name) in &all[..all.len().saturating_sub(most)] {
            let _ = self.remove(name);
        }
    }

    /// Removes temporary files that a crash left behind. Errors are ignored.
    pub(crate) fn remove_temporary(&self) {
        let is_temporary = |name: &String| name.starts_with(BEGIN) && name.ends_with(END);
        for name in self.names().unwrap_or_default().iter().filter(|name| is_temporary(name)) {
            let _ = self.remove(name);
        }
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(openat(&self.handle, name, flags | safe, Mode::RUSR | Mode::WUSR)?.into())
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let (new, mut file) = self.temporary()?;
        let written = file
            .write_all(content)
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(renameat(&self.handle, &*new, &self.handle, name)?));
        if written.is_err() {
            let _ = self.remove(&new);
        }
        // Persists the new name as well.
        written.and_then(|()| Ok(rustix::fs::fsync(&self.handle)?))
    }

    fn temporary(&self) -> io::Result<(String, File)> {
        let mut tries = 0;
        loop {
            let name = format!("{BEGIN}{:016x}{END}", fastrand::u64(..));
            match self.open_file(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
                Ok(file) => return Ok((name, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn own() -> (tempfile::TempDir, OwnedDir) {
        let folder = tempfile::tempdir().unwrap();
        let own = OwnedDir::create(&folder.path().join("own")).unwrap();
        (folder, own)
    }

    #[test]
    fn replacing_a_file_does_not_follow_links() {
        let (folder, own) = own();
        let (file, target) = (own.path().join("file"), folder.path().join("target"));
        std::fs::write(&target, b"precious").unwrap();
        symlink(&target, &file).unwrap();
        assert!(own.read("file", 10).is_err(), "nor is it read");
        own.replace("file", b"one").unwrap();
        own.replace("file", b"two").unwrap();
        assert_eq!(own.read("file", 10).unwrap(), b"two");
        assert!(own.read("none", 10).unwrap_err().is_missing());
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
        assert_eq!(std::fs::symlink_metadata(&file).unwrap().mode(), 0o100_600);
        assert_eq!(own.names().unwrap(), ["file"], "nothing temporary is left");
        std::fs::create_dir_all(own.path().join("busy/x")).unwrap();
        assert!(own.replace("busy", b"one").unwrap_err().to_string().contains("cannot be written"));
        assert_eq!(own.names().unwrap().len(), 2, "also when it fails");
    }

    #[test]
    fn a_lock_truncates_nothing_and_follows_no_link() {
        let (folder, own) = own();
        let (lock, target) = (own.path().join("lock"), folder.path().join("target"));
        std::fs::write(&target, b"precious").unwrap();
        symlink(&target, &lock).unwrap();
        assert!(own.open_lock("lock").is_err());
        own.remove("lock").unwrap();
        std::fs::write(&lock, b"kept").unwrap();
        own.open_lock("lock").unwrap();
        assert_eq!(std::fs::read(&lock).unwrap(), b"kept");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn a_replaced_directory_is_left_alone() {
        let (folder, own) = own();
        own.replace("mine", b"mine").unwrap();
        let (moved, theirs) = (folder.path().join("moved"), folder.path().join("theirs"));
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("mine"), b"theirs").unwrap();
        std::fs::rename(own.path(), &moved).unwrap();
        symlink(&theirs, folder.path().join("own")).unwrap();
        assert_eq!(own.read("mine", 10).unwrap(), b"mine");
        own.replace("more", b"more").unwrap();
        own.remove_oldest(0);
        assert_eq!(std::fs::read_dir(&moved).unwrap().count(), 0);
        assert_eq!(std::fs::read(theirs.join("mine")).unwrap(), b"theirs");
        assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 1);
    }

    #[test]
    fn the_newest_stay_and_temporary_files_go() {
        let (_folder, own) = own();
        for (age, name) in ["new", "old", "older"].into_iter().enumerate() {
            own.replace(name, b"").unwrap();
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs(60 * age as u64);
            File::open(own.path().join(name)).unwrap().set_modified(time).unwrap();
        }
        own.remove_oldest(2);
        let mut names = own.names().unwrap();
        names.sort();
        assert_eq!(names, ["new", "old"]);
        std::fs::write(own.path().join(".new-0123.tmp"), b"half").unwrap();
        own.remove_temporary();
        assert_eq!(own.names().unwrap().len(), 2);
    }
}
