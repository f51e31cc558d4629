//! Reads files with limits. A path is opened once, without blocking; the opened file is checked, not
//! the path.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system call failed.
    #[error("cannot be read: {0}")]
    System(#[from] io::Error),
    /// Not a regular file.
    #[error("is not a file, but {0}")]
    NotAFile(&'static str),
    /// Larger than the limit.
    #[error("has {size} bytes, or more; at most {most} are read")]
    TooLarge {
        /// The size found.
        size: u64,
        /// The limit.
        most: u64,
    },
    /// Expected text.
    #[error("is not UTF-8")]
    NotText,
    /// Another user wrote it, or may read or write it.
    #[error("{0}")]
    Exposed(String),
}

impl ReadError {
    /// Whether the file does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::System(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a regular file of at most `most` bytes. Links are followed: ConfigMaps consist of them.
///
/// # Errors
/// Why it was not read. The message continues a sentence that begins with the file.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
    let (file, metadata) = open(path, most)?;
    contents(file, &metadata, most)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`], and if it is not UTF-8.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, ReadError> {
    String::from_utf8(read(path, most)?).map_err(|_| ReadError::NotText)
}

/// Reads a file that this process wrote earlier: it belongs to this process's user (or root), and no
/// other user may write to it, except the given group.
///
/// # Errors
/// As [`read`], and if another user may have written it.
pub(super) fn read_own(file: File, group: Option<u32>, most: u64) -> Result<Vec<u8>, ReadError> {
    let metadata = file.metadata()?;
    check(&metadata, most)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let others = if group == Some(metadata.gid()) { 0o002 } else { 0o022 };
    if !is_trusted(owner) || mode & others != 0 {
        let why = format!(
            "belongs to user {owner} with mode {mode:04o}: another user may have written it; it is not used"
        );
        return Err(ReadError::Exposed(why));
    }
    contents(file, &metadata, most)
}

/// Reads a command line argument: a pipe is read to its end, waiting for its writer.
///
/// # Errors
/// As [`read_text`].
pub(crate) fn read_argument(path: &Path, most: u64) -> Result<String, ReadError> {
    let bytes = read_to_limit(open_argument(path)?, 0, most)?;
    String::from_utf8(bytes).map_err(|_| ReadError::NotText)
}

/// Opens a command line argument for incremental reading.
///
/// # Errors
/// If the system call fails.
pub(crate) fn open_argument(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open(path)
}

/// Opens a kernel file (`/proc`) that is read repeatedly.
pub(crate) fn open_kernel(path: &str) -> Option<File> {
    File::open(path).ok()
}

/// The error number if this process cannot open another file.
pub(crate) fn exhausted() -> Option<i32> {
    File::open("/dev/null").err().and_then(|error| error.raw_os_error())
}

/// Opens a regular file of at most `most` bytes.
pub(super) fn open(path: &Path, most: u64) -> Result<(File, Metadata), ReadError> {
    // Opening some devices has side effects.
    check(&std::fs::metadata(path)?, most)?;
    // The path may have been replaced by a pipe, whose opening would wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    check(&metadata, most)?;
    Ok((file, metadata))
}

/// Reads an open file.
pub(super) fn contents(file: File, metadata: &Metadata, most: u64) -> Result<Vec<u8>, ReadError> {
    read_to_limit(file, metadata.len(), most)
}

fn read_to_limit(file: File, expected: u64, most: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or_default());
    // The file may grow meanwhile.
    file.take(most + 1).read_to_end(&mut bytes)?;
    let size = bytes.len() as u64;
    if size > most { Err(ReadError::TooLarge { size, most }) } else { Ok(bytes) }
}

/// Whether this owner is this process's user or root.
pub(super) fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

fn check(metadata: &Metadata, most: u64) -> Result<(), ReadError> {
    let kind = metadata.file_type();
    let other = match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    };
    let size = metadata.len();
    match other {
        Some(other) => Err(ReadError::NotAFile(other)),
        None if size > most => Err(ReadError::TooLarge { size, most }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    fn refusal(path: &Path) -> String {
        read(path, 10).unwrap_err().to_string()
    }

    #[test]
    fn files_are_read_up_to_a_limit_also_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"0123456789").unwrap();
        assert_eq!(read(&file, 10).unwrap(), b"0123456789");
        assert!(matches!(read(&file, 9), Err(ReadError::TooLarge { size: 10, most: 9 })));
        symlink(&file, folder.path().join("link")).unwrap();
        assert_eq!(read(&folder.path().join("link"), 10).unwrap(), b"0123456789");
        assert!(read(&folder.path().join("none"), 10).unwrap_err().is_missing());
        symlink("itself", folder.path().join("itself")).unwrap();
        assert!(refusal(&folder.path().join("itself")).starts_with("cannot be read"));
        assert_eq!(read_argument(&file, 10).unwrap(), "0123456789");
        assert!(read_argument(Path::new("/dev/zero"), 10).is_err(), "bounded, whatever it is");
        std::fs::write(&file, b"\xff").unwrap();
        assert!(matches!(read_text(&file, 10), Err(ReadError::NotText)));
    }

    #[test]
    fn non_files_are_rejected_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
        symlink("/dev/zero", folder.path().join("endless")).unwrap();
        assert_eq!(refusal(&pipe), "is not a file, but a pipe");
        assert_eq!(refusal(&folder.path().join("socket")), "is not a file, but a socket");
        assert_eq!(refusal(&folder.path().join("endless")), "is not a file, but a device");
        assert_eq!(refusal(folder.path()), "is not a file, but a directory");
    }

    #[test]
    fn a_file_with_size_zero_is_read_within_its_limit() {
        // Kernel files report size 0 before they are read.
        assert!(matches!(read(Path::new("/proc/self/limits"), 10), Err(ReadError::TooLarge { .. })));
    }

    #[test]
    fn files_writable_by_others_are_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let read = |group| read_own(File::open(&file).unwrap(), group, 10);
        mode(0o644);
        assert_eq!(read(None).unwrap(), b"x");
        for open in [0o664, 0o646, 0o666] {
            mode(open);
            assert!(matches!(read(None), Err(ReadError::Exposed(_))), "{open:o}");
        }
        mode(0o600);
        // Needs root; tests in containers run as root.
        if chown(&file, Some(4321), None).is_ok() {
            let why = read(None).unwrap_err().to_string();
            assert!(why.contains("belongs to user 4321"), "{why}");
            chown(&file, Some(0), Some(4321)).unwrap();
            mode(0o660);
            assert!(read(None).is_err());
            assert_eq!(read(Some(4321)).unwrap(), b"x", "the volume's group is let in");
        }
    }
}
