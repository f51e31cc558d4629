//! What is written to a letter's topic of origin. Pure.

use crate::dead_letter::{DeadLetter, ORIGIN_TIMESTAMP};
use crate::kafka::Outgoing;
use crate::message::Header;

/// The letter as the record that it was, for a topic with so many partitions.
pub(super) fn back(letter: &DeadLetter, partitions: i32) -> Outgoing<'_> {
    let origin = letter.origin.as_ref().map(|origin| origin.partition);
    Outgoing {
        key: letter.record.key.as_deref(),
        value: letter.record.value.as_deref(),
        timestamp_ms: letter.record.timestamp_ms,
        headers: letter.restored_headers(),
        // Where it was: producers of other languages spread keys differently.
        partition: origin.filter(|partition| (0..partitions).contains(partition)),
    }
}

/// The same with the time of now, and its own in a header.
pub(super) fn back_without_time(letter: &DeadLetter, partitions: i32) -> Outgoing<'_> {
    let mut record = back(letter, partitions);
    if let Some(time) = record.timestamp_ms.take() {
        record.headers.push(Header::new(ORIGIN_TIMESTAMP, time.to_string()));
    }
    record
}
