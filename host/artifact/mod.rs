//! Plugins as files: where they come from, whether they are trusted, and where their versions are
//! stored.
//!
//! - `loader`: loads all plugin code, from a `file` or a `registry`, and accepts only what `trust`
//!   allows.
//! - `versions`: the history of each plugin, and the overrides of its file; in a directory, or in
//!   memory.
//!
//! It does not know the contents of a plugin's file, sets, or what happens to a message.

mod error;
mod file;
mod loader;
mod registry;
mod source;
mod trust;
mod versions;

pub use error::ArtifactError;
pub use file::read;
pub(crate) use file::{Artifact, MAX_SIZE};
pub use loader::PluginLoader;
pub(crate) use loader::{paths, probe_registry};
pub use registry::RegistryConfig;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use registry::fuzzing::check as check_registry_answer;
pub(crate) use registry::{FetchedPlugin, PluginUpload, TaggedReference, fetch_now, publish};
pub use source::PluginSource;
pub(crate) use trust::check_order;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use trust::fuzzing::check as check_signature;
pub use trust::{PluginTrust, TrustedKey, read_signature, sign, signature_as_text, signature_file};
pub(crate) use trust::{Statement, signed_version};
pub(crate) use versions::{EffectiveVersion, VersionChange, VersionError, VersionHistory};
pub use versions::{
    Exclusion, OverrideCause, RolloutResult, StoredVersion, Transition, VersionEvent, VersionOverride,
    Versions,
};
