//! The sandbox: one plugin's code, and everything on both sides of the border that a call crosses.
//! The only place that knows wasmtime and the types that it generates from `wit/policy.wit`.
//!
//! - `module`: from a file's bytes to something that can be instantiated; `contract`: for which
//!   version of the contract it was built; `inspect`: what people are told of it.
//! - `attempts`: compiling, and what it came to; `compile`: within which bounds, and where;
//!   `module_cache`: what earlier starts compiled; `engine`: of which WebAssembly plugins may be made.
//! - `instance`: one instance with its store and its limits; its hooks as functions; `failure`:
//!   how they fail.
//! - `lower` and `lift`: what plugins see, and what they may say; `batch` and `room`: the shapes in
//!   which many of them cross, in `string_column`s.
//! - `host`: what they can call, with `clock`, `state`, `shared` and its `account` behind it;
//!   `output`: what they print; `metrics`: what is counted of each version.
//! - `runtime`: what all of them share; `address_space`: how much of it their memories take;
//!   `epoch`: the clock of their deadlines.
//! - `idle`: a plugin that does nothing, to measure others against.
//!
//! # What holds
//!
//! - Guest code runs under a deadline and a memory limit, always, and cannot wait in the host.
//! - Plugins do no I/O: no files, no network, no environment.
//! - Every length, index and name that a plugin answers is checked, in `lift` and `room`.
//!
//! Knows nothing of sets, chains, versions, swaps, where files come from, or what becomes of a
//! message.

mod account;
mod address_space;
mod attempts;
mod batch;
pub(crate) mod bindings;
mod clock;
pub(crate) mod compile;
mod contract;
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
mod string_column;
#[cfg(test)]
mod tests;

pub use clock::Clock;
pub use compile::{
    CompileLimits, Job, await_compilations, compile_plugin, end_compilations, use_child_processes,
};
pub use engine::WasmFeature;
pub use idle::idle_plugin;
pub use inspect::{Import, Inspection, inspect};
pub use runtime::{Runtime, RuntimeConfig};
