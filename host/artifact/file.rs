//! A plugin's file: how large it may be, how it is read, and what came of it.

use std::path::Path;
use std::sync::Arc;

use crate::files::{self, Unreadable};

/// The largest file that is looked at, in bytes.
pub(crate) const MAX_SIZE: u64 = 64 * 1024 * 1024;

/// A version that came in, with its signature where it has one.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) signature: Option<Arc<[u8]>>,
}

/// Reads a plugin's file.
///
/// # Errors
/// When it is not there, cannot be read, or is too large to be a plugin: the second half of a
/// sentence that begins with the plugin.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, MAX_SIZE).map_err(|why| {
        let remedy = match &why {
            Unreadable::System(_) => "check `path` and the file's permissions",
            Unreadable::TooLarge { .. } => "plugins are not larger",
            _ => "`path` must name the .wasm file itself",
        };
        format!("{why}; {remedy}")
    })
}
