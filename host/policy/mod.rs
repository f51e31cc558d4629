//! Policies: WebAssembly plugins that decide what passes, who gets it where, and what becomes
//! of it for those who are away. They are swapped while messages flow, and whatever they do
//! wrong costs nobody but the message they did it to.
//!
//! # From a file to a decision
//!
//! - `artifact` is the door through which code comes in and what keeps its versions; `wasm` runs it.
//!   Both know nothing of each other and of what is here.
//! - `plugin` adds settings to a module of `wasm`; an `entry` of a set is a plugin that was started once
//!   with `init` and tried at every hook, and the candidate beside it.
//! - `prepare` makes a set of all plugins of a configuration, or refuses them with all problems
//!   at once; `set` is what comes out.
//! - `policies` holds the set in force. A swap is one atomic store between batches; the old
//!   set is freed with the last of its chains, its code with it.
//! - `chain` is one worker's instances of one set, a `link` for each plugin: it turns answers
//!   into plain data, and failures into `on_error`. A `pass` is a batch on its way through it;
//!   `time_budget` is what it lets a plugin waste.
//! - `watch` swaps when files change; `rollout` when versions come by hand or are tried, and takes out
//!   of force what fails too often.
//!
//! # What holds
//!
//! - One set decides the whole of a batch.
//! - A plugin that traps, loops, eats memory, or answers nonsense loses its instance and gets a
//!   fresh one. The batch is halved until the message it failed on stands alone; the others
//!   are decided as ever.
//! - Nothing here knows of Kafka, of Redis, of comets.
//!
//! # In use
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

mod chain;
mod config;
mod entry;
mod link;
mod metrics;
mod on_error;
mod pass;
mod plugin;
mod policies;
mod prepare;
mod rollout;
mod set;
mod status;
mod time_budget;
mod watch;

/// What is read as a plugin is looked at.
const _: () = assert!(crate::artifact::MAX_SIZE == crate::wasm::compile::bounds::SIZE);

pub use chain::Chain;
pub use config::{CometScope, PluginConfig, PoliciesConfig, StateScope, WasmConfig, expand};
pub use metrics::Metrics;
pub use on_error::{OnError, OnErrors};
pub use pass::{Pass, Step};
pub use policies::{Policies, Setup};
pub use prepare::{Problem, Refused};
pub use rollout::{
    Budget, Difference, Differences, Mode, QuarantineConfig, Share, Then, TrialConfig, TrialStatus, Upload,
    supervise,
};
pub use set::{Generation, PolicySet};
pub use status::{PluginState, PluginStatus, Refusal, Status};
pub use watch::{Sources, watch};

#[cfg(test)]
mod tests;
