//! Halley: a routing gateway for push systems in the style of goim.
//!
//! *Logic* services write `PushMsg` records to Kafka; *comets* hold the users' connections. Halley
//! sits in between: it looks up where recipients are connected, and delivers every message.
//! **Policies** decide what is delivered, to whom, and what happens for absent users. They are
//! WebAssembly components that can be replaced at run time.
//!
//! This page describes the architecture. `README.md` is for operators, `plugins/README.md` for authors
//! of policies.
//!
//! # The path of a message
//!
//! ```text
//!             Kafka
//!               │ records            consumer     polls, admits, pauses, commits
//!               ▼
//!   ┌─ a partition's worker ─────┐   pipeline     one batch of ready records, one policy set
//!   │ claims ──── Redis          │   redrive_key  verifies records that claim to be redriven
//!   │ decode                     │   message      bytes -> Message
//!   │ filter ──── plugins, Redis │   policy       pass, drop, dead-letter, amend
//!   │                            │   shared_state the state that policies of all gateways share
//!   │ guard ───── Redis          │   guard        "only once within this time"
//!   │ history ─── Redis          │   history      rooms whose messages are kept
//!   │ resolve ─── Redis, plugins │   directory    room or keys -> connections (cached)
//!   │ route                      │   router       connections -> at most one call per comet
//!   └─────────────┬──────────────┘
//!                 ▼ calls, in order  comets       queues, retries, breaker, dialects
//!   ┌─ a settler per partition ──┐   pipeline     when a message's last call has ended
//!   │ call outcomes              │
//!   │ absent users ─ plugins     │   inbox        inbox, notify topic      (in a delivery
//!   │                            │   archive      archive topic             task, if needed)
//!   │ dead letter                │   dead_letter
//!   │ settle ────────────────────┼─▶ offsets      watermark -> commit
//!   └────────────────────────────┘
//! ```
//!
//! # Layers
//!
//! Each module may depend on those above it in this list, as far as `tests/layers.rs` allows.
//!
//! - [`message`], [`membership`], [`decision`], [`offsets`], [`settings`], `digest`: plain data and pure
//!   rules, without I/O.
//! - [`kafka`], [`redis_client`]: what all users of each client share. [`memory_guard`]: whether the
//!   process has memory for more records.
//! - [`consumer`], [`wasm`], [`artifact`], [`shared_state`], [`directory`], [`guard`], [`comets`],
//!   [`inbox`], [`dead_letter`], [`redrive_key`]: independent of each other.
//! - [`history`]: the messages of a room, each once. It uses [`inbox`], whose pages its pages are.
//! - [`archive`]: stored messages in MySQL, through a topic of its own. It uses [`consumer`], [`inbox`]
//!   (whose pages it continues) and [`dead_letter`].
//! - [`policy`]: which plugins are active. It uses [`wasm`], which runs them, and [`artifact`], which
//!   fetches, verifies and stores their files.
//! - [`router`]: turns a resolved route into the calls of one message. Pure.
//! - [`pipeline`]: takes messages through the modules above.
//! - [`replay`]: pushes a user's inbox through the user's comet, on request or when the user returns.
//! - [`config`]: the whole configuration, composed of the modules' sections.
//! - [`gateway`]: builds all parts from the configuration, owns their tasks, and defines the order of
//!   start and stop.
//! - `http_server`: serves HTTP within limits, for both of the next.
//! - [`admin`]: the HTTP API for operators, and the console. [`api`]: inboxes for comets and backends.
//! - [`cli`]: the commands. [`sandbox`]: the privileges that the
//!   process drops at its start.
//!
//! Every module may use [`telemetry`], [`panics`], [`stalls`] (the work that is being retried, and the
//! records that it holds), `files` (the only module that reads files), and some small tools: `sync` (locks
//! that models can check), `schema` (values of the configuration in its JSON schema), [`mistake`] (what is wrong
//! with them), `backoff`, `expiring` (a map whose values expire), `reloaded` (files that are read again when
//! they change), `blocking` (blocking work outside of async tasks), `tls` (certificates) and `time`. `fuzzing`
//! exists in tests and with its feature only: the entry points of the fuzz targets.
//!
//! `tests/layers.rs` enforces these dependencies. It also forbids cycles between files.
//!
//! # Invariants of absence
//!
//! - The pipeline never sees a Kafka, Redis, gRPC or WebAssembly type.
//! - Only the polling thread stores offsets for committing. Settling a record is the last step of its
//!   processing, once all its recipients have an outcome.
//! - No policy does I/O: its decisions are data, carried out in batches.
//! - Only [`wasm`] sees wasmtime and the types generated from `wit/policy.wit`. It never sees a plugin
//!   set, a version or a registry.
//! - Nothing waits for a comet's answer except that comet's task and the messages that were sent to it.
//! - Every task has an owner, every queue a bound, every wait a deadline.

/// A module that the build generates from `proto/`. Lints are for what people write.
macro_rules! generated {
    ($(#[$doc:meta])* $visibility:vis mod $name:ident = $file:literal) => {
        $(#[$doc])*
        #[allow(
            missing_docs,
            unreachable_pub,
            clippy::all,
            clippy::allow_attributes_without_reason,
            clippy::too_many_lines,
            reason = "generated code"
        )]
        $visibility mod $name {
            include!(concat!(env!("OUT_DIR"), $file));
        }
    };
}

pub mod decision;
pub mod digest;
pub mod membership;
pub mod message;
pub mod offsets;
pub mod settings;

pub mod kafka;
pub mod memory_guard;
pub mod redis_client;

pub mod archive;
pub mod artifact;
pub mod comets;
pub mod consumer;
pub mod dead_letter;
pub mod directory;
pub mod guard;
pub mod history;
pub mod inbox;
pub mod redrive_key;
pub mod shared_state;
pub mod wasm;

pub mod policy;

pub mod router;

pub mod pipeline;

pub mod config;

pub mod replay;

pub mod gateway;

mod http_server;

pub mod admin;
pub mod api;
mod backoff;
mod blocking;
pub mod cli;
mod expiring;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod mistake;
pub mod panics;
mod reloaded;
pub mod sandbox;
pub mod schema;
pub mod stalls;
mod sync;
pub mod telemetry;
mod time;
pub mod tls;
