//! Shrinks a dead letter until its topic accepts it. Pure.
//!
//! A record that fitted into its own topic may not fit into this one with our headers, and retrying
//! for ever would hold up its partition. So parts are left out in steps: the value, the key, the
//! foreign headers. A header records the size and SHA-256 of each.

use crate::dead_letter::headers::KEY_ADDED;
use crate::kafka::{OutgoingRecord, WriteError, WriteRefusal};
use crate::message::{
    HEADERS_LEFT_OUT, KEY_LEFT_OUT, MESSAGE_ID, VALUE_LEFT_OUT, left_out_headers_note, left_out_note,
};

/// The prefix of our headers.
const HALLEY_PREFIX: &[u8] = b"halley-";

/// A smaller letter after a refusal; `None` if nothing more can be left out.
pub(super) fn fit<'a>(mut letter: OutgoingRecord<'a>, error: &WriteError) -> Option<OutgoingRecord<'a>> {
    match error.refusal? {
        WriteRefusal::TooLarge => smaller(letter, &error.reason),
        // Our letters carry it in a header, too.
        WriteRefusal::Timestamp => letter.timestamp_ms.take().map(|_| letter),
        // A compacted topic refuses records without a key.
        WriteRefusal::Other if letter.key.is_none() && !has(&letter, KEY_ADDED) => {
            let id = letter.headers.iter().find(|header| header.name == MESSAGE_ID)?.value.clone()?;
            letter.key = Some(id.to_vec().into());
            letter.add_header(KEY_ADDED, "true");
            Some(letter)
        }
        WriteRefusal::Other => None,
    }
}

fn smaller<'a>(mut letter: OutgoingRecord<'a>, said: &str) -> Option<OutgoingRecord<'a>> {
    if letter.value.as_ref().is_some_and(|value| !value.is_empty()) {
        let note = left_out_note(letter.value.as_deref()?, said);
        // Empty instead of null: null would delete earlier letters of this key in a compacted topic.
        letter.value = Some(Vec::new().into());
        letter.add_header(VALUE_LEFT_OUT, note);
        return Some(letter);
    }
    let ours = has(&letter, KEY_ADDED);
    if let Some(key) = letter.key.take_if(|key| !key.is_empty() && !ours) {
        letter.add_header(KEY_LEFT_OUT, left_out_note(&key, said));
        return Some(letter);
    }
    let (ours, foreign_headers): (Vec<_>, Vec<_>) =
        letter.headers.drain(..).partition(|header| header.name.starts_with(HALLEY_PREFIX));
    letter.headers = ours;
    if foreign_headers.is_empty() {
        return None;
    }
    let content = foreign_headers.iter().map(|header| (&*header.name, header.value.as_deref()));
    letter.add_header(HEADERS_LEFT_OUT, left_out_headers_note(content, said));
    Some(letter)
}

fn has(letter: &OutgoingRecord<'_>, name: &str) -> bool {
    letter.headers.iter().any(|header| header.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: WriteRefusal) -> WriteError {
        WriteError { topic: "t".into(), reason: "no".into(), refusal: Some(refusal) }
    }

    fn names<'a>(letter: &'a OutgoingRecord<'_>) -> Vec<&'a str> {
        letter.headers.iter().map(|header| header.name_text()).collect()
    }

    #[test]
    fn parts_are_left_out_in_steps() {
        let mut letter = OutgoingRecord {
            key: Some(b"key".into()),
            value: Some(b"abc".into()),
            ..OutgoingRecord::default()
        };
        letter.add_header("trace", "1");
        letter.add_header(MESSAGE_ID, "push/0/1");
        let large = refused(WriteRefusal::TooLarge);

        let letter = fit(letter, &large).expect("without its value");
        assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"key"[..]), Some(&b""[..])));
        let note = letter.headers.last().and_then(|header| header.value.clone()).expect("a note");
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(note, format!("3 bytes, sha256 {digest}: no"));

        let letter = fit(letter, &large).expect("without its key");
        assert_eq!(letter.key, None);
        let letter = fit(letter, &large).expect("without its headers");
        assert_eq!(names(&letter), [MESSAGE_ID, VALUE_LEFT_OUT, KEY_LEFT_OUT, HEADERS_LEFT_OUT]);
        assert_eq!(fit(letter, &large), None, "nothing more can be left out");
    }

    #[test]
    fn a_timestamp_is_dropped_once_and_a_missing_key_added() {
        let mut letter = OutgoingRecord { timestamp_ms: Some(7), ..OutgoingRecord::default() };
        letter.add_header(MESSAGE_ID, "push/0/1");
        let letter = fit(letter, &refused(WriteRefusal::Timestamp)).expect("without its time");
        assert_eq!(
            (letter.timestamp_ms, fit(letter.clone(), &refused(WriteRefusal::Timestamp))),
            (None, None)
        );
        let letter = fit(letter, &refused(WriteRefusal::Other)).expect("with a key");
        assert_eq!(
            (letter.key.as_deref(), names(&letter)),
            (Some(&b"push/0/1"[..]), vec![MESSAGE_ID, KEY_ADDED])
        );
        assert_eq!(fit(letter, &refused(WriteRefusal::Other)), None);
    }
}
