//! Generates any record, and checks the invariants of it and of its message.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;

use super::record::is_message_id;
use super::{
    Audience, DecodeError, HEADERS_LEFT_OUT, KEY_LEFT_OUT, MESSAGE_ID, MalformedHeaders, Message, Origin,
    RawRecord, Record, RecordLimits, VALUE_LEFT_OUT, encode,
};

/// Any record, copied as from librdkafka, within limits that many exceed. Half of
/// them hold a well-formed value.
pub(crate) fn record(input: &mut Unstructured<'_>) -> Result<Record> {
    let origin = Origin {
        topic: Arc::from(input.arbitrary::<&str>()?),
        partition: input.arbitrary()?,
        offset: input.arbitrary()?,
    };
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        let name: &[u8] = if input.arbitrary()? { MESSAGE_ID.as_bytes() } else { input.arbitrary()? };
        headers.push((name, input.arbitrary::<Option<&[u8]>>()?));
    }
    let headers = if input.ratio(1, 32)? { Err(MalformedHeaders) } else { Ok(headers.into_iter()) };
    let (timestamp_ms, key) = (input.arbitrary()?, input.arbitrary::<Option<&[u8]>>()?);
    let limits = if input.ratio(3, 4)? { RecordLimits::NONE } else { limits(input)? };
    let value = if input.arbitrary()? {
        Some(encode(&audience(input)?, input.arbitrary()?, input.arbitrary::<&[u8]>()?))
    } else if input.ratio(1, 16)? {
        None
    } else {
        Some(Bytes::copy_from_slice(input.bytes(input.len())?))
    };
    let raw = RawRecord { origin, timestamp_ms, key, value: value.as_deref(), headers };
    let (whole, record) = (raw.clone().copy(&RecordLimits::NONE), raw.copy(&limits));
    check_copy(&whole, &record, &limits);
    Ok(record)
}

fn limits(input: &mut Unstructured<'_>) -> Result<RecordLimits> {
    Ok(RecordLimits {
        bytes: input.int_in_range(0..=64)?,
        headers: input.int_in_range(0..=3)?,
        header_bytes: input.int_in_range(0..=64)?,
    })
}

/// A copy is within the limits, or notes what is missing and is not a message; its id is that of the whole.
fn check_copy(whole: &Record, record: &Record, limits: &RecordLimits) {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    assert!(record.key == whole.key || length(&whole.key) > limits.bytes);
    assert!(length(&record.key) <= limits.bytes && length(&record.value) <= limits.bytes);
    let notes = [VALUE_LEFT_OUT, KEY_LEFT_OUT, HEADERS_LEFT_OUT];
    let unreadable = whole.header(HEADERS_LEFT_OUT).is_some();
    assert!(!whole.trusted || unreadable, "nothing was left out of it, and nobody has checked it");
    if record.trusted {
        assert!(notes.iter().any(|name| record.header(name).is_some()));
        assert!(matches!(Message::decode(Arc::new(record.clone())), Err(DecodeError::LeftOut(_))));
        assert!(record.headers.len() <= limits.headers.saturating_add(notes.len() + 1));
    } else {
        assert_eq!(record, whole);
        assert!(record.headers.len() <= limits.headers);
    }
    let ids = [whole.message_id(), whole.id_at(&whole.origin)];
    // An id that does not fit is dropped with the other headers.
    // Only with a valid Kafka topic name does the record carry a valid id.
    let plain = is_message_id(ids[1].as_str().as_bytes());
    assert!(!plain || ids.contains(&record.message_id()), "{:?} of {ids:?}", record.message_id());
}

/// Any audience, empty names among them.
pub(crate) fn audience(input: &mut Unstructured<'_>) -> Result<Audience> {
    Ok(match input.int_in_range(0..=2)? {
        0 => Audience::Room(input.arbitrary::<&str>()?.into()),
        1 => Audience::Everyone { speed: input.arbitrary()? },
        _ => {
            let server = input.arbitrary::<Option<&str>>()?.map(Arc::from);
            let mut keys = Vec::new();
            for _ in 0..input.int_in_range(0..=6)? {
                keys.push(Arc::from(input.arbitrary::<&str>()?));
            }
            Audience::Keys { server, keys }
        }
    })
}

/// Checks the invariants of a record; returns its message, if it holds one.
pub(crate) fn check(record: Record) -> Option<Message> {
    let record = Arc::new(record);
    let id = record.message_id();
    let carried = record
        .headers
        .iter()
        .any(|header| header.name == MESSAGE_ID && header.value.as_deref() == Some(id.as_str().as_bytes()));
    assert!(carried || id == record.id_at(&record.origin), "an id from nowhere: {id:?}");
    let message = Message::decode(Arc::clone(&record)).ok()?;
    assert_eq!((&message.record, &message.id), (&record, &id));
    match &message.audience {
        Audience::Room(room) => assert!(!room.is_empty(), "a message for no room"),
        Audience::Keys { server, keys } => {
            assert!(!keys.is_empty() && keys.iter().all(|key| !key.is_empty()), "a message for nobody");
            assert_ne!(server.as_deref(), Some(""));
        }
        Audience::Everyone { .. } => {}
    }
    let value = encode(&message.audience, message.operation, &message.body);
    let again = Message::decode(Arc::new(Record { value: Some(value), ..(*record).clone() }));
    let again = again.expect("what was encoded is decoded");
    assert_eq!(
        (again.audience, again.operation, again.body),
        (message.audience.clone(), message.operation, message.body.clone())
    );
    Some(message)
}
