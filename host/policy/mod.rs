//! Policies: WebAssembly plugins that decide what passes, who gets it where, and what becomes
//! of it for those who are away.

mod answers;
mod bindings;
mod chain;
mod config;
mod host;
mod instance;
mod log_budget;
mod metrics;
mod module;
mod plugin;
mod policies;
mod questions;
mod runtime;
mod set;
mod state;
mod ticker;
mod watch;

pub use chain::{Chain, Decided, Decision, Filtered, Stalled};
pub use config::{OnError, PluginConfig, PoliciesConfig, expand};
pub use metrics::Metrics;
pub use policies::{PluginState, PluginStatus, Policies, Refusal, Status};
pub use runtime::Runtime;
pub use set::{Generation, PolicySet, Problem, Refused};
pub use watch::{Sources, watch};

#[cfg(test)]
mod tests;
