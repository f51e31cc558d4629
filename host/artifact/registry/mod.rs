//! Plugins from OCI registries: `oci://registry/repository@sha256:...`.
//!
//! A digest always names the same content, so fetched content is cached: in memory, and in the state
//! directory if there is one. Everything is verified against its digest, every time. Registries use
//! TLS; plain HTTP is allowed on loopback only.
//!
//! - `client`: exchanges, within limits on size and time. `pull`: fetches. `push`: publishes.
//! - `site`: where a registry may redirect its clients. `challenge`: the required authentication.
//! - `credentials`: as written by `docker login`.
//! - `reference` and `manifest`: how content is named, and which part of it is the plugin.
//! - `cache`: the directory.

mod cache;
mod challenge;
mod client;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod helper;
mod manifest;
mod pull;
mod push;
mod reference;
mod site;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_client::Reference;
use parking_lot::Mutex;
use smart_default::SmartDefault;

use crate::artifact::error::ArtifactError;
use crate::artifact::file::Artifact;
use crate::expiring::ExpiringMap;

pub(super) use pull::has;
pub(crate) use push::PluginUpload;
pub(crate) use reference::TaggedReference;
pub(super) use reference::{SCHEME, parse};
pub use site::RegistryConfig;

use manifest::{Package, plugin_of};

/// How many plugins are cached in memory.
const MAX_CACHED: usize = 16;
/// How long a failed registry is not contacted again: an operator's change to another plugin must not
/// wait for it repeatedly.
const RETRY_DELAY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });
/// How many failures are remembered.
const FAILED: usize = 256;

/// A plugin that a command fetched.
#[derive(Debug)]
pub(crate) struct FetchedPlugin {
    /// The reference with its digest, as `path` of a `[[plugin]]`.
    pub(crate) reference: String,
    pub(crate) artifact: Artifact,
    /// What its publisher wrote into the manifest.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Fetches what a tag or a digest names now. Takes up to half a minute.
///
/// # Errors
/// As [`Registries::fetch`].
pub(crate) fn fetch_now(
    limits: &RegistryConfig,
    place: &TaggedReference,
) -> Result<FetchedPlugin, ArtifactError> {
    let (digest, package) = pull::pull_named(limits, place.reference())?;
    let (_, signature) = plugin_of(&digest, &package.manifest)?;
    let signature = signature.map(|text| Arc::from(text.as_bytes()));
    let artifact = Artifact { bytes: package.plugin.into(), signature };
    let annotations = manifest::annotations(&package.manifest);
    Ok(FetchedPlugin { reference: place.with_digest(&digest), artifact, annotations })
}

/// Publishes a plugin under a tag. Returns the reference with its digest, as `path` of a `[[plugin]]`.
///
/// # Errors
/// When the registry is unreachable or refuses.
pub(crate) fn publish(
    limits: &RegistryConfig,
    place: &TaggedReference,
    upload: &PluginUpload,
) -> Result<String, ArtifactError> {
    let digest = push::push(limits, place.reference(), upload)?;
    Ok(place.with_digest(&digest))
}

/// Content from registries, by digest.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    folder: Option<PathBuf>,
    config: RegistryConfig,
    known: Mutex<FetchedPlugins>,
}

#[derive(Debug, SmartDefault)]
struct FetchedPlugins {
    artifact: VecDeque<(String, Artifact)>,
    /// Why which reference failed last.
    #[default(ExpiringMap::new(FAILED))]
    failed: ExpiringMap<String, ArtifactError>,
}

impl Registries {
    /// Cached in this directory's `registry` as well, if there is one.
    pub(crate) fn new(folder: Option<PathBuf>, config: RegistryConfig) -> Self {
        let folder = folder.map(|folder| folder.join("registry"));
        Self { folder, config, known: Mutex::default() }
    }

    /// The plugin with this digest. Takes up to half a minute if it has to be fetched.
    ///
    /// # Errors
    /// When the registry is unreachable, does not have it, or returns something else.
    pub(crate) fn fetch(&self, reference: &Reference) -> Result<Artifact, ArtifactError> {
        let digest = reference.digest().unwrap_or_default();
        if let Some(known) = self.known(reference, digest) {
            return known;
        }
        let package = match self.folder.as_deref().and_then(|folder| cache::get(folder, digest)) {
            Some(package) => package,
            None => self.pull(reference, digest)?,
        };
        let (_, signature) = plugin_of(digest, &package.manifest)?;
        let artifact = Artifact {
            bytes: package.plugin.into(),
            signature: signature.map(|text| Arc::from(text.as_bytes())),
        };
        let mut known = self.known.lock();
        if known.artifact.len() >= MAX_CACHED {
            known.artifact.pop_front();
        }
        known.artifact.push_back((digest.to_owned(), artifact.clone()));
        Ok(artifact)
    }

    fn known(&self, reference: &Reference, digest: &str) -> Option<Result<Artifact, ArtifactError>> {
        let known = self.known.lock();
        if let Some((_, artifact)) = known.artifact.iter().find(|(known, _)| known == digest) {
            return Some(Ok(artifact.clone()));
        }
        known.failed.get(&reference.to_string(), Instant::now()).map(|why| Err(why.clone()))
    }

    fn pull(&self, reference: &Reference, digest: &str) -> Result<Package, ArtifactError> {
        let pulled = pull::pull(&self.config, reference, digest);
        match &pulled {
            Ok(package) => {
                if let Some(Err(error)) = self.folder.as_deref().map(|to| cache::put(to, digest, package)) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "content from a registry cannot be cached; a restart fetches it again"
                    );
                }
            }
            Err(why) => {
                let (mut known, now) = (self.known.lock(), Instant::now());
                known.failed.sweep(now);
                known.failed.insert(reference.to_string(), why.clone(), RETRY_DELAY, now);
            }
        }
        pulled
    }
}
