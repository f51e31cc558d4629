//! Partitions that stand still because librdkafka cannot read what comes next. Pure.
//!
//! librdkafka tries such a batch again for ever: one that unpacks to more than
//! `receive.message.max.bytes` (librdkafka issue 5260), one with a codec or a format that it does
//! not know, a broken one. Its errors name the batch's first offset and no partition, so that
//! they are brought together with the partitions that stand still although there is more to read.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::consumer::partitions::Key;
use crate::kafka;

/// For how long an error may be the reason of a standstill; librdkafka tries twice a second.
const RECENT: Duration = Duration::from_secs(5);
/// How long a partition has to stand still.
const STANDSTILL: Duration = Duration::from_secs(2);
/// How many errors are remembered: one for each partition, in a bad case.
const ERRORS: usize = 64;

/// How far librdkafka has read a partition.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) key: Key,
    /// The offset that it reads next.
    pub(super) next: i64,
    /// The offset after the last one that there is to read: behind it, a transaction is open.
    pub(super) end: i64,
    /// The offset after the last one that there is.
    pub(super) last: i64,
}

/// A partition that stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) key: Key,
    pub(super) offset: i64,
    pub(super) reason: String,
}

/// Brings errors and standstills together.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    errors: VecDeque<FetchError>,
    seen: HashMap<Key, (i64, Instant)>,
}

#[derive(Debug)]
struct FetchError {
    at: Instant,
    offset: Option<i64>,
    reason: String,
}

impl Unreadable {
    /// librdkafka reports an error. Returns whether it is about a batch that it cannot read.
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

    /// The partitions that stand still because of such an error, of all that are read.
    pub(super) fn stuck(&mut self, now: Instant, fetched: &[Fetched]) -> Vec<Stuck> {
        let mut seen = HashMap::with_capacity(fetched.len());
        let mut still = Vec::new();
        for Fetched { key, next, end, .. } in fetched {
            let since = match self.seen.get(key) {
                Some((before, since)) if before == next => *since,
                _ => now,
            };
            seen.insert(key.clone(), (*next, since));
            if next < end && now - since >= STANDSTILL {
                still.push((key, *next));
            }
        }
        self.seen = seen;
        self.errors.retain(|error| now - error.at < RECENT);
        if self.errors.is_empty() {
            return Vec::new();
        }
        // A batch may begin before the offset that is read next: then its error says less.
        let exact = |next: i64| self.errors.iter().find(|error| error.offset == Some(next));
        let any_exact = still.iter().any(|(_, next)| exact(*next).is_some());
        let before =
            |next: i64| self.errors.iter().find(|error| error.offset.is_none_or(|offset| offset < next));
        let reason = |next| exact(next).or_else(|| before(next).filter(|_| !any_exact));
        let found = still.into_iter().filter_map(|(key, offset)| {
            let reason = reason(offset)?.reason.clone();
            Some(Stuck { key: key.clone(), offset, reason })
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

    fn fetched(partition: i32, next: i64, end: i64) -> Fetched {
        Fetched { key: ("push".into(), partition), next, end, last: end }
    }

    fn partitions(stuck: Vec<Stuck>) -> Vec<(i32, i64)> {
        stuck.into_iter().map(|stuck| (stuck.key.1, stuck.offset)).collect()
    }

    #[test]
    fn offsets_are_found_in_what_librdkafka_says() {
        assert_eq!(offset_in(ZSTD), Some(17));
        assert_eq!(offset_in("Message at offset 5 might be too large to fetch, try"), Some(5));
        assert_eq!(offset_in("no offset at all"), None);
    }

    #[test]
    fn the_partition_of_an_error_is_the_one_that_stands_still_there() {
        let start = Instant::now();
        let mut unreadable = Unreadable::default();
        let all = [fetched(0, 17, 20), fetched(1, 17, 17), fetched(2, 40, 90), fetched(3, 17, 99)];
        assert_eq!(unreadable.stuck(start, &all), []);
        let later = start + 3 * SECOND;
        assert!(unreadable.note(later, RDKafkaErrorCode::BadCompression, ZSTD));
        assert!(!unreadable.note(later, RDKafkaErrorCode::BrokerTransportFailure, "gone at 40"));
        let moved = [fetched(0, 17, 20), fetched(1, 17, 17), fetched(2, 40, 90), fetched(3, 50, 99)];
        let stuck = unreadable.stuck(later, &moved);
        assert_eq!(stuck[0].reason, ZSTD);
        assert_eq!(partitions(stuck), [(0, 17)], "not those without more to read, and not those that move");
        assert_eq!(unreadable.stuck(later + 2 * RECENT, &moved), [], "the error has not come again");
    }

    #[test]
    fn an_error_may_name_the_batch_s_beginning() {
        let start = Instant::now();
        let mut unreadable = Unreadable::default();
        let inside = [fetched(0, 19, 30)];
        unreadable.stuck(start, &inside);
        unreadable.note(start + 3 * SECOND, RDKafkaErrorCode::BadCompression, ZSTD);
        assert_eq!(partitions(unreadable.stuck(start + 3 * SECOND, &inside)), [(0, 19)]);
    }
}
