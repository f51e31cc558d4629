//! Detects partitions that are held by a transaction that does not end. Pure.
//!
//! Records after the first record of an open transaction cannot be read until the transaction ends.
//! A producer that dies holds the partition for its `transaction.timeout.ms`; a hanging transaction
//! holds it forever (KIP-664).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::consumer::partitions::Key;
use crate::consumer::unreadable::Fetched;

/// Transactions of streaming jobs last for seconds; a longer one is reported.
const LONG: Duration = Duration::from_secs(10);

/// Since when each partition has had the same stable end.
#[derive(Debug, Default)]
pub(super) struct OpenTransactions {
    seen: HashMap<Key, Standing>,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    stable_end: i64,
    since: Instant,
    reported: bool,
}

/// What has changed since the last update.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Partitions that have been held at this offset for long.
    pub(super) held: Vec<(Key, i64)>,
    /// Partitions that are no longer held.
    pub(super) released: Vec<Key>,
}

impl OpenTransactions {
    /// Takes the fetch positions of all partitions.
    pub(super) fn look(&mut self, now: Instant, fetched: &[Fetched]) -> Changes {
        let mut changes = Changes::default();
        let mut seen = HashMap::new();
        for Fetched { key, next, end, last } in fetched {
            if next < end || end >= last {
                continue;
            }
            let before = self.seen.remove(key);
            let mut standing = match before {
                Some(standing) if standing.stable_end == *end => standing,
                Some(standing) => Standing { stable_end: *end, since: now, reported: standing.reported },
                None => Standing { stable_end: *end, since: now, reported: false },
            };
            let long = now - standing.since >= LONG;
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

    fn at(next: i64, end: i64, last: i64) -> Vec<Fetched> {
        vec![Fetched { key: ("push".into(), 0), next, end, last }]
    }

    #[test]
    fn an_open_transaction_is_reported_until_it_ends() {
        let start = Instant::now();
        let mut open = OpenTransactions::default();
        let none = Changes::default();
        let held = Changes { held: vec![(("push".into(), 0), 7)], released: vec![] };
        let released = Changes { held: vec![], released: vec![("push".into(), 0)] };
        assert_eq!(open.look(start, &at(7, 7, 9)), none, "it has just begun");
        assert_eq!(open.look(start + LONG, &at(7, 7, 30)), held);
        assert_eq!(open.look(start + 2 * LONG, &at(7, 7, 30)), held);
        assert_eq!(open.look(start + 2 * LONG, &at(9, 9, 30)), released, "the next one is young");
        assert_eq!(open.look(start + 3 * LONG, &at(9, 9, 30)).held.len(), 1);
        assert_eq!(open.look(start + 3 * LONG, &at(30, 30, 30)), released);
        assert_eq!(open.look(start + 4 * LONG, &at(30, 30, 30)), none);
    }

    #[test]
    fn readable_partitions_are_not_held() {
        let start = Instant::now();
        let mut open = OpenTransactions::default();
        for later in [start, start + LONG, start + 2 * LONG] {
            assert_eq!(open.look(later, &at(3, 7, 9)), Changes::default(), "still reading");
            assert_eq!(open.look(later, &at(7, 7, 7)), Changes::default(), "at the end");
        }
    }

    #[test]
    fn a_revoked_partition_is_released() {
        let start = Instant::now();
        let mut open = OpenTransactions::default();
        open.look(start, &at(7, 7, 9));
        open.look(start + LONG, &at(7, 7, 9));
        assert_eq!(open.look(start + LONG, &[]).released.len(), 1);
    }
}
