//! What came from registries, in a folder: `<digest>/manifest.json` and `<digest>/plugin.wasm`.
//! Whatever does not fit its digest any more counts as not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;

use crate::policy::registry::{Package, check_digest, plugin_of};

/// How many plugins the folder keeps; the oldest give way.
const KEPT: usize = 32;

/// The package of this digest, checked.
pub(super) fn get(folder: &Path, digest: &str) -> Option<Package> {
    let place = place(folder, digest);
    let package = Package {
        manifest: fs::read(place.join("manifest.json")).ok()?,
        plugin: fs::read(place.join("plugin.wasm")).ok()?,
    };
    let (layer, _) = plugin_of(digest, &package.manifest).ok()?;
    check_digest("the plugin", &layer.digest, &package.plugin).ok()?;
    Some(package)
}

/// Keeps a package, as a whole or not at all.
pub(super) fn put(folder: &Path, digest: &str, package: &Package) -> anyhow::Result<()> {
    let place = place(folder, digest);
    let beside = place.with_extension(format!("tmp-{}", std::process::id()));
    let written = (|| {
        fs::create_dir_all(&beside)?;
        fs::write(beside.join("manifest.json"), &package.manifest)?;
        fs::write(beside.join("plugin.wasm"), &package.plugin)?;
        // One that is there and was not taken is broken.
        drop(fs::remove_dir_all(&place));
        fs::rename(&beside, &place)
    })();
    if written.is_err() {
        drop(fs::remove_dir_all(&beside));
    }
    written.with_context(|| format!("{} cannot be written", place.display()))?;
    forget_oldest(folder);
    Ok(())
}

fn place(folder: &Path, digest: &str) -> PathBuf {
    folder.join(digest.trim_start_matches("sha256:"))
}

fn forget_oldest(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let with_time = |entry: fs::DirEntry| {
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        (written.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
    };
    let mut all: Vec<_> = entries.filter_map(Result::ok).map(with_time).collect();
    all.sort();
    for (_, path) in &all[..all.len().saturating_sub(KEPT)] {
        drop(fs::remove_dir_all(path));
    }
}
