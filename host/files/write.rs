//! Writing what is not in a folder of our own: beside what a person named.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Replaces a file, as a whole or not at all, and never through a link. Everybody may read it, as far
/// as this process's umask lets them.
///
/// # Errors
/// When it cannot be written; what was there stays.
pub(crate) fn publish(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made with O_EXCL under a random name, and removed when this fails.
    let mut new =
        tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o644)).tempfile_in(folder)?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(path).map(drop).map_err(|error| error.error)
}

/// Writes a file that is not there yet.
///
/// # Errors
/// When something has its name, or it cannot be written.
pub(crate) fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(content)
}
