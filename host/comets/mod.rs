//! The fleet of comets: queues each call of the router, keeps the order, makes the call, retries
//! where that helps, and reports the outcome.
//!
//! # Layout
//! - `fleet`: the comets by address. `comet_table`: the known comets, which of them get
//!   BROADCASTs, and eviction. `node_list`: comets that an operator lists, resolved by DNS;
//!   `discovery`: dynamic lists. `names`: server names. `store` and `sharing`: what all gateways
//!   know. `status`: the view of the admin API. `access`: which addresses may be connected to.
//! - `message_run`: the messages of a room that travel together. `call_batch`: the calls of many messages
//!   on their way to the comets.
//! - `comet`: one comet's task. It owns the comet's order queues, breaker and channel.
//!   `stream`: streamed delivery, where the comet serves it.
//!   `queued_call`: a queued call, and the state that a comet's task shares with the fleet.
//! - `order`, `breaker`, `retry`, `capacity`: pure kernels. `hold`: the order of messages that were
//!   given up. `pending`: bytes over all comets.
//!   `shortage`: files and ports that this process lacks.
//! - `wire`: the encoding of calls in each dialect. `body`: what calls share of it. `protobuf`: fields of
//!   messages. `channel`: how calls are made. `coalesced`: many frames in one write. `tls`: who comets have
//!   to be.
//!
//! # Promises
//! - Calls for one room or one connection reach a comet in the order of [`Fleet::send`], one at a
//!   time. Different rooms and connections do not wait for each other.
//! - Every call has its outcome reported: at the latest when it has waited for `delivery_timeout` and
//!   its last attempt has ended, not counting the time behind a message that was given up. This
//!   holds even if a task dies.
//! - Calls that follow a message that was given up wait until its outcome is durable: the
//!   [`OrderHold`] of its outcome is dropped then. Meanwhile they do not expire, and the first one has
//!   an attempt afterwards.
//! - A call whose message was cancelled is not sent any more: its partition was revoked, and another
//!   gateway may have sent later messages already.
//! - A status from a comet's handler is about the message, its room, or one of its connections. Only
//!   those are retried; other calls proceed, and the breaker stays closed.
//! - While a comet's breaker is open, calls to it are [`CallOutcome::Unreachable`] at once.
//!
//! # Back-pressure
//! Each comet has a queue of `queue` messages, or of what it accepts in a tenth of `delivery_timeout` if
//! that is more (`comet::queue_limit`). The queue is limited to a quarter of the bytes that may be pending
//! for all comets together (`max_pending_bytes`). Three rules:
//!
//! 1. *The queue of a comet that keeps up is full:* [`Fleet::send`] waits for room. Reading a
//!    backlog faster than comets accept it is back-pressure, never an outcome.
//! 2. *The comet does not keep up:* its breaker is open, or a message waited `delivery_timeout` for its
//!    first attempt (the comet then counts as slow for as long again). Calls that find its queue
//!    full are unreachable at once. So a comet has to accept `queue` messages in `delivery_timeout`
//!    (100 per second by default), and a slow one blocks others for at most `delivery_timeout` before
//!    it is detected. A smaller queue waits for slower comets; a larger one absorbs longer bursts.
//! 3. *All pending bytes are used:* [`Fleet::payload`] waits. One comet uses a quarter of them at
//!    most, and every pending call has its outcome in bounded time.
//!
//! Content counts once in (3), since calls share it, and once per comet in (1).
//!
//! The fleet does not know what a message means, who its recipients are, or what happens to
//! those that were not reached.

mod access;
mod body;
mod breaker;
mod call_batch;
mod capacity;
mod channel;
mod coalesced;
mod comet;
mod comet_table;
mod config;
mod discovery;
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod grpc;
mod hold;
mod limits;
mod message_run;
mod metrics;
#[cfg(test)]
#[cfg(feature = "models")]
mod model;
mod name_lookup;
mod names;
mod node_list;
mod order;
mod order_key;
mod outcome;
mod pending;
mod probe;
pub mod proto;
mod protobuf;
mod queued_call;
mod recent_warning;
mod request;
mod retry;
mod sharing;
mod shortage;
mod source;
mod state;
mod status;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod trace_metadata;
mod wire;

pub use breaker::BreakerState;
pub use call_batch::CallBatch;
pub use config::{Config, DeliveryMode};
pub use discovery::Config as DiscoveryConfig;
pub use fleet::Fleet;
pub use hold::OrderHold;
pub use message_run::{CallMessage, MessageRun, Run};
pub use metrics::Metrics;
pub use names::ServerNames;
pub use outcome::{CallOutcome, Outcomes, PartialDelivery};
pub use pending::ReservedBytes;
pub use probe::probe;
pub use request::{CallRequest, CallTimeouts};
pub use source::{ChannelMode, Source};
pub use status::{BroadcastReach, CometStatus};
pub use store::{
    CometStore, MemoryCometStore, ReadOnlyCometStore, RedisCometStore, SharedSightings, Sighting, Unavailable,
};
pub use tls::Config as TlsConfig;
pub use wire::{Content, Dialect, Payload};
