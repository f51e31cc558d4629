//! Settled offsets of one partition: records are settled in any order, offsets are committed
//! in order.
//!
//! Every record that is admitted gets a [`Ticket`]. The watermark is the offset below which
//! everything admitted is settled: the only offset that may be committed. A ticket that is
//! dropped without having been settled keeps its offset, and so everything after it,
//! uncommitted: the record will be delivered again, never lost.
//!
//! Pure: no Kafka, no clock, no task. Admission is bounded by the caller, who asks
//! [`Offsets::unsettled`] first.

mod ledger;
#[cfg(test)]
#[cfg(feature = "models")]
mod model;
#[cfg(test)]
mod tests;

pub use ledger::{Offsets, Ticket, Unsettled};
