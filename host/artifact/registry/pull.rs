//! Fetching a plugin from a registry: its manifest, and the layer that the manifest names.

use oci_client::Reference;
use reqwest::{Method, StatusCode};

use crate::artifact::error::ArtifactError;
use crate::artifact::registry::client::{
    DEADLINE, RegistrySession, explained, failed, on_own_thread, refusal,
};
use crate::artifact::registry::credentials;
use crate::artifact::registry::manifest::{MAX_MANIFEST, MAX_SIZE, Package, check_digest, plugin_of};
use crate::artifact::registry::site::RegistryConfig;
use crate::digest::Digest;

/// Fetches the package of this digest, checked.
///
/// # Errors
/// The problem: the second half of a sentence that begins with the plugin.
pub(super) fn pull(
    config: &RegistryConfig,
    reference: &Reference,
    digest: &str,
) -> Result<Package, ArtifactError> {
    let fetch = || fetch(config, reference, Some(digest), ". The gateway retries");
    on_own_thread("fetched", DEADLINE, fetch).map(|(_, package)| package)
}

/// Fetches what a tag names now, or a digest; returns its digest as well.
///
/// # Errors
/// As [`pull`].
pub(super) fn pull_named(
    config: &RegistryConfig,
    reference: &Reference,
) -> Result<(String, Package), ArtifactError> {
    on_own_thread("fetched", DEADLINE, || fetch(config, reference, reference.digest(), ""))
}

/// `remedy` ends the text of a failure.
async fn fetch(
    config: &RegistryConfig,
    reference: &Reference,
    digest: Option<&str>,
    remedy: &str,
) -> Result<(String, Package), ArtifactError> {
    let credentials = credentials::of(reference.registry())?;
    let explained = explained("fetched", &credentials, remedy);
    let mut session = RegistrySession::new(config, reference, credentials).map_err(&explained)?;
    let named = digest.or_else(|| reference.tag()).unwrap_or_default();
    let manifest = session.get("manifests", named, MAX_MANIFEST).await.map_err(&explained)?;
    let digest = digest.map_or_else(|| format!("sha256:{}", Digest::of(&manifest)), str::to_owned);
    let (layer, _) = plugin_of(&digest, &manifest)?;
    let plugin = session.get("blobs", &layer.digest, MAX_SIZE).await.map_err(&explained)?;
    check_digest("the plugin", &layer.digest, &plugin)?;
    Ok((digest, Package { manifest, plugin }))
}

/// Asks whether the registry has this digest, without fetching it.
///
/// # Errors
/// As [`pull`].
pub(in crate::artifact) fn has(config: &RegistryConfig, reference: &Reference) -> Result<(), ArtifactError> {
    on_own_thread("found", DEADLINE, || async {
        let credentials = credentials::of(reference.registry())?;
        let explained = explained("found", &credentials, "");
        let mut session = RegistrySession::new(config, reference, credentials).map_err(&explained)?;
        let named = format!("manifests/{}", reference.digest().unwrap_or_default());
        let url = session.url(&named).map_err(&explained)?;
        let answer = session.send(Method::HEAD, &url, None).await.map_err(&explained)?;
        if answer.status() == StatusCode::OK {
            return Ok(());
        }
        Err(explained(failed(refusal(answer).await)))
    })
}
