//! Settled offsets of one partition: records are settled in any order, offsets are committed
//! in order.
//!
//! Every admitted record gets an [`AckHandle`]. The watermark is the offset below which every admitted
//! record is settled: the only offset that may be committed. A handle that is dropped without
//! being settled keeps its offset, and all later ones, uncommitted: the record is delivered again,
//! never lost.
//!
//! Pure: no Kafka, no clock, no task. Admission is bounded by the caller, who asks
//! [`OffsetTracker::unsettled`] first.

#[cfg(test)]
#[cfg(feature = "models")]
mod model;
#[cfg(test)]
mod tests;
mod tracker;

pub use tracker::{AckHandle, OffsetTracker, UnsettledCount};
