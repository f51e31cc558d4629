//! The offset tracker of one partition, and the handles that settle its records.
//!
//! `model` runs it under many interleavings: its locks come from [`crate::sync`].

use std::collections::VecDeque;

use crate::sync::{Arc, Mutex};

/// How much of a partition is admitted and not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnsettledCount {
    /// Records.
    pub records: usize,
    /// Bytes of their content.
    pub bytes: usize,
}

/// The offsets of one partition during one assignment. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct OffsetTracker {
    tracker: Arc<Mutex<TrackerState>>,
}

impl OffsetTracker {
    /// Admits a record of this many bytes, written at `timestamp_ms` as far as Kafka knows.
    ///
    /// Offsets ascend, with gaps (compaction, transactions). An offset that is not above the last
    /// admitted one gets a handle without effect: a tracker belongs to one reading of one log.
    pub fn admit(&self, offset: i64, bytes: usize, timestamp_ms: Option<i64>) -> AckHandle {
        let counts = self.tracker.lock().admit(TrackedOffset { offset, bytes, timestamp_ms, settled: false });
        AckHandle { offset, counts, tracker: Arc::clone(&self.tracker) }
    }

    /// Every record below this offset was admitted. If all admitted records are settled, the
    /// watermark moves there.
    pub fn skip_to(&self, offset: i64) {
        self.tracker.lock().skip_to(offset);
    }

    /// The next offset to read after a restart: everything admitted below it is settled.
    /// `None` until the first record is settled at the front.
    pub fn watermark(&self) -> Option<i64> {
        self.tracker.lock().watermark
    }

    /// The records that are admitted and not settled.
    pub fn unsettled(&self) -> UnsettledCount {
        self.tracker.lock().unsettled
    }

    /// When the first unsettled record was written; `None` without one, or if Kafka does not know.
    pub fn first_timestamp_ms(&self) -> Option<i64> {
        self.tracker.lock().slots.front()?.timestamp_ms
    }

    /// The number of records from the oldest unsettled one on, including settled ones. These would
    /// be delivered again after a crash, and take memory here.
    pub fn window(&self) -> usize {
        self.tracker.lock().slots.len()
    }

    /// [`OffsetTracker::unsettled`] and [`OffsetTracker::window`], with one lock.
    pub fn usage(&self) -> (UnsettledCount, usize) {
        let state = self.tracker.lock();
        (state.unsettled, state.slots.len())
    }
}

/// The handle of one admitted record. Settle it once the record has an outcome; dropping it does not settle.
#[derive(Debug)]
#[must_use = "a dropped handle keeps its offset uncommitted"]
pub struct AckHandle {
    offset: i64,
    counts: bool,
    tracker: Arc<Mutex<TrackerState>>,
}

impl AckHandle {
    /// The record has its outcome: its offset may be committed once all before it may.
    pub fn settle(self) {
        if self.counts {
            self.tracker.lock().settle(self.offset);
        }
    }

    /// Settles many records, with one lock for consecutive ones of a partition.
    pub fn settle_all(handles: impl IntoIterator<Item = Self>) {
        let mut handles = handles.into_iter().filter(|handle| handle.counts).peekable();
        while let Some(first) = handles.next() {
            let mut state = first.tracker.lock();
            state.settle(first.offset);
            while let Some(next) = handles.next_if(|next| Arc::ptr_eq(&next.tracker, &first.tracker)) {
                state.settle(next.offset);
            }
        }
    }
}

/// Admitted records from the oldest unsettled one on.
#[derive(Debug, Default)]
struct TrackerState {
    slots: VecDeque<TrackedOffset>,
    last_admitted: Option<i64>,
    watermark: Option<i64>,
    unsettled: UnsettledCount,
}

#[derive(Debug)]
struct TrackedOffset {
    offset: i64,
    bytes: usize,
    timestamp_ms: Option<i64>,
    settled: bool,
}

impl TrackerState {
    /// Returns whether the record counts.
    fn admit(&mut self, record: TrackedOffset) -> bool {
        if self.last_admitted.is_some_and(|last| record.offset <= last) {
            return false;
        }
        self.last_admitted = Some(record.offset);
        self.unsettled.records += 1;
        self.unsettled.bytes += record.bytes;
        self.slots.push_back(record);
        true
    }

    fn skip_to(&mut self, offset: i64) {
        let goes_on = self.last_admitted.is_none_or(|last| offset > last + 1);
        if goes_on && self.slots.is_empty() {
            self.last_admitted = Some(offset - 1);
            self.watermark = Some(offset);
        }
    }

    fn index(&self, offset: i64) -> Option<usize> {
        // Usually no offset is missing in between.
        let guess = offset.checked_sub(self.slots.front()?.offset).and_then(|at| usize::try_from(at).ok())?;
        if self.slots.get(guess).is_some_and(|slot| slot.offset == offset) {
            return Some(guess);
        }
        self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()
    }

    fn settle(&mut self, offset: i64) {
        let Some(at) = self.index(offset) else { return };
        let slot = &mut self.slots[at];
        if slot.settled {
            return;
        }
        slot.settled = true;
        self.unsettled.records -= 1;
        self.unsettled.bytes -= slot.bytes;
        while let Some(front) = self.slots.pop_front_if(|slot| slot.settled) {
            // Committed offsets name the next record to read, not the last one read.
            self.watermark = Some(front.offset + 1);
        }
    }
}
