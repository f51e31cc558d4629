//! The sandbox: one plugin's code, and both sides of the boundary that a call crosses. The only
//! module that knows wasmtime and the types that it generates from `wit/policy.wit`.
//!
//! - `module`: turns a file's bytes into a module that can be instantiated; `contract`: the version
//!   of the contract that it was built for; `inspect`: describes its contents.
//! - `compile_cache`: compiles, and caches the results; `compile`: limits and isolates compilation;
//!   `module_cache`: the cache of compiled code; `engine`: which WebAssembly features plugins may
//!   use.
//! - `instance`: one instance with its store and its limits, and its hooks as functions; `failure`:
//!   how they fail; `described`: asks for the schema of the settings.
//! - `lower` and `lift`: convert the arguments and the results of hooks; `batch` and `room`: the
//!   layouts in which many messages and connections are passed, in `string_column`s.
//! - `host`: the functions that plugins can call, implemented by `clock`, `state`, `shared` and
//!   `state_usage`; `output`: what plugins print; `metrics`: the metrics of each version.
//! - `runtime`: what all plugins share; `address_space`: how much of it their memories take;
//!   `epoch`: the clock of their deadlines.
//! - `idle`: a plugin that does nothing, as a baseline for benchmarks.
//!
//! # Guarantees
//!
//! - Guest code always runs under a deadline and a memory limit, and cannot wait in the host.
//! - Plugins do no I/O: no files, no network, no environment.
//! - Every length, index and name in a plugin's answer is checked, in `lift` and `room`.
//!
//! Does not know sets, chains, versions or swaps, where files come from, or what happens to a message.

mod address_space;
mod batch;
pub(crate) mod bindings;
mod clock;
pub(crate) mod compile;
mod compile_cache;
mod contract;
pub(crate) mod described;
mod engine;
pub(crate) mod epoch;
pub(crate) mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod host;
pub(crate) mod idle;
mod inspect;
pub(crate) mod instance;
pub(crate) mod lift;
pub(crate) mod lower;
pub(crate) mod metrics;
pub(crate) mod module;
mod module_cache;
mod output;
pub(crate) mod room;
mod runtime;
pub(crate) mod shared;
mod state;
mod state_usage;
mod string_column;
#[cfg(test)]
mod tests;

pub use clock::Clock;
pub use compile::{
    CompileJob, CompileLimits, await_compilations, compile_plugin, end_compilations, use_child_processes,
};
pub use engine::WasmFeature;
pub use idle::idle_plugin;
pub use inspect::{Import, Inspection, inspect};
pub use runtime::{Runtime, RuntimeConfig};
