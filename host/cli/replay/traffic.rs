//! Turns records into batches of messages, as a gateway would have seen them.

use std::sync::Arc;

use crate::cli::replay::range::TimeRange;
use crate::dead_letter::DeadLetter;
use crate::message::{Message, MessageId, Record};

/// What records turn into.
pub(super) enum ReplayItem {
    /// Messages of one partition, in order.
    Batch(Vec<Message>),
    /// A record that no policy sees.
    LeftOut(SkippedRecord),
}

/// Why no policy sees a record, as its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum SkippedRecord {
    #[error("dead letters whose value was omitted")]
    NoValue,
    #[error("not messages (a gateway dead-letters them)")]
    NotAMessage,
}

/// Selects records and limits the size of batches.
pub(super) struct Traffic {
    pub(super) range: TimeRange,
    pub(super) max_batch: usize,
}

impl Traffic {
    /// The messages of these records, which are of one partition.
    pub(super) fn items(&self, records: Vec<Record>) -> Vec<ReplayItem> {
        let mut items = Vec::new();
        let mut batch: Vec<Message> = Vec::new();
        for record in records.into_iter().filter(|record| self.range.contains(record.timestamp_ms)) {
            match message(record) {
                Err(what) => items.push(ReplayItem::LeftOut(what)),
                Ok(message) => {
                    let goes_on = batch.last().is_none_or(|last| is_of_one_partition(last, &message));
                    if !goes_on || batch.len() >= self.max_batch {
                        items.push(ReplayItem::Batch(std::mem::take(&mut batch)));
                    }
                    batch.push(message);
                }
            }
        }
        if !batch.is_empty() {
            items.push(ReplayItem::Batch(batch));
        }
        items
    }
}

fn is_of_one_partition(one: &Message, other: &Message) -> bool {
    let (one, other) = (&one.record.origin, &other.record.origin);
    one.topic == other.topic && one.partition == other.partition
}

fn message(record: Record) -> Result<Message, SkippedRecord> {
    let (record, id) = original(record)?;
    let mut message = Message::decode(Arc::new(record)).map_err(|_| SkippedRecord::NotAMessage)?;
    if let Some(id) = id {
        message.id = id;
    }
    Ok(message)
}

/// The original record of a dead letter, with the message's id; any other record unchanged.
fn original(record: Record) -> Result<(Record, Option<MessageId>), SkippedRecord> {
    let letter = DeadLetter::of(record);
    let Some(origin) = letter.origin.clone() else { return Ok((letter.record, None)) };
    if letter.lacks_value() {
        return Err(SkippedRecord::NoValue);
    }
    let headers = letter.original_headers().cloned().collect();
    let id = letter.id.clone();
    Ok((Record { origin, headers, ..letter.record }, Some(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Audience, Header, Origin, encode};

    fn record(offset: i64, headers: &[(&str, &str)]) -> Record {
        let header = |(name, value): &(&str, &str)| Header {
            name: (*name).to_owned().into(),
            value: Some((*value).to_owned().into()),
        };
        Record {
            origin: Origin { topic: "t".into(), partition: 0, offset },
            timestamp_ms: Some(offset),
            key: Some("key".into()),
            value: Some(encode(&Audience::Room("lobby".into()), 4, b"hello")),
            headers: headers.iter().map(header).collect(),
            trusted: false,
        }
    }

    fn letter(offset: i64, partition: &str) -> Record {
        let origin = [("halley-origin-topic", "push"), ("halley-origin-partition", partition)];
        record(offset, &[&[("trace", "1")], &origin[..], &[("halley-origin-offset", "7")]].concat())
    }

    #[test]
    fn batches_stay_in_one_partition_and_restore_dead_letters() {
        let traffic = Traffic { range: TimeRange { from_ms: 1, to_ms: 100, stop_ms: 100 }, max_batch: 2 };
        let none = Record { value: None, ..record(7, &[]) };
        let records = vec![
            record(0, &[]),
            record(1, &[]),
            record(2, &[]),
            record(3, &[]),
            letter(4, "2"),
            letter(5, "3"),
            none,
            record(100, &[]),
        ];
        let (mut batches, mut left_out) = (Vec::new(), 0);
        for item in traffic.items(records) {
            match item {
                ReplayItem::Batch(batch) => batches.push(batch),
                ReplayItem::LeftOut(_) => left_out += 1,
            }
        }
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!((sizes, left_out), (vec![2, 1, 1, 1], 1));
        let letter = &batches[2][0];
        assert_eq!(letter.record.origin, Origin { topic: "push".into(), partition: 2, offset: 7 });
        assert_eq!((letter.record.headers.len(), &letter.id), (1, &letter.record.message_id()));
        assert_eq!(letter.record.key.as_deref(), Some(&b"key"[..]));
    }
}
