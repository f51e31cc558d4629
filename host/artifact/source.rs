//! Where a plugin's file comes from.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_client::Reference;
use smart_default::SmartDefault;

use crate::artifact::error::ArtifactError;
use crate::artifact::registry::{self, SCHEME};
use crate::schema;

/// A `path` in the configuration: a file, or a reference into a registry.
#[derive(Clone, Debug, PartialEq, Eq, SmartDefault, derive_more::Display)]
pub enum PluginSource {
    /// A file.
    #[default]
    #[display("{}", _0.display())]
    File(PathBuf),
    /// `oci://registry/repository@sha256:...`.
    #[display("{SCHEME}{_0}")]
    Oci(Reference),
}

impl PluginSource {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Oci(_) => None,
        }
    }

    /// Whether nothing is named.
    pub(crate) fn is_empty(&self) -> bool {
        self.file().is_some_and(|file| file.as_os_str().is_empty())
    }

    /// Makes a relative path relative to this folder.
    pub(crate) fn resolve(&mut self, base: &Path) {
        if let Self::File(file) = self {
            *file = base.join(&*file);
        }
    }
}

impl From<PathBuf> for PluginSource {
    fn from(file: PathBuf) -> Self {
        Self::File(file)
    }
}

impl From<&Path> for PluginSource {
    fn from(file: &Path) -> Self {
        Self::File(file.to_owned())
    }
}

impl FromStr for PluginSource {
    type Err = ArtifactError;

    fn from_str(text: &str) -> Result<Self, ArtifactError> {
        match text.strip_prefix(SCHEME) {
            Some(reference) => Ok(Self::Oci(registry::parse(reference)?)),
            None => Ok(Self::File(text.into())),
        }
    }
}

schema::as_text!(PluginSource);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_they_are_written() {
        let digest = "0".repeat(64);
        let oci = format!("oci://registry.example:5000/team/policy:1.0@sha256:{digest}");
        for text in ["policies/a.wasm", "", &oci] {
            let source: PluginSource = text.parse().unwrap();
            assert_eq!((source.to_string(), source.file().is_none()), (text.to_owned(), text == oci));
            let json = serde_json::to_value(&source).unwrap();
            assert_eq!(json, text);
            assert_eq!(serde_json::from_value::<PluginSource>(json).unwrap(), source);
        }
        let mut relative = PluginSource::from(Path::new("a.wasm"));
        relative.resolve(Path::new("/etc/halley"));
        assert_eq!(relative.file(), Some(Path::new("/etc/halley/a.wasm")));
        let why = "oci://registry.example/policy:1.0".parse::<PluginSource>().unwrap_err();
        assert!(!why.is_transient() && why.to_string().contains("names a tag"), "{why}");
    }
}
