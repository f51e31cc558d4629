//! Publishing a plugin in a registry, as an artifact of one layer: the layout of the CNCF's guidance for
//! WebAssembly, which `wkg`, `oras` and other tools read.
//!
//! The same file with the same annotations always has the same digest: nothing is dated.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use oci_client::Reference;
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::artifact::error::ArtifactError;
use crate::artifact::registry::client::{RegistrySession, explained, failed, on_own_thread, refusal};
use crate::artifact::registry::credentials;
use crate::artifact::registry::manifest::{MAX_SIZE, MEDIA_TYPES, SIGNATURE};
use crate::artifact::registry::site::RegistryConfig;
use crate::digest::Digest;

/// The deadline of a whole upload.
const DEADLINE: Duration = Duration::from_secs(300);
/// The media type of the configuration of an artifact with WebAssembly.
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The header with the digest of what a registry has stored.
const STORED: &str = "docker-content-digest";

/// What is published.
pub(crate) struct PluginUpload {
    pub(crate) plugin: Bytes,
    /// In the format of annotations.
    pub(crate) signature: Option<String>,
    /// Of the manifest.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Whether it is a component, and not a plain module.
    pub(crate) is_component: bool,
    /// The interfaces that it imports and exports.
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
}

/// Publishes under the tag of this reference; returns the digest of the manifest.
///
/// # Errors
/// The problem: the second half of a sentence that begins with the plugin.
pub(super) fn push(
    config: &RegistryConfig,
    reference: &Reference,
    upload: &PluginUpload,
) -> Result<String, ArtifactError> {
    if upload.plugin.len() > MAX_SIZE {
        let size = upload.plugin.len();
        return Err(ArtifactError::Content(format!("has {size} bytes; plugins have at most {MAX_SIZE}")));
    }
    on_own_thread("published", DEADLINE, || async {
        let credentials = credentials::of(reference.registry())?;
        let explained = explained("published", &credentials, ", which must permit pushing");
        let session = RegistrySession::new(config, reference, credentials).map_err(&explained)?;
        publish(session.for_pushing(), reference, upload).await.map_err(&explained)
    })
}

async fn publish(
    mut session: RegistrySession<'_>,
    reference: &Reference,
    upload: &PluginUpload,
) -> Result<String, ArtifactError> {
    let layer = digest_of(&upload.plugin);
    let config = Bytes::from(config_of(upload, &layer).to_string());
    push_blob(&mut session, &upload.plugin).await?;
    push_blob(&mut session, &config).await?;
    let signature = upload.signature.iter().map(|signature| (SIGNATURE, signature.as_str()));
    let signature: BTreeMap<&str, &str> = signature.collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE_MEDIA_TYPE,
        "config": { "mediaType": CONFIG, "digest": digest_of(&config), "size": config.len() },
        "layers": [{
            "mediaType": MEDIA_TYPES[0], "digest": layer, "size": upload.plugin.len(), "annotations": signature,
        }],
        "annotations": upload.annotations,
    });
    let manifest = Bytes::from(manifest.to_string());
    let digest = digest_of(&manifest);
    let url = session.url(&format!("manifests/{}", reference.tag().unwrap_or_default()))?;
    let answer = session.send(Method::PUT, &url, Some((OCI_IMAGE_MEDIA_TYPE, manifest))).await?;
    if answer.status() != StatusCode::CREATED {
        return Err(failed(refusal(answer).await));
    }
    match answer.headers().get(STORED).map(|stored| stored.to_str().unwrap_or_default()) {
        Some(stored) if stored != digest => Err(ArtifactError::Content(format!(
            "was published, but the registry stored something else: {stored} and not {digest}"
        ))),
        _ => Ok(digest),
    }
}

/// Uploads content in one piece, unless the registry has it.
async fn push_blob(session: &mut RegistrySession<'_>, content: &Bytes) -> Result<(), ArtifactError> {
    let digest = digest_of(content);
    let url = session.url(&format!("blobs/{digest}"))?;
    if session.send(Method::HEAD, &url, None).await?.status() == StatusCode::OK {
        return Ok(());
    }
    let begin = session.url("blobs/uploads/")?;
    let begun = session.send(Method::POST, &begin, None).await?;
    if begun.status() != StatusCode::ACCEPTED {
        return Err(failed(refusal(begun).await));
    }
    let mut place = session.redirected(&begin, begun.headers().get(LOCATION))?;
    place.query_pairs_mut().append_pair("digest", &digest);
    let body = Some(("application/octet-stream", content.clone()));
    let stored = session.send(Method::PUT, &place, body).await?;
    if stored.status() == StatusCode::CREATED { Ok(()) } else { Err(failed(refusal(stored).await)) }
}

/// The configuration of the artifact, for other tools; gateways do not read it.
fn config_of(upload: &PluginUpload, layer: &str) -> serde_json::Value {
    let (imports, exports) = (&upload.imports, &upload.exports);
    match upload.is_component {
        true => json!({
            "architecture": "wasm", "os": "wasip2", "layerDigests": [layer],
            "component": { "imports": imports, "exports": exports },
        }),
        false => json!({ "architecture": "wasm", "os": "wasip1", "layerDigests": [layer] }),
    }
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}
