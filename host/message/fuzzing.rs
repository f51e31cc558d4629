//! Any record, and what has to hold of it and of the message inside it.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;

use super::{Audience, Header, MESSAGE_ID, Message, Origin, Record, encode};

/// Any record. Half of them hold a well-formed value.
pub(crate) fn record(input: &mut Unstructured<'_>) -> Result<Record> {
    let origin = Origin {
        topic: Arc::from(input.arbitrary::<&str>()?),
        partition: input.arbitrary()?,
        offset: input.arbitrary()?,
    };
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        let name = if input.arbitrary()? { MESSAGE_ID.as_bytes() } else { input.arbitrary()? };
        headers.push(Header { name: Bytes::copy_from_slice(name), value: bytes(input)? });
    }
    let (timestamp_ms, key) = (input.arbitrary()?, bytes(input)?);
    let value = if input.arbitrary()? {
        Some(encode(&audience(input)?, input.arbitrary()?, input.arbitrary::<&[u8]>()?))
    } else if input.ratio(1, 16)? {
        None
    } else {
        Some(Bytes::copy_from_slice(input.bytes(input.len())?))
    };
    Ok(Record { origin, timestamp_ms, key, value, headers })
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

fn bytes(input: &mut Unstructured<'_>) -> Result<Option<Bytes>> {
    Ok(input.arbitrary::<Option<&[u8]>>()?.map(Bytes::copy_from_slice))
}

/// Checks what is promised of a record; returns its message, when it holds one.
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
