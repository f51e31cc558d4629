//! Copies a record out of its reader's memory. Parts that are too large are not copied, and a header
//! notes them.
//!
//! An incomplete record is not a message. It becomes a dead letter ([`DecodeError::LeftOut`]) whose
//! headers give the size and the SHA-256 of the missing part. It carries its id, which can no longer
//! be computed. Its claims are ignored: a proof cannot be checked without the whole record.
//!
//! [`DecodeError::LeftOut`]: super::DecodeError::LeftOut

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use super::record::{fingerprint, id_of};
use super::{Header, MESSAGE_ID, ORIGIN_TOPIC, Origin, Record, STAGE};

/// The value was too large and is missing: its size, its SHA-256, and why.
pub const VALUE_LEFT_OUT: &str = "halley-value-left-out";
/// The same for the key.
pub const KEY_LEFT_OUT: &str = "halley-key-left-out";
/// The same for the headers, except the gateway's own.
pub const HEADERS_LEFT_OUT: &str = "halley-headers-left-out";

/// The prefix of the gateway's own headers.
const OURS: &[u8] = b"halley-";
/// The headers that mark a record from a dead-letter topic. Not a claim: they only prevent it from
/// being written there again.
const LETTER: [&str; 2] = [ORIGIN_TOPIC, STAGE];

/// How much of a record is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Bytes of key and value together.
    pub bytes: usize,
    /// Headers.
    pub headers: usize,
    /// Bytes of their names and values.
    pub header_bytes: usize,
}

impl RecordLimits {
    /// No limits.
    pub const NONE: Self = Self { bytes: usize::MAX, headers: usize::MAX, header_bytes: usize::MAX };
}

/// A header's name and value, in the reader's memory.
pub type RawHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// A record in its reader's memory.
#[derive(Clone, Debug)]
pub struct RawRecord<'a, H> {
    /// Where it was read.
    pub origin: Origin,
    /// Milliseconds since 1970-01-01 UTC, when the record has a timestamp.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// The headers in order, or why they cannot be read.
    pub headers: Result<H, MalformedHeaders>,
}

/// The reader cannot read a record's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("they cannot be read: malformed, or more than 100,000 headers")]
pub struct MalformedHeaders;

impl<'a, H: Iterator<Item = RawHeader<'a>> + Clone> RawRecord<'a, H> {
    /// Copies what is within the limits; headers note what is omitted.
    pub fn copy(self, limits: &RecordLimits) -> Record {
        let (mut key, mut value) = (self.key, self.value);
        let mut notes = Vec::new();
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        if length(key).saturating_add(length(value)) > limits.bytes {
            let why = format!("larger than `[delivery] max_record` ({} bytes)", limits.bytes);
            if let Some(value) = value.take() {
                notes.push(Header::new(VALUE_LEFT_OUT, note(value, &why)));
            }
            if let Some(key) = key.take_if(|key| key.len() > limits.bytes) {
                notes.push(Header::new(KEY_LEFT_OUT, note(key, &why)));
            }
        }
        let headers = match self.headers {
            Ok(theirs) => match too_many(theirs.clone(), limits) {
                None => copy_headers(theirs),
                Some(why) => {
                    notes.push(Header::new(HEADERS_LEFT_OUT, note_headers(theirs.clone(), &why)));
                    copy_headers(ours_within(theirs, *limits))
                }
            },
            Err(why) => {
                notes.push(Header::new(HEADERS_LEFT_OUT, why.to_string()));
                Vec::new()
            }
        };
        let trusted = !notes.is_empty();
        let mut headers: Vec<Header> = headers;
        if trusted {
            let id = id_of(&self.origin, fingerprint(self.timestamp_ms, self.key, self.value));
            headers.retain(|header| {
                !header.name.starts_with(OURS) || LETTER.iter().any(|name| header.name == name)
            });
            headers.push(Header::new(MESSAGE_ID, id.to_string()));
            headers.append(&mut notes);
        }
        let (key, value) = copy_both(key, value);
        Record { origin: self.origin, timestamp_ms: self.timestamp_ms, key, value, headers, trusted }
    }
}

/// Copies key and value into one buffer.
fn copy_both(key: Option<&[u8]>, value: Option<&[u8]>) -> (Option<Bytes>, Option<Bytes>) {
    let (Some(key), Some(value)) = (key, value) else {
        return (key.map(Bytes::copy_from_slice), value.map(Bytes::copy_from_slice));
    };
    let mut both = BytesMut::with_capacity(key.len() + value.len());
    both.extend_from_slice(key);
    both.extend_from_slice(value);
    let key = both.split_to(key.len()).freeze();
    (Some(key), Some(both.freeze()))
}

/// The note about an omitted part.
pub fn note(content: &[u8], why: &str) -> String {
    noted(content.len(), Sha256::digest(content).as_slice(), why)
}

fn noted(size: usize, digest: &[u8], why: &str) -> String {
    format!("{size} bytes, sha256 {}: {why}", hex::encode(digest))
}

/// The note about omitted headers; their digest is over names and values, each followed by a zero byte.
pub fn note_headers<'a>(headers: impl Iterator<Item = RawHeader<'a>>, why: &str) -> String {
    let (mut count, mut size, mut digest) = (0, 0, Sha256::new());
    for (name, value) in headers {
        count += 1;
        for part in [name, value.unwrap_or_default()] {
            size += part.len() + 1;
            digest.update(part);
            digest.update([0]);
        }
    }
    format!("{count} headers, {}", noted(size, digest.finalize().as_slice(), why))
}

fn too_many<'a>(headers: impl Iterator<Item = RawHeader<'a>>, limits: &RecordLimits) -> Option<String> {
    let (mut count, mut size) = (0_usize, 0_usize);
    for header in headers {
        count += 1;
        size = size.saturating_add(weight(&header));
    }
    if count > limits.headers {
        return Some(format!("more than `[delivery] max_headers` ({})", limits.headers));
    }
    (size > limits.header_bytes)
        .then(|| format!("larger than `[delivery] max_header_bytes` ({} bytes)", limits.header_bytes))
}

fn weight((name, value): &RawHeader<'_>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len)
}

/// The gateway's own headers, as many as fit; they identify a redriven record.
fn ours_within<'a, H: Iterator<Item = RawHeader<'a>> + Clone>(
    headers: H,
    limits: RecordLimits,
) -> impl Iterator<Item = RawHeader<'a>> + Clone {
    let ours = headers.filter(|(name, _)| name.starts_with(OURS));
    ours.take(limits.headers).scan(0_usize, move |size, header| {
        *size = size.saturating_add(weight(&header));
        (*size <= limits.header_bytes).then_some(header)
    })
}

/// All names and values share one allocation.
fn copy_headers<'a>(headers: impl Iterator<Item = RawHeader<'a>> + Clone) -> Vec<Header> {
    let (count, bytes) = headers.clone().fold((0, 0), |(count, bytes), h| (count + 1, bytes + weight(&h)));
    let mut joined = BytesMut::with_capacity(bytes);
    for (name, value) in headers.clone() {
        joined.extend_from_slice(name);
        joined.extend_from_slice(value.unwrap_or_default());
    }
    let mut joined = joined.freeze();
    let mut copied = Vec::with_capacity(count);
    copied.extend(headers.map(|(name, value)| Header {
        name: joined.split_to(name.len()),
        value: value.map(|value| joined.split_to(value.len())),
    }));
    copied
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::{DecodeError, Message};

    const LIMITS: RecordLimits = RecordLimits { bytes: 10, headers: 2, header_bytes: 40 };

    fn copy(key: &[u8], value: &[u8], headers: &[RawHeader<'_>], limits: &RecordLimits) -> Record {
        let origin = Origin { topic: "push".into(), partition: 3, offset: 42 };
        let headers = Ok(headers.iter().copied());
        RawRecord { origin, timestamp_ms: Some(7), key: Some(key), value: Some(value), headers }.copy(limits)
    }

    fn text(record: &Record, name: &str) -> String {
        record.header(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }

    #[test]
    fn a_record_within_the_limits_is_copied_unchanged() {
        let headers: [RawHeader<'_>; 2] = [(b"\xc6\xb5", None), (b"", Some(b""))];
        let record = copy(b"key", b"7 bytes", &headers, &LIMITS);
        assert_eq!(
            (record.key.as_deref(), record.value.as_deref()),
            (Some(&b"key"[..]), Some(&b"7 bytes"[..]))
        );
        let own = |name: &'static [u8], value| Header { name: name.into(), value };
        assert_eq!(record.headers, [own(b"\xc6\xb5", None), own(b"", Some(Bytes::new()))]);
    }

    #[test]
    fn a_large_part_is_omitted_and_noted_and_the_id_is_kept() {
        let whole = copy(b"key", b"eight by", &[], &RecordLimits::NONE);
        let record = copy(b"key", b"eight by", &[], &LIMITS);
        assert_eq!((record.key.as_deref(), record.value.as_deref()), (Some(&b"key"[..]), None));
        assert_eq!(record.message_id(), whole.message_id());
        let said = text(&record, VALUE_LEFT_OUT);
        assert!(
            said.starts_with("8 bytes, sha256 ") && said.ends_with("`[delivery] max_record` (10 bytes)"),
            "{said}"
        );
        let refused = Message::decode(Arc::new(record));
        assert!(matches!(&refused, Err(DecodeError::LeftOut(why)) if why.contains(&said)), "{refused:?}");

        let record = copy(b"eleven bytes", b"", &[], &LIMITS);
        assert_eq!((record.key, record.value), (None, None));
    }

    #[test]
    fn excess_headers_are_omitted_except_our_own() {
        let (id, stage) = (MESSAGE_ID.as_bytes(), STAGE.as_bytes());
        let headers: [RawHeader<'_>; 4] =
            [(b"a", Some(b"1")), (b"b", None), (id, Some(b"push/0/7")), (stage, Some(b"x"))];
        let whole = copy(b"", b"", &[], &RecordLimits::NONE);
        let record = copy(b"", b"", &headers, &RecordLimits { header_bytes: 90, ..LIMITS });
        assert_eq!(record.message_id(), whole.message_id(), "what it claims is not looked at");
        assert!(text(&record, HEADERS_LEFT_OUT).starts_with("4 headers, "), "{record:?}");
        assert!(record.trusted && !whole.trusted);
        assert_eq!(record.headers.len(), 3, "the note, the id, and that it is a letter: {record:?}");
        let few = RecordLimits { headers: 5, header_bytes: 900, ..LIMITS };
        let record = copy(b"", b"more than ten bytes", &headers, &few);
        assert_eq!(text(&record, STAGE), "x", "it was read where dead letters are: {record:?}");
        assert_eq!(record.headers.len(), 5, "{record:?}");

        let long = [b'x'; 41];
        let record = copy(b"", b"", &[(b"halley-trace", Some(&long))], &LIMITS);
        assert_eq!(record.headers.len(), 2, "the note and the id: {record:?}");
        assert!(text(&record, HEADERS_LEFT_OUT).contains("max_header_bytes"));
    }
}
