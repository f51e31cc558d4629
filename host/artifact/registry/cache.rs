//! What came from registries, in a folder: `<digest>.json`, the manifest, and `<digest>.wasm`, the
//! plugin that it names. Whatever does not fit its digest any more, or may be somebody else's, counts
//! as not there.

use std::path::Path;

use crate::artifact::registry::manifest::{MAX_MANIFEST, MAX_SIZE, Package, check_digest, plugin_of};
use crate::files::OwnFolder;

/// How many files the folder keeps, two for each plugin; the oldest give way.
const KEPT: usize = 2 * 32;

/// The package of this digest, checked.
pub(super) fn get(folder: &Path, digest: &str) -> Option<Package> {
    let folder = OwnFolder::open(folder).ok()?;
    let (manifest, plugin) = names(digest);
    let package = Package {
        manifest: folder.read(&manifest, MAX_MANIFEST as u64).ok()?,
        plugin: folder.read(&plugin, MAX_SIZE as u64).ok()?,
    };
    let (layer, _) = plugin_of(digest, &package.manifest).ok()?;
    check_digest("the plugin", &layer.digest, &package.plugin).ok()?;
    Some(package)
}

/// Keeps a package.
///
/// # Errors
/// When the folder cannot be written to, or should not be.
pub(super) fn put(folder: &Path, digest: &str, package: &Package) -> anyhow::Result<()> {
    let name = folder.display();
    let folder = OwnFolder::create(folder).map_err(|why| anyhow::anyhow!("{name} {why}"))?;
    let (manifest, plugin) = names(digest);
    folder.replace(&plugin, &package.plugin)?;
    folder.replace(&manifest, &package.manifest)?;
    folder.keep_newest(KEPT);
    Ok(())
}

/// The files of this digest.
fn names(digest: &str) -> (String, String) {
    let hex = digest.trim_start_matches("sha256:");
    (format!("{hex}.json"), format!("{hex}.wasm"))
}
