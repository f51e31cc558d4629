//! A Kafka record, and its identity.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::push::count_keys;
use super::{CometAddr, MESSAGE_ID, MessageId, REDRIVE_COMETS, REDRIVE_USERS, RedriveUsers};

/// Where a record was read in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Hash, derive_more::Display)]
#[display("{topic}/{partition}/{offset}")]
pub struct Origin {
    /// The topic it was read from.
    pub topic: Arc<str>,
    /// The partition of the topic.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

/// One header of a record. Names may repeat; a value may be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header's name. Kafka defines it as a string, but accepts any bytes.
    pub name: Bytes,
    /// The header's value.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header of the gateway's own.
    pub fn new(name: &'static str, value: impl Into<Bytes>) -> Self {
        Self { name: Bytes::from_static(name.as_bytes()), value: Some(value.into()) }
    }

    /// The name as text: U+FFFD for a name that is not UTF-8.
    pub fn name_text(&self) -> &str {
        std::str::from_utf8(&self.name).unwrap_or("\u{fffd}")
    }
}

/// A Kafka record, kept whole so that a dead letter is an exact copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it was read.
    pub origin: Origin,
    /// Milliseconds since 1970-01-01 UTC, when the record has a timestamp.
    pub timestamp_ms: Option<i64>,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The record's headers, in order.
    pub headers: Vec<Header>,
    /// Whether its `halley-` headers are the gateway's own: they were added while it was read, or
    /// its proof was verified. Otherwise they are ignored.
    pub trusted: bool,
}

impl Record {
    /// The message id: the one in the `halley-message-id` header of a trusted record, otherwise
    /// [`Record::id_at`] its origin.
    pub fn message_id(&self) -> MessageId {
        self.trusted_id().unwrap_or_else(|| self.id_at(&self.origin))
    }

    /// The same, written to this buffer on the way.
    pub(super) fn message_id_with(&self, buffer: &mut String) -> MessageId {
        if let Some(id) = self.trusted_id() {
            return id;
        }
        buffer.clear();
        write_id(&self.origin, self.fingerprint(), buffer);
        MessageId::from(buffer.as_str())
    }

    /// The id that a trusted record carries: such a record was redriven.
    pub fn trusted_id(&self) -> Option<MessageId> {
        if self.trusted { self.claimed_id() } else { None }
    }

    /// The first valid id in a `halley-message-id` header, trusted or not.
    pub fn claimed_id(&self) -> Option<MessageId> {
        let named = self.headers.iter().filter(|header| header.name == MESSAGE_ID);
        let mut ids = named.filter_map(|header| header.value.as_ref()).filter(|id| is_message_id(id));
        ids.find_map(|id| std::str::from_utf8(id).ok()).map(MessageId::from)
    }

    /// `<topic>/<partition>/<offset>/<fingerprint>`, the id of this record at that origin.
    ///
    /// Offsets restart at 0 in a recreated topic, and in every other cluster. The fingerprint
    /// distinguishes their messages for readers that drop duplicates. It is the same at every
    /// redelivery, since it is a hash of content that Kafka stores.
    pub fn id_at(&self, origin: &Origin) -> MessageId {
        id_of(origin, self.fingerprint())
    }

    /// A hash of the content that Kafka stores: it distinguishes records with the same origin.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(self.timestamp_ms, self.key.as_deref(), self.value.as_deref())
    }

    /// The comets that a redriven record is for; `None` if it is for all that its message
    /// reaches. Only a trusted record that carries its message's id was redriven.
    pub fn redrive_comets(&self) -> Option<Vec<CometAddr>> {
        self.trusted_id()?;
        let comets = std::str::from_utf8(self.header(REDRIVE_COMETS)?).ok()?;
        let comets: Vec<_> =
            comets.split(',').filter(|comet| !comet.is_empty()).map(CometAddr::from).collect();
        (!comets.is_empty()).then_some(comets)
    }

    /// The users that a redriven record is for; `None` if it is for all that its message
    /// reaches. Only a trusted record that carries its message's id was redriven.
    pub fn redrive_users(&self) -> Option<RedriveUsers> {
        self.trusted_id()?;
        let users = std::str::from_utf8(self.header(REDRIVE_USERS)?).ok()?;
        RedriveUsers::parse(users)
    }

    /// The value of the first header of this name that has one.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().filter(|h| h.name == name).find_map(|h| h.value.as_ref())
    }

    /// The estimated memory of the record in flight, in bytes: its content, and what its headers and
    /// keys are decoded into.
    pub fn size(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|h| HEADER + h.name.len() + length(&h.value)).sum();
        let keys = self.value.as_deref().map_or(0, count_keys);
        RECORD + length(&self.key) + length(&self.value) + headers + KEY * keys
    }
}

/// The overhead of a record: itself, its message, and the state of its calls.
const RECORD: usize = 1024;
/// The overhead of a header.
const HEADER: usize = size_of::<Header>();
/// The cost of a PUSH key: the key, its look-up, the connection found, its entry in a call.
/// Measured: see `tests/records`.
const KEY: usize = 256;

pub(super) fn id_of(origin: &Origin, fingerprint: u64) -> MessageId {
    let mut id = String::new();
    write_id(origin, fingerprint, &mut id);
    MessageId::from(id)
}

/// Appends the id of a record with this origin and fingerprint.
fn write_id(origin: &Origin, fingerprint: u64, id: &mut String) {
    // Once per message: without the machinery of `format!`.
    let (mut partition, mut offset) = (itoa::Buffer::new(), itoa::Buffer::new());
    let (partition, offset) = (partition.format(origin.partition), offset.format(origin.offset));
    let mut digits = [0; 16];
    for (at, digit) in digits.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(fingerprint >> (4 * at)) as usize & 0xf];
    }
    id.reserve(origin.topic.len() + partition.len() + offset.len() + 19);
    // The digits are ASCII.
    for part in [&origin.topic, "/", partition, "/", offset, "/", str::from_utf8(&digits).unwrap_or_default()]
    {
        id.push_str(part);
    }
}

/// XXH3 of value, key and timestamp: each is hashed with the hash of the next as its seed. Absent
/// and empty differ.
pub(super) fn fingerprint(timestamp_ms: Option<i64>, key: Option<&[u8]>, value: Option<&[u8]>) -> u64 {
    let hash = |bytes: Option<&[u8]>, seed: u64| match bytes {
        Some(bytes) => xxh3_64_with_seed(bytes, seed),
        None => seed.wrapping_add(1),
    };
    // i64::MIN is not a valid timestamp in Kafka.
    hash(value, hash(key, timestamp_ms.unwrap_or(i64::MIN) as u64))
}

/// Ids are sent as gRPC metadata, in lists: printable ASCII of limited length, without commas.
pub(super) fn is_message_id(id: &[u8]) -> bool {
    !id.is_empty() && id.len() <= 512 && id.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            origin: Origin { topic: "push".into(), partition: 3, offset: 42 },
            timestamp_ms: Some(7),
            key: Some("key".into()),
            value: Some("value".into()),
            headers: Vec::new(),
            trusted: false,
        }
    }

    #[test]
    fn an_id_is_an_origin_and_a_fingerprint() {
        // Dead letters and comets store ids: their format must not change.
        assert_eq!(record().message_id().as_str(), "push/3/42/a3f1fd0fc46a00d6");
        let moved = Origin { topic: "other".into(), partition: 0, offset: 1 };
        assert_eq!(record().id_at(&moved).as_str(), "other/0/1/a3f1fd0fc46a00d6");
    }

    #[test]
    fn any_difference_between_records_changes_the_id() {
        let others = [
            Record { timestamp_ms: Some(8), ..record() },
            Record { timestamp_ms: None, ..record() },
            Record { timestamp_ms: Some(-1), ..record() },
            Record { key: None, ..record() },
            Record { key: Some("".into()), ..record() },
            Record { key: Some("value".into()), value: Some("key".into()), ..record() },
            Record { key: Some("keyvalue".into()), value: Some("".into()), ..record() },
            Record { value: None, ..record() },
            Record { value: Some("".into()), ..record() },
            record(),
        ];
        let ids: std::collections::BTreeSet<_> = others.iter().map(Record::message_id).collect();
        assert_eq!(ids.len(), others.len(), "{ids:?}");
    }

    #[test]
    fn headers_and_keys_count_with_their_overhead() {
        let empty = Header { name: Bytes::new(), value: None };
        let headers = Record { headers: vec![empty; 100_000], ..record() };
        assert!(headers.size() > 6_000_000, "{}", headers.size());
        // 200,000 bytes on the wire.
        let keys = Record { value: Some(b"\x32\x00".repeat(100_000).into()), ..record() };
        assert!(keys.size() > 25_000_000, "{}", keys.size());
        assert!((1024..2048).contains(&record().size()), "{}", record().size());
    }

    #[test]
    fn only_a_redriven_record_names_its_comets() {
        let mut record = Record { trusted: true, ..record() };
        record.headers.push(Header::new(REDRIVE_COMETS, "a:1,b:1"));
        assert_eq!(record.redrive_comets(), None);
        record.headers.push(Header::new(MESSAGE_ID, "push/0/7"));
        assert_eq!(record.redrive_comets(), Some(vec!["a:1".into(), "b:1".into()]));
        record.headers[0] = Header::new(REDRIVE_COMETS, "");
        assert_eq!(record.redrive_comets(), None);
    }

    #[test]
    fn only_a_redriven_record_names_its_users() {
        let mut record = Record { trusted: true, ..record() };
        record.headers.push(Header::new(REDRIVE_USERS, "a,b"));
        assert_eq!(record.redrive_users(), None);
        record.headers.push(Header::new(MESSAGE_ID, "push/0/7"));
        assert_eq!(record.redrive_users(), RedriveUsers::parse("b,a"));
        record.headers[0] = Header::new(REDRIVE_USERS, "");
        assert_eq!(record.redrive_users(), None);
    }

    #[test]
    fn a_redriven_record_keeps_its_id() {
        let mut redriven = record();
        redriven.headers.push(Header::new(MESSAGE_ID, "push/0/7"));
        assert_eq!(redriven.message_id(), record().message_id(), "any producer may have written it");
        redriven.trusted = true;
        assert_eq!(redriven.message_id().as_str(), "push/0/7");
        redriven.headers[0] = Header::new(MESSAGE_ID, "not an id\n");
        assert_eq!(redriven.message_id(), record().message_id());
    }
}
