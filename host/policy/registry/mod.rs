//! Plugins from OCI registries: `oci://registry/repository@sha256:...`.
//!
//! A digest names one content for ever, so what was fetched once is kept: in memory, and in the
//! state folder where there is one. Everything is checked against its digest, each time. A
//! registry is spoken to over TLS, over plain HTTP on loopback only.
//!
//! - `client`: fetching, within bounds of size and time.
//! - `site`: where a registry may send its clients. `challenge`: what it asks for first.
//! - `credentials`: what `docker login` writes.
//! - `cache`: the folder.

mod cache;
mod challenge;
mod client;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod site;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci_client::Reference;
use oci_client::manifest::{OciDescriptor, OciImageManifest};

use crate::policy::guest::module;
use crate::policy::intake::Arrived;
use crate::telemetry::escape::cut;

pub use site::RegistryConfig;

/// How references begin.
const SCHEME: &str = "oci://";
/// The annotation of a layer, or of its manifest, with the base64 signature of the plugin.
const SIGNATURE: &str = "halley.signature";
/// The largest manifest, in bytes: what the distribution specification asks registries to take.
const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// The largest plugin, in bytes.
const MAX_SIZE: usize = 64 * 1024 * 1024;
/// The most characters of what a parser says of a manifest.
const LONGEST_REASON: usize = 500;
/// How many plugins are kept in memory.
const KEPT: usize = 16;
/// A registry that failed is not asked again for so long: an operator's word on another plugin
/// must not wait for it again and again.
const REST: Duration = Duration::from_secs(5);

/// What a layer with a plugin says of itself: the standard's word, and those of earlier tools.
const MEDIA_TYPES: [&str; 4] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// Whether a plugin's path names a registry's content.
pub(super) fn is_reference(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(SCHEME))
}

/// The reference that a plugin's path is; none where it is a file's.
pub(super) fn reference(path: &Path) -> Option<Result<Reference, String>> {
    let text = path.to_str()?.strip_prefix(SCHEME)?;
    Some(parse(text))
}

fn parse(text: &str) -> Result<Reference, String> {
    let shape = "expected oci://registry[:port]/repository@sha256:<64 hex digits>";
    let reference: Reference = text.parse().map_err(|e| format!("`path` is no reference ({e}); {shape}"))?;
    let host = text.split('/').next().unwrap_or_default();
    if host != reference.registry() {
        return Err(format!("`path` names no registry; {shape}"));
    }
    match reference.digest() {
        None => Err(format!(
            "`path` names a tag, which can be moved to other content; {shape} (`oras resolve` or `crane digest` tell a tag's digest)"
        )),
        Some(digest) if is_sha256(digest) => Ok(reference),
        Some(_) => Err(format!("`path` has a digest that is no sha256; {shape}")),
    }
}

fn is_sha256(digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:");
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// What came from registries, by digest.
#[derive(Debug, Default)]
pub(super) struct Registries {
    folder: Option<PathBuf>,
    config: RegistryConfig,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    arrived: VecDeque<(String, Arrived)>,
    /// When which reference failed last, and why.
    failed: VecDeque<(String, Instant, String)>,
}

/// A manifest and the plugin that it names, both checked.
struct Package {
    manifest: Vec<u8>,
    plugin: Vec<u8>,
}

impl Registries {
    /// Kept in this folder's `registry`, too.
    pub(super) fn new(folder: Option<PathBuf>, config: RegistryConfig) -> Self {
        let folder = folder.map(|folder| folder.join("registry"));
        Self { folder, config, known: Mutex::default() }
    }

    /// The plugin of this digest. Takes up to half a minute when it has to be fetched.
    ///
    /// # Errors
    /// When the registry is away, has not got it, or has something else.
    pub(super) fn fetch(&self, reference: &Reference) -> Result<Arrived, String> {
        let digest = reference.digest().unwrap_or_default();
        if let Some(known) = self.known(reference, digest) {
            return known;
        }
        let package = match self.folder.as_deref().and_then(|folder| cache::get(folder, digest)) {
            Some(package) => package,
            None => self.pull(reference, digest)?,
        };
        let (_, signature) = plugin_of(digest, &package.manifest)?;
        let arrived = Arrived {
            bytes: package.plugin.into(),
            signature: signature.map(|text| Arc::from(text.as_bytes())),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.arrived.len() >= KEPT {
            known.arrived.pop_front();
        }
        known.arrived.push_back((digest.to_owned(), arrived.clone()));
        Ok(arrived)
    }

    fn known(&self, reference: &Reference, digest: &str) -> Option<Result<Arrived, String>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, arrived)) = known.arrived.iter().find(|(known, _)| known == digest) {
            return Some(Ok(arrived.clone()));
        }
        let name = reference.to_string();
        let failed = known.failed.iter().find(|(failed, at, _)| *failed == name && at.elapsed() < REST);
        failed.map(|(_, _, why)| Err(why.clone()))
    }

    fn pull(&self, reference: &Reference, digest: &str) -> Result<Package, String> {
        let pulled = client::pull(&self.config, reference, digest);
        match &pulled {
            Ok(package) => {
                if let Some(Err(error)) = self.folder.as_deref().map(|to| cache::put(to, digest, package)) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "what a registry gave cannot be kept; a restart fetches it again"
                    );
                }
            }
            Err(why) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                let name = reference.to_string();
                known.failed.retain(|(failed, at, _)| *failed != name && at.elapsed() < REST);
                known.failed.push_back((name, Instant::now(), why.clone()));
            }
        }
        pulled
    }
}

/// The layer with the plugin, and the plugin's signature, from a manifest of this digest.
fn plugin_of(digest: &str, manifest: &[u8]) -> Result<(OciDescriptor, Option<String>), String> {
    check_digest("the manifest", digest, manifest)?;
    let manifest: OciImageManifest = serde_json::from_slice(manifest).map_err(|e| {
        // The parser quotes what it found, however long that is.
        let why = e.to_string();
        let why = cut(&why, LONGEST_REASON);
        format!("is no artifact with a plugin: {why}; an index needs the digest of one of its manifests")
    })?;
    let is_plugin = |layer: &&OciDescriptor| MEDIA_TYPES.contains(&layer.media_type.as_str());
    let layers: Vec<&OciDescriptor> = manifest.layers.iter().filter(is_plugin).collect();
    let [layer] = layers[..] else {
        return Err(format!(
            "has {} layers with a plugin; push it as one layer of the media type application/wasm",
            layers.len()
        ));
    };
    if !is_sha256(&layer.digest) {
        return Err("has a layer whose digest is no sha256".to_owned());
    }
    let size = usize::try_from(layer.size).unwrap_or(usize::MAX);
    if size > MAX_SIZE {
        return Err(format!("has {} bytes; plugins have at most {MAX_SIZE}", layer.size));
    }
    let annotations = [&layer.annotations, &manifest.annotations];
    let signature = annotations.into_iter().flatten().find_map(|annotations| annotations.get(SIGNATURE));
    Ok((layer.clone(), signature.cloned()))
}

/// The same after it was kept for a while, or after it was sent.
fn check_digest(what: &str, digest: &str, bytes: &[u8]) -> Result<(), String> {
    let hash = module::hash(bytes);
    if digest.strip_prefix("sha256:") == Some(&*hash) {
        return Ok(());
    }
    Err(format!("{what} has the digest sha256:{hash} and not {digest}: the registry gave something else"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_name_a_registry_and_a_digest() {
        let good = format!("oci://registry.example:5000/team/policy@sha256:{HEX}");
        assert!(reference(Path::new(&good)).unwrap().is_ok());
        assert!(
            reference(Path::new(&good.replace('@', ":1.0@"))).unwrap().is_ok(),
            "a tag beside it is told to people"
        );
        assert!(reference(Path::new("policies/a.wasm")).is_none());
        for (bad, why) in [
            ("oci://registry.example/policy:1.0", "names a tag"),
            ("oci://registry.example/policy", "names a tag"),
            (&*format!("oci://policy@sha256:{HEX}"), "no registry"),
            ("oci://registry.example/policy@sha256:12", "no reference"),
            ("oci://", "no reference"),
        ] {
            let error = reference(Path::new(bad)).unwrap().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_manifest_names_one_plugin() {
        let layer = |media: &str| {
            serde_json::json!({ "mediaType": media, "digest": format!("sha256:{HEX}"), "size": 3,
                "annotations": { SIGNATURE: "abc" } })
        };
        let try_with = |layers: &[serde_json::Value]| {
            let config = layer("application/vnd.oci.empty.v1+json");
            let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
            let bytes = serde_json::to_vec(&manifest).unwrap();
            plugin_of(&format!("sha256:{}", module::hash(&bytes)), &bytes)
        };
        let other = layer("text/plain");
        for media in MEDIA_TYPES {
            let (found, signature) = try_with(&[other.clone(), layer(media)]).unwrap();
            assert_eq!((&*found.media_type, signature.as_deref()), (media, Some("abc")));
        }
        assert!(try_with(&[other]).unwrap_err().contains("0 layers"));
        assert!(try_with(&[layer("application/wasm"), layer("application/wasm")]).is_err());
        assert!(plugin_of(&format!("sha256:{HEX}"), b"{}").unwrap_err().contains("something else"));
    }
}
