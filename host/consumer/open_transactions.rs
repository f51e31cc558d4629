//! Detects partitions that are held by a transaction that does not end. Pure.
//!
//! Records after the first record of an open transaction cannot be read until the transaction ends.
//! A producer that dies holds the partition for its `transaction.timeout.ms`; a hanging transaction
//! holds it forever (KIP-664).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::consumer::partition_key::PartitionKey;
use crate::consumer::stuck_detector::FetchPosition;

/// Transactions of streaming jobs last for seconds; a longer one is reported.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Since when each partition has had the same stable end.
#[derive(Debug, Default)]
pub(super) struct OpenTransactions {
    seen: HashMap<PartitionKey, StableOffset>,
}

#[derive(Clone, Copy, Debug)]
struct StableOffset {
    stable_end: i64,
    since: Instant,
    reported: bool,
}

/// What has changed since the last update.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TransactionChanges {
    /// Partitions that have been held at this offset for long.
    pub(super) held: Vec<(PartitionKey, i64)>,
    /// Partitions that are no longer held.
    pub(super) released: Vec<PartitionKey>,
}

impl OpenTransactions {
    /// Takes the fetch positions of all partitions.
    pub(super) fn update(&mut self, now: Instant, fetched: &[FetchPosition]) -> TransactionChanges {
        let mut changes = TransactionChanges::default();
        let mut seen = HashMap::new();
        for FetchPosition { key, next, end, last } in fetched {
            if next < end || end >= last {
                continue;
            }
            let before = self.seen.remove(key);
            let mut standing = match before {
                Some(standing) if standing.stable_end == *end => standing,
                Some(standing) => StableOffset { stable_end: *end, since: now, reported: standing.reported },
                None => StableOffset { stable_end: *end, since: now, reported: false },
            };
            let long = now - standing.since >= REPORT_AFTER;
            match (standing.reported, long) {
                (_, true) => changes.held.push((key.clone(), *end)),
                (true, false) => changes.released.push(key.clone()),
                (false, false) => {}
            }
            standing.reported = long;
            seen.insert(key.clone(), standing);
        }
        let gone = std::mem::replace(&mut self.seen, seen);
        changes
            .released
            .extend(gone.into_iter().filter(|(_, standing)| standing.reported).map(|(key, _)| key));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(next: i64, end: i64, last: i64) -> Vec<FetchPosition> {
        vec![FetchPosition { key: ("push".into(), 0), next, end, last }]
    }

    #[test]
    fn an_open_transaction_is_reported_until_it_ends() {
        let start = Instant::now();
        let mut open = OpenTransactions::default();
        let none = TransactionChanges::default();
        let held = TransactionChanges { held: vec![(("push".into(), 0), 7)], released: vec![] };
        let released = TransactionChanges { held: vec![], released: vec![("push".into(), 0)] };
        assert_eq!(open.update(start, &at(7, 7, 9)), none, "it has just begun");
        assert_eq!(open.update(start + REPORT_AFTER, &at(7, 7, 30)), held);
        assert_eq!(open.update(start + 2 * REPORT_AFTER, &at(7, 7, 30)), held);
        assert_eq!(open.update(start + 2 * REPORT_AFTER, &at(9, 9, 30)), released, "the next one is young");
        assert_eq!(open.update(start + 3 * REPORT_AFTER, &at(9, 9, 30)).held.len(), 1);
        assert_eq!(open.update(start + 3 * REPORT_AFTER, &at(30, 30, 30)), released);
        assert_eq!(open.update(start + 4 * REPORT_AFTER, &at(30, 30, 30)), none);
    }

    #[test]
    fn readable_partitions_are_not_held() {
        let start = Instant::now();
        let mut open = OpenTransactions::default();
        for later in [start, start + REPORT_AFTER, start + 2 * REPORT_AFTER] {
            assert_eq!(open.update(later, &at(3, 7, 9)), TransactionChanges::default(), "still reading");
            assert_eq!(open.update(later, &at(7, 7, 7)), TransactionChanges::default(), "at the end");
        }
    }

    #[test]
    fn a_revoked_partition_is_released() {
        let start = Instant::now();
        let mut open = OpenTransactions::default();
        open.update(start, &at(7, 7, 9));
        open.update(start + REPORT_AFTER, &at(7, 7, 9));
        assert_eq!(open.update(start + REPORT_AFTER, &[]).released.len(), 1);
    }
}
