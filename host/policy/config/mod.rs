//! The policies' part of the configuration: `[[plugin]]` and `[policies]`.
//!
//! Plain data. Whether a plugin's file exists and works is found out when the set is
//! prepared, where all problems are reported at once.

mod plugin;
mod policies;

pub use plugin::{CometScope, PluginConfig, StateScope};
pub use policies::{PoliciesConfig, WasmConfig, expand};
