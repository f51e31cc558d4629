//! The plugin in a registry's manifest, verified against its digest.

use std::collections::BTreeMap;

use oci_client::manifest::{OciDescriptor, OciImageManifest};

use crate::artifact::error::ArtifactError;
use crate::artifact::file;
use crate::artifact::registry::reference::is_sha256;
use crate::digest::Digest;
use crate::telemetry::escape::cut;

/// The annotation of a layer or manifest that holds the plugin's signature in base64.
pub(super) const SIGNATURE: &str = "halley.signature";
/// The largest manifest, in bytes: the size that the distribution specification requires registries
/// to accept.
pub(super) const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Maximum size of a plugin, in bytes.
pub(super) const MAX_SIZE: usize = file::MAX_SIZE as usize;
/// How much of a parser's message is shown, in characters.
const LONGEST_REASON: usize = 500;
/// Media types of layers with a plugin: the standard one, and those of earlier tools.
pub(super) const MEDIA_TYPES: [&str; 4] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// A manifest and the plugin that it names, both checked.
pub(super) struct Package {
    pub(super) manifest: Vec<u8>,
    pub(super) plugin: Vec<u8>,
}

/// The plugin's layer and signature, from a manifest with this digest.
pub(super) fn plugin_of(
    digest: &str,
    manifest: &[u8],
) -> Result<(OciDescriptor, Option<String>), ArtifactError> {
    check_digest("the manifest", digest, manifest)?;
    let manifest: OciImageManifest = serde_json::from_slice(manifest).map_err(|e| {
        // The parser quotes its input, whatever its length.
        let why = e.to_string();
        let why = cut(&why, LONGEST_REASON);
        ArtifactError::Content(format!(
            "is not an artifact with a plugin: {why}; for an index, use the digest of one of its manifests"
        ))
    })?;
    let is_plugin = |layer: &&OciDescriptor| MEDIA_TYPES.contains(&layer.media_type.as_str());
    let layers: Vec<&OciDescriptor> = manifest.layers.iter().filter(is_plugin).collect();
    let [layer] = layers[..] else {
        return Err(ArtifactError::Content(format!(
            "has {} layers with a plugin; push it as one layer of the media type application/wasm",
            layers.len()
        )));
    };
    if !is_sha256(&layer.digest) {
        return Err(ArtifactError::Content("has a layer whose digest is not a sha256".to_owned()));
    }
    let size = usize::try_from(layer.size).unwrap_or(usize::MAX);
    if size > MAX_SIZE {
        let why = format!("has {} bytes; plugins have at most {MAX_SIZE}", layer.size);
        return Err(ArtifactError::Content(why));
    }
    let annotations = [&layer.annotations, &manifest.annotations];
    let signature = annotations.into_iter().flatten().find_map(|annotations| annotations.get(SIGNATURE));
    Ok((layer.clone(), signature.cloned()))
}

/// The annotations of a manifest: whatever its publisher wrote.
pub(super) fn annotations(manifest: &[u8]) -> BTreeMap<String, String> {
    let manifest: Option<OciImageManifest> = serde_json::from_slice(manifest).ok();
    manifest.and_then(|manifest| manifest.annotations).unwrap_or_default()
}

/// Verifies a digest.
pub(super) fn check_digest(what: &str, digest: &str, bytes: &[u8]) -> Result<(), ArtifactError> {
    let hash = Digest::of(bytes);
    if digest.strip_prefix("sha256:").is_some_and(|named| named == hash.to_string()) {
        return Ok(());
    }
    Err(ArtifactError::Content(format!(
        "{what} has the digest sha256:{hash} and not {digest}: the registry returned something else"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

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
            plugin_of(&format!("sha256:{}", Digest::of(&bytes)), &bytes)
        };
        let other = layer("text/plain");
        for media in MEDIA_TYPES {
            let (found, signature) = try_with(&[other.clone(), layer(media)]).unwrap();
            assert_eq!((&*found.media_type, signature.as_deref()), (media, Some("abc")));
        }
        assert!(try_with(&[other]).unwrap_err().to_string().contains("0 layers"));
        assert!(try_with(&[layer("application/wasm"), layer("application/wasm")]).is_err());
        assert!(
            plugin_of(&format!("sha256:{HEX}"), b"{}").unwrap_err().to_string().contains("something else")
        );
    }
}
