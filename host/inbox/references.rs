//! References: entries of inboxes without a body, for messages that are in the history of their room.
//!
//! A message to a room with many absent members costs a small entry for each of them. A page has the
//! messages themselves: they are looked up in the histories, and elsewhere if Redis has dropped them. An entry
//! whose message is nowhere any more keeps its place and its id, and is marked as missing.
//!
//! Pure.

use bytes::Bytes;

use super::cursor::Position;
use super::entry::{BodyReference, StoredMessage};
use crate::message::{MessageId, RoomId};

/// Bytes of the messages that are looked up for one page, about, unless the first alone has more.
const MOST_BYTES: u64 = 1 << 20;

/// A message to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The room that has it in its history.
    pub room: RoomId,
    /// Its place there.
    pub place: Position,
    /// Its id.
    pub id: MessageId,
    /// When it was sent.
    pub sent_ms: i64,
}

/// Leaves the entries whose messages can be looked up at once. Returns whether these are all.
pub(super) fn truncate<E>(entries: &mut Vec<E>, message: impl Fn(&E) -> Option<&StoredMessage>) -> bool {
    let mut bytes = 0_u64;
    let exceeds = |entry: &E| {
        let size = message(entry).and_then(|message| message.reference).map_or(0, |reference| reference.size);
        let is_first = bytes == 0;
        bytes = bytes.saturating_add(size);
        bytes > MOST_BYTES && !is_first
    };
    let Some(most) = entries.iter().position(exceeds) else { return true };
    entries.truncate(most);
    false
}

/// What has to be looked up for these messages; those that have expired are not shown.
pub(super) fn references<'a>(
    messages: impl Iterator<Item = &'a mut StoredMessage>,
    now_ms: i64,
) -> (Vec<&'a mut StoredMessage>, Vec<Reference>) {
    let reference = |message: &'a mut StoredMessage| {
        let BodyReference { place, .. } = message.reference.filter(|_| message.expires_ms > now_ms)?;
        let (room, id, sent_ms) = (message.room.clone()?, message.id.clone(), message.sent_ms);
        Some((message, Reference { room, place, id, sent_ms }))
    };
    messages.filter_map(reference).unzip()
}

/// Gives messages the bodies that were found.
pub(super) fn fill<'a>(
    messages: impl Iterator<Item = &'a mut StoredMessage>,
    bodies: impl Iterator<Item = Option<Bytes>>,
) {
    for (message, body) in messages.zip(bodies) {
        if let Some(body) = body {
            (message.body, message.reference) = (body, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(size: Option<u64>) -> StoredMessage {
        let place = Position { ms: 1, number: 0 };
        StoredMessage {
            id: "push/0/1/0000000000000000".into(),
            operation: 4,
            room: Some("im_1".into()),
            body: Bytes::new(),
            sent_ms: 1,
            expires_ms: 10,
            cause: None,
            reference: size.map(|size| BodyReference { place, size }),
        }
    }

    proptest! {
        #[test]
        fn what_is_read_at_once_is_bounded_and_something(
            sizes in prop::collection::vec(prop::option::of(0_u64..1_500_000), 1..40)
        ) {
            let mut messages: Vec<_> = sizes.iter().map(|size| message(*size)).collect();
            let are_all = truncate(&mut messages, |message: &StoredMessage| Some(message));
            let count = messages.len();
            prop_assert!(count > 0 && are_all == (count == sizes.len()));
            let bytes: u64 = sizes[..count].iter().flatten().sum();
            let first = sizes.iter().flatten().find(|size| **size > 0).copied().unwrap_or_default();
            prop_assert!(bytes <= MOST_BYTES.max(first));
            prop_assert!(count == sizes.len() || bytes + sizes[count].unwrap_or_default() > MOST_BYTES);
        }
    }

    #[test]
    fn what_is_not_found_stays_a_reference() {
        let mut messages = [message(Some(3)), message(None), message(Some(3)), message(Some(3))];
        messages[3].expires_ms = 1;
        let (found, wanted) = references(messages.iter_mut(), 5);
        assert_eq!((found.len(), wanted.len()), (2, 2), "expired messages are not looked up");
        fill(found.into_iter(), [Some(Bytes::from_static(b"abc")), None].into_iter());
        let missing = messages.each_ref().map(|message| message.is_missing());
        assert_eq!(missing, [false, false, true, true]);
        assert_eq!(messages[0].body, "abc");
    }
}
