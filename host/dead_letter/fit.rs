//! Shrinks a dead letter until its topic accepts it. Pure.
//!
//! A record that fitted into its own topic may not fit into this one with our headers, and retrying
//! for ever would hold up its partition. So parts are left out in steps: the value, the key, the
//! foreign headers. A header records the size and SHA-256 of each.

use crate::dead_letter::headers::KEY_ADDED;
use crate::kafka::{NotWritten, Outgoing, Refusal};
use crate::message::{
    HEADERS_LEFT_OUT, KEY_LEFT_OUT, MESSAGE_ID, VALUE_LEFT_OUT, left_out_headers_note, left_out_note,
};

/// The prefix of our headers.
const OURS: &[u8] = b"halley-";

/// A smaller letter after a refusal; `None` if nothing more can be left out.
pub(super) fn fit<'a>(mut letter: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>> {
    match error.refusal? {
        Refusal::TooLarge => smaller(letter, &error.reason),
        // Our letters carry it in a header, too.
        Refusal::Timestamp => letter.timestamp_ms.take().map(|_| letter),
        // A compacted topic refuses records without a key.
        Refusal::Other if letter.key.is_none() && !has(&letter, KEY_ADDED) => {
            let id = letter.headers.iter().find(|header| header.name == MESSAGE_ID)?.value.clone()?;
            letter.key = Some(id.to_vec().into());
            letter.add_header(KEY_ADDED, "true");
            Some(letter)
        }
        Refusal::Other => None,
    }
}

fn smaller<'a>(mut letter: Outgoing<'a>, said: &str) -> Option<Outgoing<'a>> {
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
    let (ours, theirs): (Vec<_>, Vec<_>) =
        letter.headers.drain(..).partition(|header| header.name.starts_with(OURS));
    letter.headers = ours;
    if theirs.is_empty() {
        return None;
    }
    let content = theirs.iter().map(|header| (&*header.name, header.value.as_deref()));
    letter.add_header(HEADERS_LEFT_OUT, left_out_headers_note(content, said));
    Some(letter)
}

fn has(letter: &Outgoing<'_>, name: &str) -> bool {
    letter.headers.iter().any(|header| header.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: Refusal) -> NotWritten {
        NotWritten { topic: "t".into(), reason: "no".into(), refusal: Some(refusal) }
    }

    fn names<'a>(letter: &'a Outgoing<'_>) -> Vec<&'a str> {
        letter.headers.iter().map(|header| header.name_text()).collect()
    }

    #[test]
    fn what_does_not_fit_is_left_out_in_steps() {
        let mut letter =
            Outgoing { key: Some(b"key".into()), value: Some(b"abc".into()), ..Outgoing::default() };
        letter.add_header("trace", "1");
        letter.add_header(MESSAGE_ID, "push/0/1");
        let large = refused(Refusal::TooLarge);

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
    fn a_time_is_left_out_once_and_a_key_is_given_where_there_is_none() {
        let mut letter = Outgoing { timestamp_ms: Some(7), ..Outgoing::default() };
        letter.add_header(MESSAGE_ID, "push/0/1");
        let letter = fit(letter, &refused(Refusal::Timestamp)).expect("without its time");
        assert_eq!((letter.timestamp_ms, fit(letter.clone(), &refused(Refusal::Timestamp))), (None, None));
        let letter = fit(letter, &refused(Refusal::Other)).expect("with a key");
        assert_eq!(
            (letter.key.as_deref(), names(&letter)),
            (Some(&b"push/0/1"[..]), vec![MESSAGE_ID, KEY_ADDED])
        );
        assert_eq!(fit(letter, &refused(Refusal::Other)), None);
    }
}
