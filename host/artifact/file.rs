//! A plugin's file: its maximum size, how it is read, and the result.

use std::path::Path;
use std::sync::Arc;

use crate::artifact::error::ArtifactError;
use crate::files::{self, ReadError};

/// The largest file that is read, in bytes.
pub(crate) const MAX_SIZE: u64 = 64 * 1024 * 1024;

/// The bytes of a version, with its signature if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Artifact {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) signature: Option<Arc<[u8]>>,
}

/// Reads a plugin's file.
///
/// # Errors
/// When it is missing, cannot be read, or is too large to be a plugin: the second half of a sentence
/// that begins with the plugin.
pub fn read(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    files::read(path, MAX_SIZE).map_err(|why| {
        let remedy = match &why {
            ReadError::System(_) => "check `path` and the file's permissions",
            ReadError::TooLarge { .. } => "plugins cannot be larger",
            _ => "`path` must name the .wasm file itself",
        };
        ArtifactError::Unreadable(format!("{why}; {remedy}"))
    })
}
