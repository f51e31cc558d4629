//! Loads plugins from files and registries and checks whether they are trusted. All plugin code
//! enters through here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::artifact::error::ArtifactError;
use crate::artifact::file::{self, Artifact};
use crate::artifact::registry::{self, Registries, RegistryConfig};
use crate::artifact::source::PluginSource;
use crate::artifact::trust::{self, PluginTrust};
use crate::digest::Digest;

/// One per gateway. The default trusts every plugin and caches nothing.
#[derive(Debug, Default)]
pub struct PluginLoader {
    trust: PluginTrust,
    registries: Registries,
}

impl PluginLoader {
    /// With this trust. Content from registries is cached in the directory, if there is one.
    pub fn new(trust: PluginTrust, folder: Option<&Path>, registry: RegistryConfig) -> Self {
        Self { trust, registries: Registries::new(folder.map(Path::to_owned), registry) }
    }

    /// Loads a file, or what a registry has. May take half a minute.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub(crate) fn fetch(&self, source: &PluginSource) -> Result<Artifact, ArtifactError> {
        let path = match source {
            PluginSource::Oci(reference) => return self.registries.fetch(reference),
            PluginSource::File(path) => path,
        };
        let bytes = file::read(path)?;
        let asked = self.trust.requires_signatures();
        let signature = if asked { trust::read_signature(path)? } else { None };
        Ok(Artifact { bytes: bytes.into(), signature: signature.map(Arc::from) })
    }

    /// Whether plugins must be signed.
    pub(crate) fn requires_signatures(&self) -> bool {
        self.trust.requires_signatures()
    }

    /// Whether a version may decide. Returns the number that it is signed with, if any.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(
        &self,
        name: &str,
        artifact: &Artifact,
        pin: Option<Digest>,
    ) -> Result<Option<u64>, ArtifactError> {
        self.trust.check(name, &artifact.bytes, artifact.signature.as_deref(), pin)
    }

    /// A fingerprint of a plugin's file, its signature and the trusted keys; `None` if the file
    /// cannot be read.
    pub(crate) fn fingerprint(&self, source: &PluginSource) -> Option<String> {
        let path = match source {
            // A digest always names the same content; the keys may change.
            PluginSource::Oci(_) => return Some(self.with_keys(source.to_string())),
            PluginSource::File(path) => path,
        };
        let hash = Digest::of(&file::read(path).ok()?);
        Some(if self.trust.requires_signatures() {
            let signature = trust::read_signature(path).ok().flatten().unwrap_or_default();
            self.with_keys(format!("{hash} {}", Digest::of(&signature)))
        } else {
            hash.to_string()
        })
    }

    fn with_keys(&self, text: String) -> String {
        text + &self.trust.fingerprint()
    }
}

/// Whether a registry has this plugin, whatever is cached. Nothing is fetched.
///
/// # Errors
/// When the registry is unreachable, or does not have it.
pub(crate) fn probe_registry(
    source: &PluginSource,
    limits: &RegistryConfig,
) -> Result<String, ArtifactError> {
    match source {
        PluginSource::Oci(reference) => registry::has(limits, reference).map(|()| "it is there".to_owned()),
        PluginSource::File(_) => Ok("it is a file".to_owned()),
    }
}

/// The paths to watch for these plugins: their files, their signatures, the keys.
pub(crate) fn paths<'a>(
    sources: impl Iterator<Item = &'a PluginSource>,
    trust: &PluginTrust,
) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = sources.filter_map(PluginSource::file).map(Path::to_path_buf).collect();
    if trust.requires_signatures() {
        let signatures: Vec<PathBuf> = paths.iter().map(|path| trust::signature_file(path)).collect();
        paths.extend(signatures);
        paths.extend(trust.key_files());
    }
    paths
}
