//! Detects partitions that are stuck at a batch that librdkafka cannot read. Pure.
//!
//! librdkafka retries such a batch forever: one that decompresses to more than
//! `receive.message.max.bytes` (librdkafka issue 5260), has an unknown codec or format, or is
//! corrupt. Its errors name the batch's first offset and no partition, so this matches them with
//! the partitions that make no progress although there is more to read.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::consumer::partition_key::PartitionKey;
use crate::kafka;

/// How long an error may explain a stuck partition; librdkafka retries twice a second.
const RECENT: Duration = Duration::from_secs(5);
/// How long a partition has to make no progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How many errors are remembered: in a bad case, one per partition.
const ERRORS: usize = 64;

/// How far librdkafka has read a partition.
#[derive(Clone, Debug)]
pub(super) struct FetchPosition {
    pub(super) key: PartitionKey,
    /// The offset that it reads next.
    pub(super) next: i64,
    /// The offset after the last readable record; beyond it, a transaction may be open.
    pub(super) end: i64,
    /// The offset after the last record.
    pub(super) last: i64,
}

/// A partition that makes no progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StuckPartition {
    pub(super) key: PartitionKey,
    pub(super) offset: i64,
    pub(super) reason: String,
}

/// Matches fetch errors with partitions that make no progress.
#[derive(Debug, Default)]
pub(super) struct StuckDetector {
    errors: VecDeque<FetchError>,
    seen: HashMap<PartitionKey, (i64, Instant)>,
}

#[derive(Debug)]
struct FetchError {
    at: Instant,
    offset: Option<i64>,
    reason: String,
}

impl StuckDetector {
    /// Records an error of librdkafka. Returns whether it is about an unreadable batch.
    pub(super) fn note(&mut self, now: Instant, code: RDKafkaErrorCode, reason: &str) -> bool {
        let about_a_batch = kafka::is_unreadable(code);
        if about_a_batch {
            let offset = offset_in(reason);
            self.errors.retain(|error| error.offset != offset && now - error.at < RECENT);
            self.errors.truncate(ERRORS - 1);
            self.errors.push_front(FetchError { at: now, offset, reason: reason.to_owned() });
        }
        about_a_batch
    }

    /// The partitions of `fetched` that are stuck because of such an error.
    pub(super) fn stuck(&mut self, now: Instant, fetched: &[FetchPosition]) -> Vec<StuckPartition> {
        let mut seen = HashMap::with_capacity(fetched.len());
        let mut still = Vec::new();
        for FetchPosition { key, next, end, .. } in fetched {
            let since = match self.seen.get(key) {
                Some((before, since)) if before == next => *since,
                _ => now,
            };
            seen.insert(key.clone(), (*next, since));
            if next < end && now - since >= STALL_TIMEOUT {
                still.push((key, *next));
            }
        }
        self.seen = seen;
        self.errors.retain(|error| now - error.at < RECENT);
        if self.errors.is_empty() {
            return Vec::new();
        }
        // A batch may begin before the next offset; its error is then less exact.
        let exact = |next: i64| self.errors.iter().find(|error| error.offset == Some(next));
        let any_exact = still.iter().any(|(_, next)| exact(*next).is_some());
        let before =
            |next: i64| self.errors.iter().find(|error| error.offset.is_none_or(|offset| offset < next));
        let reason = |next| exact(next).or_else(|| before(next).filter(|_| !any_exact));
        let found = still.into_iter().filter_map(|(key, offset)| {
            let reason = reason(offset)?.reason.clone();
            Some(StuckPartition { key: key.clone(), offset, reason })
        });
        found.collect()
    }
}

/// `Decompression (codec 0x4) of message at 17 of 2786 bytes failed`, `Message at offset 17 might
/// be too large to fetch`.
fn offset_in(reason: &str) -> Option<i64> {
    let (_, rest) = reason.split_once(" at ")?;
    let rest = rest.strip_prefix("offset ").unwrap_or(rest);
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ZSTD: &str =
        "Decompression (codec 0x4) of message at 17 of 2786 bytes failed: Local: Invalid compressed data";

    fn fetched(partition: i32, next: i64, end: i64) -> FetchPosition {
        FetchPosition { key: ("push".into(), partition), next, end, last: end }
    }

    fn partitions(stuck: Vec<StuckPartition>) -> Vec<(i32, i64)> {
        stuck.into_iter().map(|stuck| (stuck.key.1, stuck.offset)).collect()
    }

    #[test]
    fn the_offset_is_parsed_from_the_error() {
        assert_eq!(offset_in(ZSTD), Some(17));
        assert_eq!(offset_in("Message at offset 5 might be too large to fetch, try"), Some(5));
        assert_eq!(offset_in("no offset at all"), None);
    }

    #[test]
    fn an_error_belongs_to_the_partition_stuck_there() {
        let start = Instant::now();
        let mut stuck_detector = StuckDetector::default();
        let all = [fetched(0, 17, 20), fetched(1, 17, 17), fetched(2, 40, 90), fetched(3, 17, 99)];
        assert_eq!(stuck_detector.stuck(start, &all), []);
        let later = start + 3 * SECOND;
        assert!(stuck_detector.note(later, RDKafkaErrorCode::BadCompression, ZSTD));
        assert!(!stuck_detector.note(later, RDKafkaErrorCode::BrokerTransportFailure, "gone at 40"));
        let moved = [fetched(0, 17, 20), fetched(1, 17, 17), fetched(2, 40, 90), fetched(3, 50, 99)];
        let stuck = stuck_detector.stuck(later, &moved);
        assert_eq!(stuck[0].reason, ZSTD);
        assert_eq!(partitions(stuck), [(0, 17)], "not those without more to read, and not those that move");
        assert_eq!(stuck_detector.stuck(later + 2 * RECENT, &moved), [], "the error has not come again");
    }

    #[test]
    fn an_error_may_name_the_start_of_the_batch() {
        let start = Instant::now();
        let mut stuck_detector = StuckDetector::default();
        let inside = [fetched(0, 19, 30)];
        stuck_detector.stuck(start, &inside);
        stuck_detector.note(start + 3 * SECOND, RDKafkaErrorCode::BadCompression, ZSTD);
        assert_eq!(partitions(stuck_detector.stuck(start + 3 * SECOND, &inside)), [(0, 19)]);
    }
}
