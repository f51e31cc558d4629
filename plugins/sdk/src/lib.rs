//! Write policies for the Halley routing gateway.
//!
//! A **policy** decides what becomes of push messages: which may pass and in what form
//! ([`Filter`]), over which comets a room's connections are reached ([`Grouping`]), and what
//! happens for recipients who are away ([`Offline`]). It is compiled to WebAssembly, named in
//! the gateway's configuration, and exchanged while the gateway runs.
//!
//! # A complete filter
//!
//! ```
//! use halley_plugin::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct Blocklist {
//!     words: Vec<String>,
//! }
//!
//! impl Filter for Blocklist {
//!     fn filter(&mut self, message: &Message) -> Verdict {
//!         let found = self.words.iter().find(|word| message.text().contains(*word));
//!         found.map_or(Verdict::Pass, |word| Verdict::drop(format!("contains {word}")))
//!     }
//! }
//!
//! halley_plugin::export!(Blocklist: Filter);
//! ```
//!
//! The crate around it is a `cdylib` that depends on `halley-plugin` and on `serde` (with
//! its `derive` feature), built for `wasm32-unknown-unknown`; `plugins/README.md` in Halley's
//! repository goes through it step by step.
//!
//! # The parts
//!
//! - **Configuration** is the plugin's `config` table. A policy that is `Deserialize` is its
//!   own configuration, as above; one that turns its configuration into something else (a
//!   compiled word list, say) implements [`Policy`]. A value that does not fit refuses the
//!   version, with the key in the message, and the version before it stays in force.
//! - **Hooks** are [`Filter`], [`Grouping`] and [`Offline`]. [`export!`] names the ones that
//!   the policy has; the gateway calls no other.
//! - **The host's functions**: [`log`], [`now`], [`counter_add`], [`gauge_set`], [`state`].
//! - **Tests** run natively, without a gateway and without WebAssembly: [`testing`].
//!
//! # What a policy may rely on
//!
//! Decisions are data. A policy opens no files and no connections; what needs I/O (a guard,
//! a redirect, an inbox) is asked for in the answer, and the gateway does it for the whole
//! batch. An instance belongs to one worker of the gateway, is never called by two threads
//! at once, and *may be thrown away between any two calls*: what has to last belongs into
//! [`state`] or into a guard ([`Verdict::once`]). A panic is a trap: the gateway logs its
//! text, does what `on_error` says, and makes a fresh instance.
//!
//! # Versions
//!
//! A policy carries the version of the contract (`wit/policy.wit`) that its SDK was made for.
//! A gateway loads policies of its own version and of earlier ones of the same line (`0.1`);
//! a policy of a later one, as long as it asks for nothing that the gateway lacks. What this
//! SDK uses of 0.1.1, the columns in which batches and rooms come, it does without on gateways
//! of 0.1.0.
//! Anything else is refused when it is loaded, with both versions and what to do.

mod batch;
#[doc(hidden)]
pub mod bindings;
mod comet;
mod export;
mod filter;
mod grouping;
mod host;
mod message;
mod offline;
mod policy;
mod room;
mod scope;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use bindings::common::halley::policy::types::{Audience, Header, Message, Source};
pub use comet::canonical_comet;
pub use filter::{Amendment, Filter, Once, Verdict};
pub use grouping::{Grouping, Move, Placement, Redirect, Regrouping};
pub use host::{counter_add, gauge_set, log, now, state};
pub use offline::{Absent, Cause, Disposition, Offline};
pub use policy::{NoConfig, Policy};
pub use room::{Connection, Connections, ConnectionsIter, Room};
pub use scope::RoomPattern;

/// What nearly every policy imports.
pub mod prelude {
    pub use crate::{Absent, Cause, Disposition, Offline};
    pub use crate::{Audience, Message, Source};
    pub use crate::{Connection, Grouping, Placement, Regrouping, Room};
    pub use crate::{Filter, Verdict};
    pub use crate::{NoConfig, Policy};
    pub use crate::{counter_add, gauge_set, log, now, state};
    pub use serde::Deserialize;
    pub use std::time::Duration;
}

#[doc(hidden)]
pub mod __private {
    pub use crate::bindings;
    pub use crate::export::{Component, Slot, has_filter, has_grouping, has_offline};
}
