//! How items that merge gather: windows of time, and when they end. Pure.

use std::time::{Duration, Instant};

/// How items that merge gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::comets) struct Window {
    /// How long to wait after the start of the previous item.
    pub(in crate::comets) time: Duration,
    /// Windows end at multiples of this, so that those of many keys end together; zero for their exact
    /// ends.
    pub(in crate::comets) grid: Duration,
    /// The maximum number of items, and their maximum size, that are sent together. A full batch does
    /// not wait.
    pub(in crate::comets) items: usize,
    pub(in crate::comets) bytes: usize,
}

impl Window {
    /// When a window that begins now ends.
    pub(super) fn ends_after(&self, now: Instant, began: Instant) -> Instant {
        let end = now + self.time;
        let grid = self.grid.as_nanos();
        let past = (end - began).as_nanos().checked_rem(grid).unwrap_or(0);
        let rest = if past == 0 { 0 } else { grid - past };
        end + Duration::from_nanos(u64::try_from(rest).unwrap_or(0))
    }
}

/// What an item that merges adds to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::comets) struct Weight {
    /// As how many items it counts.
    pub(in crate::comets) items: usize,
    pub(in crate::comets) bytes: usize,
}
