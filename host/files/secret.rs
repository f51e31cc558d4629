//! Secret files: only this process's user, its groups and root may access them.
//!
//! Refused: a file that any other user may read or write, or that belongs to another user, who could
//! replace its content. Files on a separate read-only mount (a Secret of Kubernetes or Compose, a
//! systemd credential) may have any owner and be readable: such a mount exists only inside a
//! container or unit.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::read::{ReadError, contents, is_trusted, open};

/// Reads a secret file as text.
///
/// # Errors
/// Why it was not read, with the remedy if its owner or mode is the reason.
pub(crate) fn read_secret(path: &Path, most: u64) -> Result<String, ReadError> {
    let (file, metadata) = open(path, most)?;
    if let Some(why) = exposure(path, &metadata, is_mounted_read_only(&file)) {
        return Err(ReadError::Exposed(why));
    }
    String::from_utf8(contents(file, &metadata, most)?).map_err(|_| ReadError::NotText)
}

/// Who else may access the secret, with the remedy.
fn exposure(path: &Path, metadata: &Metadata, read_only_mount: bool) -> Option<String> {
    let (owner, mode, path) = (metadata.uid(), metadata.mode() & 0o7777, path.display());
    if read_only_mount {
        return None;
    }
    if !is_trusted(owner) {
        let ours = rustix::process::geteuid().as_raw();
        return Some(format!(
            "belongs to user {owner}, who can replace it; change its owner to the user of this process: `chown {ours} {path}`"
        ));
    }
    match () {
        () if mode & 0o022 != 0 => {
            Some(format!("is writable by others (mode {mode:04o}); run `chmod 600 {path}`"))
        }
        () if mode & 0o004 != 0 => Some(format!(
            "is readable by all users (mode {mode:04o}); run `chmod 600 {path}`, or use 640 with the group of this process"
        )),
        () => None,
    }
}

/// Whether a file is on a separate read-only mount.
fn is_mounted_read_only(file: &File) -> bool {
    let read_only = rustix::fs::fstatvfs(file)
        .is_ok_and(|mount| mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let root = std::fs::metadata("/").map(|root| root.dev());
    let own = file.metadata().map(|metadata| metadata.dev());
    read_only && matches!((root, own), (Ok(root), Ok(own)) if root != own)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_and_a_group() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "secret").unwrap();
        let with = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            read_secret(&file, 10)
        };
        for closed in [0o600, 0o400, 0o640, 0o440] {
            assert_eq!(with(closed).unwrap(), "secret", "{closed:o}");
        }
        for open in [0o666, 0o620, 0o602, 0o644, 0o604] {
            let why = with(open).unwrap_err().to_string();
            assert!(why.contains("chmod 600") && why.contains(&format!("{open:04o}")), "{why}");
        }
        assert!(with(0o600).is_ok());
        // Needs root; tests in containers run as root.
        if chown(&file, Some(4321), None).is_ok() {
            let why = read_secret(&file, 10).unwrap_err().to_string();
            assert!(why.contains("belongs to user 4321") && why.contains("chown 0"), "{why}");
        }
    }

    #[test]
    fn a_read_only_mount_may_be_readable() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "secret").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(exposure(&file, &metadata, true), None);
        assert!(exposure(&file, &metadata, false).is_some());
        assert!(!is_mounted_read_only(&File::open(&file).unwrap()));
    }
}
