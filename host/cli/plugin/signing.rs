//! The key, the name and the number with which a command signs a version.

use std::path::{Path, PathBuf};

use crate::artifact;
use crate::files;

/// The maximum size of a private key file, in bytes.
const LARGEST_KEY: u64 = 64 * 1024;

/// Signs a version, if a key is given.
#[derive(Debug, clap::Args)]
pub(super) struct SigningArgs {
    /// Signs it with the ed25519 private key in this file (PEM), which must not be readable by others.
    #[arg(long, value_name = "FILE", requires_all = ["name", "number"])]
    key: Option<PathBuf>,
    /// With --key: the plugin's name in the gateways' configuration.
    #[arg(long, value_name = "NAME", requires = "key")]
    name: Option<String>,
    /// With --key: the version number, from 1; higher than that of the previous version.
    #[arg(long, value_name = "NUMBER", requires = "key", value_parser = clap::value_parser!(u64).range(1..))]
    number: Option<u64>,
}

impl SigningArgs {
    /// The content of FILE.sig; `None` without a key.
    ///
    /// # Errors
    /// As [`sign`].
    pub(super) fn sign(&self, bytes: &[u8]) -> anyhow::Result<Option<String>> {
        let (Some(key), Some(name), Some(number)) = (&self.key, &self.name, self.number) else {
            return Ok(None);
        };
        sign(key, name, number, bytes).map(Some)
    }
}

/// Signs a version of a plugin. Returns the content of FILE.sig.
///
/// # Errors
/// When the key cannot be read, or is not a private key.
pub(super) fn sign(key: &Path, name: &str, number: u64, bytes: &[u8]) -> anyhow::Result<String> {
    let failed = |why: String| anyhow::anyhow!("{} {why}", key.display());
    let secret = files::read_secret(key, LARGEST_KEY).map_err(|why| failed(why.to_string()))?;
    artifact::sign(&secret, name, number, bytes).map_err(|why| failed(why.to_string()))
}
