//! Plugins as files: where they come from, whether they are trusted, and where their versions are
//! stored.
//!
//! - `loader`: loads all plugin code, from a `file` or a `registry`, and accepts only what `trust`
//!   allows.
//! - `versions`: the history of each plugin, and the overrides of its file; in a directory, or in
//!   memory.
//!
//! Knows nothing of the contents of a plugin's file, of sets, or of what happens to a message.

mod file;
mod loader;
mod registry;
mod trust;
mod versions;

pub use file::read;
pub(crate) use file::{Artifact, MAX_SIZE};
pub use loader::PluginLoader;
pub(crate) use loader::paths;
pub use registry::RegistryConfig;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use registry::fuzzing::check as check_registry_answer;
pub(crate) use registry::{is_reference, reference};
pub(crate) use trust::check_order;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use trust::fuzzing::check as check_signature;
pub use trust::{PluginTrust, read_signature, sign, signature_as_text, signature_file};
pub(crate) use versions::{EffectiveVersion, VersionChange, VersionHistory};
pub use versions::{
    Exclusion, OverrideCause, RolloutResult, StoredVersion, Transition, VersionEvent, VersionOverride,
    Versions,
};
