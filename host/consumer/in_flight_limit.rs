//! Limits on what one partition may have in flight, in records and in bytes.

use crate::offsets::OffsetTracker;

/// See [`InFlightLimit::held`].
const HELD: usize = 8 << 20;

/// What one partition may have in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InFlightLimit {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl InFlightLimit {
    /// Nothing is admitted.
    pub(crate) const NOTHING: Self = Self { records: 0, bytes: 0 };
    /// What is admitted at a time while memory is short: one record, or a few small ones.
    pub(crate) const LITTLE: Self = Self { records: 32, bytes: 64 * 1024 };

    /// The share of one of `partitions` partitions. Shares are equal, so a stalled partition
    /// cannot use up what the others need.
    pub(crate) fn share(self, partitions: usize) -> Self {
        let parts = partitions.max(1);
        Self { records: (self.records / parts).max(1), bytes: (self.bytes / parts).max(1) }
    }

    pub(super) fn is_reached(self, offsets: &OffsetTracker) -> bool {
        let (unsettled, window) = offsets.usage();
        let full = unsettled.records >= self.records || unsettled.bytes >= self.bytes;
        full || window >= self.window()
    }

    /// How many bytes of records may wait in the partition's buffer: several times what Kafka sends
    /// for one partition in a fetch (`max.partition.fetch.bytes`, 1 MiB). Nothing while memory is
    /// short.
    pub(super) fn held(self) -> usize {
        if self == Self::NOTHING || self == Self::LITTLE { 0 } else { self.bytes.min(HELD) }
    }

    /// How many settled records may wait behind an unsettled one. This bounds the tracker's memory
    /// and what is delivered again after a crash.
    pub(super) fn window(self) -> usize {
        self.records.saturating_mul(16)
    }
}
