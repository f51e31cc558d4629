//! The policies' part of the configuration: `[[plugin]]` and `[policies]`.
//!
//! Plain data. Whether a plugin's file exists and works is checked when the set is prepared,
//! which reports all problems at once.

mod plugin;
mod policies;

pub use plugin::{CometScope, PluginConfig, StateScope};
pub use policies::{PoliciesConfig, WasmConfig, expand};
