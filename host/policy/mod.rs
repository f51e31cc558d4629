//! Policies: WebAssembly plugins that decide what passes, who gets it where, and what becomes
//! of it for those who are away. They are swapped while messages flow, and whatever they do
//! wrong costs nobody but the message they did it to.
//!
//! # From a file to a decision
//!
//! - `guest::module` tells components from plain modules, reads the version of the contract
//!   (`wit/policy.wit`), compiles, and finds the hooks from what is exported.
//! - `plugin` adds settings, starts it once with `init` and tries every hook: a prepared plugin.
//! - `prepare` makes a set of all plugins of a configuration, or refuses them with all problems
//!   at once; `set` is what comes out.
//! - `policies` holds the set in force. A swap is one atomic store between batches; the old
//!   set is freed with the last of its chains, its code with it.
//! - `chain` is one worker's instances of one set, a `link` for each plugin: it turns answers
//!   into plain data, and failures into `on_error`.
//! - `watch` swaps when files change; `steer` when versions come by hand, and takes out of
//!   force what fails too often.
//! - `intake` is the door through which code comes in: from files, or from a `registry`, and
//!   only what `trust` lets in.
//! - `versions` keeps what there was, when and why it came and went, and what decides instead of
//!   a plugin's file.
//!
//! - `inspect` tells the people who write plugins what is in a file; `idle` is a plugin that does
//!   nothing, to measure others against.
//!
//! `guest` is one plugin's code and how it is called: its instance, its questions and answers,
//! what it can call. The types of wasmtime and of the WIT stay in this folder.
//!
//! # What holds
//!
//! - One set decides the whole of a batch.
//! - A plugin that traps, loops, eats memory, or answers nonsense loses its instance and gets a
//!   fresh one. The batch is halved until the message it failed on stands alone; the others
//!   are decided as ever.
//! - Guest code runs under a deadline and a memory limit, always, and cannot wait in the host.
//! - Plugins do no I/O: no files, no network, no environment.
//! - Nothing here knows of Kafka, of Redis, of comets.
//!
//! # In use
//!
//! ```no_run
//! use halley::message::Message;
//! use halley::policy::{OnError, Policies, PluginConfig, Runtime};
//!
//! fn decide(messages: Vec<Message>) -> anyhow::Result<()> {
//!     let runtime = Runtime::new(&mut prometheus_client::registry::Registry::default())?;
//!     let filter = PluginConfig {
//!         on_error: OnError::DeadLetter.into(),
//!         ..PluginConfig::new("keyword-filter", "plugins/keyword_filter.wasm")
//!     };
//!     let policies = Policies::start(runtime, &[filter])?;
//!     let mut chain = policies.current().chain(); // kept by a worker until the generation changes
//!     for filtered in chain.filter("push", 0, messages)? {
//!         println!("{}: {:?}", filtered.message.id, filtered.verdict);
//!     }
//!     Ok(())
//! }
//! ```

mod chain;
mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod guest;
mod idle;
mod inspect;
mod intake;
mod link;
mod metrics;
#[cfg(test)]
mod model;
mod on_error;
mod outcome;
mod pass;
mod plugin;
mod policies;
mod prepare;
mod registry;
mod set;
mod status;
mod steer;
mod switch;
mod time_budget;
mod trial;
mod trust;
mod versions;
mod watch;

// What `switch` is made of; its model brings another cell.
use arc_swap as cell;

pub use chain::Chain;
pub use config::{CometScope, PluginConfig, PoliciesConfig, StateScope, WasmConfig, expand};
pub use guest::clock::Clock;
pub use guest::compile::{
    CompileLimits, Job, await_compilations, compile_plugin, end_compilations, use_child_processes,
};
pub use guest::engine::WasmFeature;
pub use guest::runtime::{Runtime, RuntimeConfig};
pub use idle::idle_plugin;
pub use inspect::{Import, Inspection, inspect};
pub use intake::Intake;
pub use metrics::Metrics;
pub use on_error::{OnError, OnErrors};
pub use outcome::{Decided, Decision, Filtered, Stalled};
pub use pass::{Pass, Step};
pub use policies::Policies;
pub use prepare::{Problem, Refused};
pub use registry::RegistryConfig;
pub use set::{Generation, PolicySet};
pub use status::{PluginState, PluginStatus, Refusal, Status};
pub use steer::{Upload, supervise};
pub use trial::{Budget, Difference, Differences, Mode, Share, TrialConfig, TrialStatus};
pub use trust::{Trust, read_signature, sign, signature_as_text, signature_file};
pub use versions::{
    Against, Cause, Event, KeptVersion, Override, QuarantineConfig, Then, Tried, Turn, Versions,
};
pub use watch::{Sources, watch};

#[cfg(test)]
mod tests;
