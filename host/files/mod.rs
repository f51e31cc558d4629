//! Files that others may have written or replaced: the only module that opens files.
//!
//! - `read`: reads a regular file with a size limit. A path may name a pipe that nobody writes to, a
//!   device without an end, or a file that grows: the read returns at once, within its limit.
//! - `ownership`: who else may write to a folder, or replace it.
//! - `folder`: a folder of our own: files in it are replaced as a whole, and read only where nobody else
//!   can have written them.
//! - `write`: what a person asked for, elsewhere.
//! - `secret`: tokens and private keys, which nobody else may read or write.
//!
//! A file system that does not answer (a network's disk) still blocks: what reads does so on a thread
//! of its own, which the end of the process does not wait for.
//!
//! `tests/layers.rs` holds that nothing else in `host/` opens files.

mod folder;
mod ownership;
mod read;
mod secret;
mod write;

pub(crate) use folder::OwnFolder;
pub(crate) use ownership::folder_access;
pub(crate) use read::{Unreadable, exhausted, open_argument, open_kernel, read, read_argument, read_text};
pub(crate) use secret::read_secret;
pub(crate) use write::{create_new, publish};
