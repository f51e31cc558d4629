//! Halley: a routing gateway for push systems in the style of goim.
//!
//! *Logic* services write `PushMsg` records to Kafka; *comets* hold the users' connections. Halley
//! sits in between: it looks up where recipients are connected, and delivers every message.
//! **Policies** decide what is delivered, to whom, and what happens for absent users: WebAssembly
//! components that are swapped at run time.
//!
//! This page is the architecture. `README.md` is for operators, `plugins/README.md` for authors of
//! policies.
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
//!   │ resolve ─── Redis, plugins │   directory    room or keys -> connections (cached)
//!   │ route                      │   router       connections -> at most one call per comet
//!   └─────────────┬──────────────┘
//!                 ▼ calls, in order  comets       lanes, retries, breaker, dialects
//!   ┌─ a delivery task ──────────┐   pipeline     one task per message
//!   │ call outcomes              │
//!   │ absent users ─ plugins     │   offline      inbox, notify topic
//!   │ dead letter                │   dead_letter
//!   │ settle ────────────────────┼─▶ offsets      watermark -> commit
//!   └────────────────────────────┘
//! ```
//!
//! # Layers
//!
//! - [`message`], [`membership`], [`decision`], [`offsets`], `digest`: plain data and pure rules. They
//!   know nobody above them.
//! - [`kafka`], [`redis_client`]: what the clients of each share. [`memory_guard`]: whether the process has
//!   room for more.
//! - [`consumer`], [`wasm`], [`artifact`], [`shared_state`], [`directory`], [`guard`], [`comets`],
//!   [`offline`], [`dead_letter`], [`redrive_key`]: neighbours. They know the plain data and not each other.
//! - [`policy`]: which plugins are active. It knows [`wasm`], which runs them, and [`artifact`], which
//!   fetches, checks and keeps their files.
//! - [`router`]: pure; from a resolved route to the calls of one message.
//! - [`pipeline`]: knows the neighbours and brings messages through them.
//! - [`config`]: the whole configuration, made of the modules' own.
//! - [`gateway`]: builds every part from it and owns every task; the order of start and stop.
//! - [`admin`], [`cli`]: around the gateway. [`sandbox`]: what the process gives up at its
//!   start. [`telemetry`], [`panics`], `files` (the only one that opens files) and [`stalls`] (what is
//!   being retried, and the records that it holds): known to all, as are small tools: `sync` (locks that
//!   models can run), `backoff`, `expiring` (a map whose values run out), `blocking` (work that blocks)
//!   and `time` (as people and records write it). `fuzzing`, in tests and with its
//!   feature only: what fuzzers call.
//!
//! `tests/layers.rs` holds this plan. No two files know each other in a circle, either.
//!
//! # Invariants of absence
//!
//! - The pipeline never sees a Kafka, Redis, gRPC or WebAssembly type.
//! - Nothing stores an offset for committing but the polling thread, and nothing settles a record but its
//!   journey, at its very end.
//! - No policy does I/O: its decisions are data, carried out in batches.
//! - Only [`wasm`] sees wasmtime and the types made from `wit/policy.wit`; it never sees a set of plugins,
//!   a version or a registry.
//! - No part waits for a comet but the comet's own lanes and the journeys of the messages
//!   that go there.
//! - No task is without an owner, no queue without a bound, no wait without a deadline.

pub mod decision;
mod digest;
pub mod membership;
pub mod message;
pub mod offsets;

pub mod kafka;
pub mod memory_guard;
pub mod redis_client;

pub mod artifact;
pub mod comets;
pub mod consumer;
pub mod dead_letter;
pub mod directory;
pub mod guard;
pub mod offline;
pub mod redrive_key;
pub mod shared_state;
pub mod wasm;

pub mod policy;

pub mod router;

pub mod pipeline;

pub mod config;

pub mod gateway;

pub mod admin;
mod backoff;
mod blocking;
pub mod cli;
mod expiring;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod panics;
pub mod sandbox;
pub mod stalls;
mod sync;
pub mod telemetry;
mod time;
