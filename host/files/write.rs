//! Writing: a file appears as a whole or not at all, and never through a link.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Replaces a file. The content is on the disk, under a random name that nobody had before, before
/// the file's name is; what had the name (a link, too) gives way. Only this process's user may read
/// and write it.
///
/// # Errors
/// When it cannot be written; what was there stays.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o600)
}

/// The same for a file that everybody may read, as far as this process's umask lets them.
///
/// # Errors
/// As [`replace`].
pub(crate) fn publish(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o644)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = folder_of(path);
    // Made with O_EXCL, and removed when this fails.
    let mut new = tempfile::Builder::new()
        .prefix(BEGIN)
        .suffix(END)
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(path).map_err(|error| error.error)?;
    // The name as well.
    File::open(folder)?.sync_all()
}

/// How the names of temporary files begin and end.
const BEGIN: &str = ".new-";
const END: &str = ".tmp";

/// Whether this is, or was, a temporary file.
pub(super) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(BEGIN) && name.ends_with(END)
}

/// Writes a file that is not there yet.
///
/// # Errors
/// When something has its name, or it cannot be written.
pub(crate) fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(content)
}

/// Opens a file to lock it, or makes it; what is in it stays.
///
/// # Errors
/// When it is a link, or cannot be opened.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    if lock.metadata()?.is_file() { Ok(lock) } else { Err(io::Error::other("it is not a file")) }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_and_what_a_link_leads_to_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, target) = (folder.path().join("file"), folder.path().join("target"));
        std::fs::write(&target, b"precious").unwrap();
        symlink(&target, &file).unwrap();
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
        assert_eq!(std::fs::symlink_metadata(&file).unwrap().mode(), 0o100_600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing temporary is left");
        std::fs::create_dir_all(folder.path().join("busy/x")).unwrap();
        assert!(replace(&folder.path().join("busy"), b"one").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "also when it fails");
    }

    #[test]
    fn a_lock_empties_nothing_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, target) = (folder.path().join("lock"), folder.path().join("target"));
        std::fs::write(&target, b"precious").unwrap();
        symlink(&target, &lock).unwrap();
        assert!(open_lock(&lock).is_err());
        std::fs::remove_file(&lock).unwrap();
        std::fs::write(&lock, b"kept").unwrap();
        open_lock(&lock).unwrap();
        assert_eq!(std::fs::read(&lock).unwrap(), b"kept");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }
}
