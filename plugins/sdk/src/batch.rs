//! A batch as filters see it. The gateway passes columns, with all texts joined into one and all
//! bodies into another; here they are turned into messages, in memory that is reused from batch to
//! batch.

use std::cell::RefCell;

use crate::Message;
use crate::bindings::filter::exports::halley::policy::filter as records;
use crate::bindings::filter_columns::exports::halley::policy::filter_columns as columns;

/// How much memory is kept from one batch for the next one, in bytes; more is released.
const MAX_KEPT_BYTES: usize = 4 * 1024 * 1024;

/// The messages of the previous batch, to be overwritten.
pub(crate) struct Messages(RefCell<Vec<Message>>);

impl Messages {
    /// Without messages.
    pub(crate) const fn empty() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Lends the messages of a batch.
    pub(crate) fn with<R>(&self, batch: &columns::Batch, body: impl FnOnce(&[Message]) -> R) -> R {
        let mut messages = self.0.borrow_mut();
        read(batch, &mut messages);
        let result = body(&messages[..batch.rows.len()]);
        // Each message keeps room for the largest one that was stored in its slot.
        if messages.iter().map(room_of).sum::<usize>() > MAX_KEPT_BYTES {
            *messages = Vec::new();
        }
        result
    }
}

/// The approximate memory of a message, in bytes.
fn room_of(message: &Message) -> usize {
    let lists = message.keys.capacity() * size_of::<String>()
        + message.headers.capacity() * size_of::<crate::Header>();
    message.body.capacity() + message.room.capacity() + message.server.capacity() + lists
}

/// Overwrites the messages with a batch, beginning with the first one.
fn read(batch: &columns::Batch, messages: &mut Vec<Message>) {
    let mut texts = JoinedParts { ends: batch.texts.ends.iter(), begin: 0 };
    let mut blobs = JoinedParts { ends: batch.blobs.ends.iter(), begin: 0 };
    let mut text = || batch.texts.joined.get(texts.next()).unwrap_or_default();
    let mut blob = || batch.blobs.joined.get(blobs.next()).unwrap_or_default();
    if messages.len() < batch.rows.len() {
        messages.resize_with(batch.rows.len(), nothing);
    }
    for (row, message) in batch.rows.iter().zip(messages) {
        message.offset = row.offset;
        message.timestamp_ms = row.timestamp_ms;
        message.audience = row.audience;
        message.operation = row.operation;
        message.speed = row.speed;
        write(&mut message.server, text());
        write(&mut message.room, text());
        message.keys.clear();
        message.keys.extend((0..row.keys).map(|_| text().to_owned()));
        message.headers.clear();
        let name = (0..row.headers).map(|_| text().to_owned());
        message.headers.extend(name.map(|name| crate::Header { name, value: Vec::new() }));
        message.headers.iter_mut().for_each(|header| header.value.extend_from_slice(blob()));
        message.body.clear();
        message.body.extend_from_slice(blob());
    }
}

fn write(place: &mut String, text: &str) {
    place.clear();
    // Copying is a call into the gateway, even of nothing.
    if !text.is_empty() {
        place.push_str(text);
    }
}

fn nothing() -> Message {
    Message {
        offset: 0,
        timestamp_ms: 0,
        audience: crate::Audience::Room,
        operation: 0,
        speed: 0,
        server: String::new(),
        room: String::new(),
        keys: Vec::new(),
        headers: Vec::new(),
        body: Vec::new(),
    }
}

/// Iterates over the parts of a joined value.
struct JoinedParts<'a> {
    ends: std::slice::Iter<'a, u32>,
    begin: usize,
}

impl JoinedParts<'_> {
    /// The range of the next part. Empty after the last one, which a gateway never requests.
    fn next(&mut self) -> std::ops::Range<usize> {
        let end = self.ends.next().map_or(self.begin, |end| *end as usize);
        std::mem::replace(&mut self.begin, end)..end
    }
}

/// Converts a verdict to this shape.
pub(crate) fn verdict(verdict: records::Verdict) -> columns::Verdict {
    match verdict {
        records::Verdict::Pass => columns::Verdict::Pass,
        records::Verdict::Drop(reason) => columns::Verdict::Drop(reason),
        records::Verdict::DeadLetter(reason) => columns::Verdict::DeadLetter(reason),
        records::Verdict::Amend(amendment) => columns::Verdict::Amend(self::amendment(amendment)),
    }
}

fn amendment(amendment: records::Amendment) -> columns::Amendment {
    let records::Amendment { body, operation, room, keys, only, except, also, once } = amendment;
    let once = once.into_iter().map(|records::Once { key, ttl_ms }| columns::Once { key, ttl_ms });
    columns::Amendment { body, operation, room, keys, only, except, also, once: once.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{everyone, keys, room};

    /// Joins messages into columns like the gateway does.
    fn columns_of(messages: &[Message]) -> columns::Batch {
        let mut batch = columns::Batch {
            rows: Vec::new(),
            texts: columns::Texts { joined: String::new(), ends: Vec::new() },
            blobs: columns::Blobs { joined: Vec::new(), ends: Vec::new() },
        };
        for message in messages {
            let names = message.headers.iter().map(|header| &header.name);
            for text in [&message.server, &message.room].into_iter().chain(&message.keys).chain(names) {
                batch.texts.joined.push_str(text);
                batch.texts.ends.push(batch.texts.joined.len() as u32);
            }
            for blob in message.headers.iter().map(|header| &header.value).chain([&message.body]) {
                batch.blobs.joined.extend(blob);
                batch.blobs.ends.push(batch.blobs.joined.len() as u32);
            }
            batch.rows.push(columns::Row {
                offset: message.offset,
                timestamp_ms: message.timestamp_ms,
                audience: message.audience,
                operation: message.operation,
                speed: message.speed,
                keys: message.keys.len() as u32,
                headers: message.headers.len() as u32,
            });
        }
        batch
    }

    #[test]
    fn messages_come_out_of_columns_as_they_were_whatever_was_there_before() {
        let kept = Messages::empty();
        let long =
            room("video_安").body("a long body").header("a", "1").header("a", "").timestamp_ms(7).build();
        let many = keys(["k1", "", "k3"]).server("comet-1").header("b", [0xff]).build();
        let short = everyone().speed(5).operation(9).build();
        let batches: [&[Message]; 4] = [
            &[long.clone(), many.clone(), short.clone()],
            &[short.clone(), long.clone()],
            &[],
            &[many, short, long.clone(), long],
        ];
        for batch in batches {
            kept.with(&columns_of(batch), |messages| assert_eq!(messages, batch));
        }
    }

    #[test]
    fn a_large_batch_is_not_kept() {
        let kept = Messages::empty();
        let large = room("r").body(vec![0; MAX_KEPT_BYTES + 1]).build();
        kept.with(&columns_of(&[large]), |messages| assert_eq!(messages[0].body.len(), MAX_KEPT_BYTES + 1));
        assert_eq!(kept.0.borrow().len(), 0);
    }

    #[test]
    fn what_many_batches_leave_in_different_places_does_not_add_up() {
        let kept = Messages::empty();
        for place in 0..64 {
            let batch: Vec<Message> = (0..64)
                .map(|number| {
                    room("r").body(vec![0; if number == place { MAX_KEPT_BYTES / 8 } else { 1 }]).build()
                })
                .collect();
            kept.with(&columns_of(&batch), |messages| assert_eq!(messages, batch));
            assert!(kept.0.borrow().iter().map(room_of).sum::<usize>() <= MAX_KEPT_BYTES);
        }
    }
}
