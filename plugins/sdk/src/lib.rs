//! SDK for policies of the Halley routing gateway.
//!
//! A **policy** decides about push messages: which ones pass and in what form ([`Filter`]), which ones
//! are kept in addition to their delivery ([`Retention`]), through which comets a room's connections are
//! reached ([`Grouping`]), and what happens for absent recipients ([`Offline`]). It is compiled to WebAssembly, listed in the gateway's configuration,
//! and swapped while the gateway runs.
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
//! Its crate is a `cdylib` that depends on `halley-plugin` and on `serde` (with its `derive`
//! feature), built for `wasm32-unknown-unknown`; `plugins/README.md` in Halley's repository explains
//! it step by step.
//!
//! # The parts
//!
//! - **Configuration** is the plugin's `config` table. A policy that is `Deserialize` is its own
//!   configuration, as above; one that converts its configuration to something else (such as a
//!   compiled word list) implements [`Policy`]. An invalid value refuses the version, with the key in
//!   the message, and the previous version stays active. [`Settings`] describes it, so that the gateway reports
//!   all mistakes at once, and people see what can be set.
//! - **Hooks** are [`Filter`], [`Retention`], [`Grouping`] and [`Offline`]. [`export!`] lists the policy's hooks;
//!   the gateway calls no other.
//! - **The host's functions**: [`log`], [`now`], [`counter_add`], [`gauge_set`], [`state`].
//! - **Tests** run natively, without a gateway and without WebAssembly: [`testing`].
//!
//! # Guarantees and limits
//!
//! Decisions are data. A policy opens no files and no connections; I/O (a guard, a redirect, an
//! inbox) is requested in the answer, and the gateway does it for the whole batch. An instance
//! belongs to one worker of the gateway, is never called by two threads at once, and *may be
//! discarded between any two calls*: keep data that must last in [`state`] or in a guard
//! ([`Verdict::once`]). A panic is a trap: the gateway logs its message, applies `on_error`, and
//! creates a fresh instance.
//!
//! # Versions
//!
//! A policy carries the version of the contract (`wit/policy.wit`) that its SDK was made for. A
//! gateway loads policies of its own version and of earlier ones of the same line (`0.1`), and a
//! policy of a later one as long as it needs nothing that the gateway lacks. This SDK uses the
//! columns of 0.1.1 for batches and rooms, and falls back to records on gateways of version 0.1.0;
//! `Retention` needs a gateway of version 0.1.2, and `Settings` one of 0.1.3; earlier ones do not call them.
//! Anything else is refused when it is loaded, with both versions and the remedy.

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
mod retention;
mod room;
mod scope;
mod settings;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use bindings::common::halley::policy::types::{Audience, Header, Message, Source};
pub use comet::canonical_comet;
pub use filter::{Amendment, Filter, Once, Verdict};
pub use grouping::{Grouping, Move, Placement, Redirect, Regrouping};
pub use host::{counter_add, gauge_set, log, now, state};
pub use offline::{Absent, Cause, Disposition, Offline};
pub use policy::{NoConfig, Policy};
pub use retention::{Keep, Retention};
pub use room::{Connection, Connections, ConnectionsIter, Room};
pub use scope::RoomPattern;
pub use settings::Settings;
#[cfg(feature = "schema")]
pub use settings::schema_of;

/// The imports of nearly every policy.
pub mod prelude {
    pub use crate::{Absent, Cause, Disposition, Offline};
    pub use crate::{Audience, Message, Source};
    pub use crate::{Connection, Grouping, Placement, Regrouping, Room};
    pub use crate::{Filter, Verdict};
    pub use crate::{Keep, Retention};
    pub use crate::{NoConfig, Policy};
    pub use crate::{counter_add, gauge_set, log, now, state};
    pub use serde::Deserialize;
    pub use std::time::Duration;
}

#[doc(hidden)]
pub mod __private {
    pub use crate::bindings;
    pub use crate::export::{
        Component, Slot, has_filter, has_grouping, has_offline, has_retention, has_settings,
    };
}
