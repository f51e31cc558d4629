//! How much of one partition may be in flight: in records, and in bytes.

use crate::offsets::Offsets;

/// How much of one partition may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Limit {
    /// Nothing is admitted.
    pub(crate) const NOTHING: Self = Self { records: 0, bytes: 0 };
    /// What is admitted at a time while memory is short: one record, and others when they are small.
    pub(crate) const LITTLE: Self = Self { records: 32, bytes: 64 * 1024 };

    /// The share of one of `partitions` partitions. Equal shares, so that a partition that
    /// stands still cannot use up what the others need.
    pub(crate) fn share(self, partitions: usize) -> Self {
        let parts = partitions.max(1);
        Self { records: (self.records / parts).max(1), bytes: (self.bytes / parts).max(1) }
    }

    pub(super) fn is_reached(self, offsets: &Offsets) -> bool {
        let unsettled = offsets.unsettled();
        let full = unsettled.records >= self.records || unsettled.bytes >= self.bytes;
        full || offsets.span() >= self.span()
    }

    /// Pausing throws away what librdkafka has fetched ahead, so a partition resumes only
    /// once half of its share is free again.
    pub(super) fn has_room_again(self, offsets: &Offsets) -> bool {
        let unsettled = offsets.unsettled();
        let half_free = unsettled.records <= self.records / 2 && unsettled.bytes <= self.bytes / 2;
        half_free && offsets.span() <= self.span() / 2
    }

    /// How many settled records may wait behind one that is not: it bounds the ledger, and
    /// what is delivered again after a crash.
    pub(super) fn span(self) -> usize {
        self.records.saturating_mul(16)
    }
}
