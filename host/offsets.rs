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

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// How much of a partition is admitted and not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// Records.
    pub records: usize,
    /// Bytes of their content.
    pub bytes: usize,
}

/// The offsets of one partition during one assignment. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Offsets {
    ledger: Arc<Mutex<Ledger>>,
}

impl Offsets {
    /// Admits a record of this many bytes.
    ///
    /// Offsets come in growing order, with gaps (compaction, transactions). While records are
    /// unsettled, one that is not above the last admitted gets a ticket that counts for
    /// nothing: Kafka handed it out twice. When all are settled, the partition begins anew
    /// there: its topic was made anew, or the offset was set back.
    pub fn admit(&self, offset: i64, bytes: usize) -> Ticket {
        let counts = lock(&self.ledger).admit(offset, bytes);
        Ticket { offset, counts, ledger: Arc::clone(&self.ledger) }
    }

    /// The next offset to read after a restart: everything admitted below it is settled.
    /// `None` until the first record is settled at the front.
    pub fn watermark(&self) -> Option<i64> {
        lock(&self.ledger).watermark
    }

    /// What is admitted and not settled.
    pub fn unsettled(&self) -> Unsettled {
        lock(&self.ledger).unsettled
    }

    /// Records from the oldest unsettled one on, settled ones among them: what would be
    /// delivered again after a crash, and what this ledger takes in memory.
    pub fn span(&self) -> usize {
        lock(&self.ledger).slots.len()
    }
}

/// One admitted record. Settle it once it has its outcome; dropping it means "not settled".
#[derive(Debug)]
#[must_use = "a ticket that is dropped keeps its offset uncommitted"]
pub struct Ticket {
    offset: i64,
    counts: bool,
    ledger: Arc<Mutex<Ledger>>,
}

impl Ticket {
    /// The record has its outcome: its offset may be committed once all before it may.
    pub fn settle(self) {
        if self.counts {
            lock(&self.ledger).settle(self.offset);
        }
    }
}

/// Admitted records from the oldest unsettled one on.
#[derive(Debug, Default)]
struct Ledger {
    slots: VecDeque<Slot>,
    last_admitted: Option<i64>,
    watermark: Option<i64>,
    unsettled: Unsettled,
}

#[derive(Debug)]
struct Slot {
    offset: i64,
    bytes: usize,
    settled: bool,
}

impl Ledger {
    /// Returns whether the record counts.
    fn admit(&mut self, offset: i64, bytes: usize) -> bool {
        let goes_back = self.last_admitted.is_some_and(|last| offset <= last);
        if goes_back && !self.slots.is_empty() {
            return false;
        }
        self.last_admitted = Some(offset);
        self.slots.push_back(Slot { offset, bytes, settled: false });
        self.unsettled.records += 1;
        self.unsettled.bytes += bytes;
        true
    }

    fn settle(&mut self, offset: i64) {
        let Ok(at) = self.slots.binary_search_by_key(&offset, |slot| slot.offset) else { return };
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

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_watermark_waits_for_the_oldest_record() {
        let offsets = Offsets::default();
        let [a, b, c] = [10, 11, 14].map(|offset| offsets.admit(offset, 100));
        assert_eq!(offsets.watermark(), None);
        b.settle();
        assert_eq!(offsets.watermark(), None);
        a.settle();
        assert_eq!(offsets.watermark(), Some(12));
        assert_eq!(offsets.unsettled(), Unsettled { records: 1, bytes: 100 });
        c.settle();
        assert_eq!(offsets.watermark(), Some(15));
        assert_eq!(offsets.unsettled(), Unsettled::default());
    }

    #[test]
    fn a_dropped_ticket_holds_the_watermark_for_good() {
        let offsets = Offsets::default();
        let [a, b, c] = [0, 1, 2].map(|offset| offsets.admit(offset, 1));
        a.settle();
        drop(b);
        c.settle();
        assert_eq!(offsets.watermark(), Some(1));
        assert_eq!(offsets.unsettled().records, 1);
    }

    #[test]
    fn a_record_that_comes_twice_counts_once() {
        let offsets = Offsets::default();
        let first = offsets.admit(5, 10);
        let again = offsets.admit(5, 10);
        assert_eq!(offsets.unsettled(), Unsettled { records: 1, bytes: 10 });
        again.settle();
        assert_eq!(offsets.watermark(), None, "the first one has no outcome yet");
        first.settle();
        assert_eq!(offsets.watermark(), Some(6));
        assert_eq!(offsets.unsettled(), Unsettled::default());
    }

    #[test]
    fn a_partition_that_was_set_back_begins_anew() {
        let offsets = Offsets::default();
        offsets.admit(500, 1).settle();
        let anew = offsets.admit(0, 1);
        assert_eq!(offsets.unsettled().records, 1, "it counts, and is bounded");
        anew.settle();
        assert_eq!(offsets.watermark(), Some(1));
    }

    proptest! {
        /// Against the plain model: the watermark is one past the last of the longest settled
        /// run at the front, whatever the order, the gaps and the tickets that are lost.
        #[test]
        fn it_agrees_with_the_model(
            gaps in proptest::collection::vec(1i64..4, 1..60),
            fates in proptest::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.9)), 0..60),
        ) {
            let offsets = Offsets::default();
            let mut offset = 0;
            let mut admitted = Vec::new();
            for gap in gaps {
                offset += gap;
                admitted.push((offset, Some(offsets.admit(offset, 7)), false));
            }
            let count = admitted.len();
            for (which, settle) in fates {
                let (_, ticket, settled) = &mut admitted[which.index(count)];
                match ticket.take() {
                    Some(ticket) if settle => { ticket.settle(); *settled = true; }
                    lost => drop(lost),
                }
                let run = admitted.iter().take_while(|(_, _, settled)| *settled).last();
                prop_assert_eq!(offsets.watermark(), run.map(|(offset, _, _)| offset + 1));
                let open = admitted.iter().filter(|(_, _, settled)| !settled).count();
                prop_assert_eq!(offsets.unsettled(), Unsettled { records: open, bytes: 7 * open });
            }
        }
    }
}
