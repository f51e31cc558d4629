//! What the tests of the admin listener share.

use std::fs::{Permissions, set_permissions, write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes a file that is its owner's alone.
pub(super) fn write_secret(file: &Path, secret: &str) {
    write(file, secret).unwrap();
    set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}
