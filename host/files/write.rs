//! Writes files outside our own directories, at paths that the user named.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Replaces a file atomically, never through a link. It is readable by everyone, subject to the
/// umask.
///
/// # Errors
/// If it cannot be written; the old file stays.
pub(crate) fn publish(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Created with O_EXCL under a random name, and removed on failure.
    let mut new =
        tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o644)).tempfile_in(folder)?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(path).map(drop).map_err(|error| error.error)
}

/// Writes a new file.
///
/// # Errors
/// If the path exists, or cannot be written.
pub(crate) fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(content)
}
