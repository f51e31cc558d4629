//! File access that does not trust other users: the only module that opens files.
//!
//! - `read`: reads a regular file with a size limit. A path may name a pipe without a writer, an
//!   endless device, or a growing file: the read returns at once, within its limit.
//! - `ownership`: who else may write to a directory, or replace it.
//! - `owned_dir`: a directory of this process: files are replaced atomically, and read only if no other
//!   user can have written them.
//! - `write`: files in directories that the user named.
//! - `secret`: tokens and private keys, which no other user may read or write.
//!
//! An unresponsive file system (a network file system) still blocks: callers read on a thread of
//! their own, which the end of the process does not wait for.
//!
//! `tests/layers.rs` verifies that nothing else in `host/` opens files.

mod owned_dir;
mod ownership;
mod read;
mod secret;
mod write;

pub(crate) use owned_dir::OwnedDir;
pub(crate) use ownership::{DirError, dir_access};
pub(crate) use read::{ReadError, exhausted, open_argument, open_kernel, read, read_argument, read_text};
pub(crate) use secret::read_secret;
pub(crate) use write::{create_new, publish};
