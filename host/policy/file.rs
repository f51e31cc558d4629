//! Reading files that others put in place: plugins, signatures, keys.
//!
//! Whatever a path names by now (a pipe that nobody writes to, a device that never ends, a file that
//! grows), reading it ends at once and takes no more memory than it may.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// The system says no.
    #[error("cannot be read: {0}")]
    System(#[from] io::Error),
    /// Something else has its name.
    #[error("is not a file, but {0}")]
    Other(&'static str),
    /// There is more of it than may be.
    #[error("has {size} bytes, or more; at most {most} are read")]
    TooLarge {
        /// What was found.
        size: u64,
        /// What may be.
        most: u64,
    },
}

impl Unreadable {
    /// Whether there is nothing of this name.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::System(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a regular file, or what a link to one leads to, of at most this many bytes.
///
/// # Errors
/// Why it was not read: the second half of a sentence that begins with the file.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>, Unreadable> {
    // Opening some devices does something already.
    check(&std::fs::metadata(path)?, most)?;
    // What has the name by now may be a pipe, whose opening would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    read_open(file, most)
}

fn read_open(file: File, most: u64) -> Result<Vec<u8>, Unreadable> {
    let metadata = file.metadata()?;
    check(&metadata, most)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    // It may grow meanwhile.
    file.take(most + 1).read_to_end(&mut bytes)?;
    let size = bytes.len() as u64;
    if size > most { Err(Unreadable::TooLarge { size, most }) } else { Ok(bytes) }
}

fn check(metadata: &Metadata, most: u64) -> Result<(), Unreadable> {
    let kind = metadata.file_type();
    let other = match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a folder"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    };
    let size = metadata.len();
    match other {
        Some(other) => Err(Unreadable::Other(other)),
        None if size > most => Err(Unreadable::TooLarge { size, most }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    fn refusal(path: &Path) -> String {
        read(path, 10).unwrap_err().to_string()
    }

    #[test]
    fn files_are_read_up_to_their_limit_also_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"0123456789").unwrap();
        assert_eq!(read(&file, 10).unwrap(), b"0123456789");
        assert!(matches!(read(&file, 9), Err(Unreadable::TooLarge { size: 10, most: 9 })));
        symlink(&file, folder.path().join("link")).unwrap();
        assert_eq!(read(&folder.path().join("link"), 10).unwrap(), b"0123456789");
        assert!(read(&folder.path().join("none"), 10).unwrap_err().is_missing());
        symlink("itself", folder.path().join("itself")).unwrap();
        assert!(refusal(&folder.path().join("itself")).starts_with("cannot be read"));
    }

    #[test]
    fn what_is_no_file_is_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
        symlink("/dev/zero", folder.path().join("endless")).unwrap();
        assert_eq!(refusal(&pipe), "is not a file, but a pipe");
        assert_eq!(refusal(&folder.path().join("socket")), "is not a file, but a socket");
        assert_eq!(refusal(&folder.path().join("endless")), "is not a file, but a device");
        assert_eq!(refusal(folder.path()), "is not a file, but a folder");
    }

    #[test]
    fn a_file_that_says_that_it_is_empty_is_read_within_its_limit() {
        // The kernel's files have no size before they are read.
        assert!(matches!(read(Path::new("/proc/self/limits"), 10), Err(Unreadable::TooLarge { .. })));
    }
}
