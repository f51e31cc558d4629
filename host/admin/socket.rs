//! The Unix socket: its location and its creation.
//!
//! Only the gateway's own user and root can open it (mode 0600; `SO_PEERCRED` is checked as well).
//! Its directory is one where no other user can replace it. A socket left behind by a dead gateway is
//! replaced; one that a process listens on, or that belongs to another user, is not.

use std::fs::{self, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use tokio::net::{UnixListener, UnixStream as TokioUnixStream};
use tracing::{info, warn};

use crate::config::admin::{Config, Socket, folder_of};
use crate::files::{OwnedDir, dir_access};
use crate::http_server::listener::{Establish, Listen};
use crate::http_server::peer::{ClientName, Peer, current_uid};

/// A bound socket. Its file is removed on drop.
pub(super) struct BoundSocket {
    pub(super) listener: UnixListener,
    _file: SocketFile,
}

impl Listen for BoundSocket {
    type Accepted = TokioUnixStream;

    async fn accept(&self) -> io::Result<(TokioUnixStream, Peer)> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok((stream, Peer::Unix(user)))
    }
}

impl Establish for TokioUnixStream {
    type Stream = Self;

    async fn establish(self) -> io::Result<(Self, ClientName)> {
        Ok((self, ClientName::NONE))
    }
}

/// The file of our socket, identified by device and inode.
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| id_of(&file) == self.id) {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Binds the socket of a gateway whose TCP listener has this port.
///
/// # Errors
/// If it cannot be created as configured. With `auto`, a failure is only logged.
pub(super) fn bind(socket: &Socket, port: u16) -> anyhow::Result<Option<BoundSocket>> {
    match socket {
        Socket::Off => Ok(None),
        Socket::At(path) => {
            let failed = || format!("cannot listen on `[admin] socket` {}", path.display());
            let bound = bind_at(path).with_context(failed)?;
            info!(socket = %path.display(), "admin is listening on a unix socket");
            Ok(Some(bound))
        }
        Socket::Auto => {
            let mut failures = Vec::new();
            for folder in default_folders() {
                let path = folder.join(name_for(port));
                match create_private_folder(&folder).and_then(|()| bind_at(&path)) {
                    Ok(bound) => {
                        info!(socket = %path.display(), "admin is listening on a unix socket");
                        return Ok(Some(bound));
                    }
                    Err(error) => failures.push(format!("{}: {error:#}", path.display())),
                }
            }
            warn!(
                "no unix socket for `halley plugin`: {}; set `[admin] socket` to a path, or to `off`",
                failures.join("; ")
            );
            Ok(None)
        }
    }
}

/// Where `[admin] socket = "auto"` put the socket of a gateway of this user whose TCP listener has
/// this port; `None` if no gateway answers.
pub fn default_socket_path(port: u16) -> Option<PathBuf> {
    let is_ours = |folder: &PathBuf| OwnedDir::open(folder).is_ok_and(|folder| folder.shared().is_none());
    let mut paths = default_folders().into_iter().filter(is_ours).map(|folder| folder.join(name_for(port)));
    paths.find(|path| UnixStream::connect(path).is_ok())
}

fn name_for(port: u16) -> String {
    format!("admin-{port}.sock")
}

fn default_folders() -> Vec<PathBuf> {
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let runtime = runtime.map(|folder| folder.join("halley"));
    runtime.into_iter().chain([PathBuf::from(format!("/tmp/halley-{}", current_uid()))]).collect()
}

/// The default directories, created if missing, without those that cannot be used.
fn create_default_folders() -> Vec<PathBuf> {
    default_folders().into_iter().filter(|folder| create_private_folder(folder).is_ok()).take(1).collect()
}

impl Config {
    /// The folders for sockets. The one for `auto` is created if it does not exist.
    pub fn socket_folders(&self) -> Vec<PathBuf> {
        match &self.socket {
            Socket::Off => Vec::new(),
            Socket::At(path) => vec![folder_of(path).to_owned()],
            Socket::Auto => create_default_folders(),
        }
    }
}

/// Creates a directory for this user only. In `/tmp`, another user may have created it first.
fn create_private_folder(folder: &Path) -> anyhow::Result<()> {
    let made = OwnedDir::create(folder).map_err(|why| anyhow!("the directory {why}"))?;
    ensure!(made.shared().is_none(), "others may write to the directory");
    Ok(())
}

fn bind_at(path: &Path) -> anyhow::Result<BoundSocket> {
    let folder = folder_of(path);
    dir_access(folder).map_err(|why| anyhow!("the directory {} {why}", folder.display()))?;
    check_free(path)?;
    // Bound under another name and renamed, so that clients find the old socket or the new one with
    // its final mode.
    let temporary = folder.join(format!(".{}.sock", std::process::id()));
    check_free(&temporary)?;
    drop(fs::remove_file(&temporary));
    let listener = std::os::unix::net::UnixListener::bind(&temporary)?;
    let renamed = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
        .and_then(|()| fs::symlink_metadata(&temporary))
        .and_then(|file| fs::rename(&temporary, path).map(|()| id_of(&file)));
    let id = renamed.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    listener.set_nonblocking(true)?;
    let file = SocketFile { path: path.to_owned(), id };
    Ok(BoundSocket { listener: UnixListener::from_std(listener)?, _file: file })
}

/// Nothing exists there, or a socket that a gateway of this user left behind.
fn check_free(path: &Path) -> anyhow::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    ensure!(found.file_type().is_socket(), "a file that is not a socket exists there");
    ensure!(found.uid() == current_uid(), "a socket of another user (uid {}) exists there", found.uid());
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process listens there; give each gateway its own `[admin] socket`"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => {
            bail!("a socket exists there, and it is unknown whether a process listens on it: {error}")
        }
    }
}

fn id_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(bound: anyhow::Result<BoundSocket>) -> String {
        bound.err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_socket_is_private_exclusive_and_removed_on_drop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let bound = bind_at(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(why(bind_at(&path)).contains("another process listens there"));
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, ["admin.sock"]);
        drop(bound);
        assert!(!path.exists());
        // As a killed gateway leaves it behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let again = bind_at(&path).unwrap();
        // A gateway that ends late does not remove its successor's file.
        fs::remove_file(&path).unwrap();
        let successor = bind_at(&path).unwrap();
        drop(again);
        assert!(path.exists());
        drop(successor);
    }

    #[tokio::test]
    async fn foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert!(why(bind_at(&path)).contains("not a socket"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(folder.path().join("target"), &path).unwrap();
        assert!(why(bind_at(&path)).contains("not a socket"));
        fs::remove_file(&path).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(why(bind_at(&path)).contains("others may write to"));
        assert!(create_private_folder(folder.path()).is_err());
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(create_private_folder(folder.path()).is_ok() && bind_at(&path).is_ok());
        assert!(why(bind_at(Path::new("/nowhere/admin.sock"))).contains("No such file"));
    }
}
