//! A directory that caches content from registries: `<digest>.json`, the manifest, and
//! `<digest>.wasm`, the plugin that it names. A file that does not match its digest, or that others
//! may have written, counts as missing.

use std::path::Path;

use crate::artifact::registry::manifest::{MAX_MANIFEST, MAX_SIZE, Package, check_digest, plugin_of};
use crate::files::OwnedDir;

/// The maximum number of files, two per plugin; the oldest are removed.
const MAX_CACHED: usize = 2 * 32;

/// The package of this digest, checked.
pub(super) fn get(folder: &Path, digest: &str) -> Option<Package> {
    let folder = OwnedDir::open(folder).ok()?;
    let (manifest, plugin) = names(digest);
    let package = Package {
        manifest: folder.read(&manifest, MAX_MANIFEST as u64).ok()?,
        plugin: folder.read(&plugin, MAX_SIZE as u64).ok()?,
    };
    let (layer, _) = plugin_of(digest, &package.manifest).ok()?;
    check_digest("the plugin", &layer.digest, &package.plugin).ok()?;
    Some(package)
}

/// Stores a package.
///
/// # Errors
/// When the directory is not writable, or not safe to use.
pub(super) fn put(folder: &Path, digest: &str, package: &Package) -> anyhow::Result<()> {
    let name = folder.display();
    let folder = OwnedDir::create(folder).map_err(|why| anyhow::anyhow!("{name} {why}"))?;
    let (manifest, plugin) = names(digest);
    folder.replace(&plugin, &package.plugin)?;
    folder.replace(&manifest, &package.manifest)?;
    folder.remove_oldest(MAX_CACHED);
    Ok(())
}

/// The file names of this digest.
fn names(digest: &str) -> (String, String) {
    let hex = digest.trim_start_matches("sha256:");
    (format!("{hex}.json"), format!("{hex}.wasm"))
}
