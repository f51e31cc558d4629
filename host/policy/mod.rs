//! Policies: WebAssembly plugins that decide which messages pass, who receives them, and what happens
//! to the messages of absent users. They are swapped while messages flow, and a failing plugin costs
//! only the message that it fails on.
//!
//! # From a file to a decision
//!
//! - `artifact` loads plugin code and stores its versions; `wasm` runs it. Neither knows the other,
//!   or this module.
//! - `plugin` adds settings to a module of `wasm`; an `entry` of a set is a plugin that was started
//!   once with `init` and called once at every hook, with its candidate.
//! - `desired` decides which version of a plugin is used: its file, an override, or an operator's choice.
//!   `prepare` turns the plugins of a configuration into a `set`, or refuses them with all `problem`s at
//!   once.
//! - `policies` holds the active set. A swap is one atomic store between batches; the old set, with
//!   its code, is freed with the last of its chains.
//! - `chain` is one worker's instances of one set, with a `chain_entry` for each plugin, which converts
//!   answers to plain data, and failures to `on_error`. A `filter_run` is a batch on its way through
//!   the filters; `time_budget` limits the time that a plugin may waste.
//! - `watch` swaps sets when files change; `rollout` when an operator changes versions or a canary is
//!   promoted. It also quarantines versions that fail too often.
//!
//! # Guarantees
//!
//! - One set decides a whole batch.
//! - A plugin that traps, loops, exhausts its memory, or returns invalid answers loses its instance
//!   and gets a fresh one. The batch is halved until the message that it failed on is isolated; the
//!   others are decided normally.
//! - This module does not know Kafka, Redis or comets.
//!
//! # Example
//!
//! ```no_run
//! use halley::message::Message;
//! use halley::policy::{OnError, Policies, PluginConfig};
//! use halley::wasm::Runtime;
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

mod batch_hook;
mod chain;
mod chain_entry;
mod config;
mod desired;
mod entry;
mod filter_run;
mod metrics;
mod on_error;
mod plugin;
mod policies;
mod prepare;
mod problem;
mod rollout;
mod set;
mod status;
mod time_budget;
mod watch;

/// Every file that can be read can be compiled: the limits are equal.
const _: () = assert!(crate::artifact::MAX_SIZE == crate::wasm::compile::bounds::SIZE);

pub use crate::decision::OnError;
pub(crate) use crate::wasm::metrics::HookKind;
pub use chain::Chain;
pub use config::{CometScope, PluginConfig, PoliciesConfig, StateScope, WasmConfig, expand};
pub use filter_run::{FilterProgress, FilterRun};
pub use metrics::Metrics;
pub use on_error::OnErrors;
pub use policies::{Policies, PolicyDependencies};
pub use problem::{PluginProblem, PolicyError, ProblemKind};
pub use rollout::{
    Difference, Differences, Fraction, QuarantineAction, QuarantineConfig, RolloutConfig, RolloutMode,
    RolloutStatus, Thresholds, Upload, supervise,
};
pub use set::{Generation, PolicySet};
pub use status::{PluginState, PluginStatus, RefusedUpdate, Status};
pub use watch::{PolicySources, watch};

#[cfg(test)]
mod tests;
