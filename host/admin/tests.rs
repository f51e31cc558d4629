//! Helpers of the admin listener's tests.

use std::fs::{Permissions, set_permissions, write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes a file that only its owner may access.
pub(super) fn write_secret(file: &Path, secret: &str) {
    write(file, secret).unwrap();
    set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}
