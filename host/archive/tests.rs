//! Records of the archive topic, from messages to rows.

use bytes::Bytes;
use proptest::prelude::*;

use super::record::{ArchiveRecipient, InvalidRecord, decode, encode, encode_history, refusal};
use super::row::RowOwner;
use crate::decision::AbsenceCause;
use crate::inbox;
use crate::message::{Audience, Message, Origin, Record, UserId};

fn message(room: &str) -> Message {
    let origin = Origin { topic: "push".into(), partition: 3, offset: 7 };
    let record = Record {
        origin,
        timestamp_ms: Some(1_000),
        key: None,
        value: None,
        headers: Vec::new(),
        trusted: false,
    };
    Message {
        id: record.message_id(),
        record: record.into(),
        audience: Audience::Room(room.into()),
        operation: 4,
        body: Bytes::from_static(b"\x00\xffbody"),
    }
}

#[test]
fn a_record_has_a_row_for_each_recipient() {
    let (ann, bob) = (UserId::from("ann"), UserId::from("bob"));
    let recipients = [
        ArchiveRecipient {
            user: &ann,
            cause: Some(AbsenceCause::NotOnline),
            expires_ms: None,
            position: None,
        },
        ArchiveRecipient {
            user: &bob,
            cause: None,
            expires_ms: Some(9_000),
            position: Some(inbox::Position { ms: 3_000, number: 4 }),
        },
    ];
    let message = message("lobby");
    let rows = decode(Some(encode(&message, &recipients, None, 2_000).into())).expect("a record");
    let [first, second] = &rows[..] else { panic!("two rows: {rows:?}") };
    assert_eq!((first.owner.user(), second.owner.user()), (Some(&ann), Some(&bob)));
    assert_eq!((first.message.reference, second.message.reference), (None, None));
    assert_eq!(first.message.position.id(), message.id);
    assert_eq!((first.message.position.sent_ms, first.message.stored_ms), (1_000, 2_000));
    assert_eq!((&first.message.body, first.message.room.as_str()), (&message.body, "lobby"));
    assert_eq!((first.message.expires_ms, second.message.expires_ms), (0, 9_000));
    let fingerprint = first.message.position.fingerprint;
    assert_eq!(first.place, inbox::Position { ms: 2_000, number: fingerprint }, "its place is not known");
    assert_eq!(second.place, inbox::Position { ms: 3_000, number: 4 });
    assert_eq!((first.message.cause.as_str(), second.message.cause.as_str()), ("not-online", ""));
}

#[test]
fn a_message_in_a_history_has_a_row_of_its_room_and_references() {
    let (message, place) = (message("lobby"), inbox::Position { ms: 5_000, number: 6 });
    let rows = decode(Some(encode_history(&message, place, 2_000).into())).expect("a record");
    let [row] = &rows[..] else { panic!("one row: {rows:?}") };
    assert_eq!((&row.owner, row.place), (&RowOwner::Room("lobby".into()), place));
    assert_eq!((&row.message.body, row.message.reference), (&message.body, None));
    assert_eq!(row.message.position.id(), message.id);

    let ann = UserId::from("ann");
    let position = Some(inbox::Position { ms: 7_000, number: 0 });
    let recipient = ArchiveRecipient { user: &ann, cause: None, expires_ms: None, position };
    let value = encode(&message, &[recipient], Some(place), 2_000);
    let rows = decode(Some(value.into())).expect("a record");
    assert_eq!(rows[0].owner.user(), Some(&ann));
    let reference = inbox::BodyReference { place, size: message.body.len() as u64 };
    assert_eq!((rows[0].message.reference, rows[0].message.body.len()), (Some(reference), 0));
    assert_eq!(rows[0].message.position, row.message.position, "the reference names the message");
}

#[test]
fn what_is_no_record_is_refused() {
    assert_eq!(decode(None), Err(InvalidRecord::NoValue));
    assert!(matches!(decode(Some(Bytes::from_static(b"\xff"))), Err(InvalidRecord::Malformed(_))));
    assert_eq!(decode(Some(Bytes::new())), Err(InvalidRecord::Id(String::new())));
}

#[test]
fn ids_that_are_too_long_are_refused_before_they_are_written() {
    let (fits, long) = ("x".repeat(255), "x".repeat(256));
    assert_eq!(refusal(&message(&fits), &UserId::from(fits.as_str())), None);
    assert!(refusal(&message(&long), &"ann".into()).is_some_and(|why| why.contains("room has 256 bytes")));
    assert!(refusal(&message("lobby"), &UserId::from(long.as_str())).is_some_and(|why| why.contains("user")));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(decode(Some(bytes.into())));
    }
}
