//! A batch as filters see it, in columns: all texts concatenated into one and all bodies into
//! another, so that a batch crosses the component boundary with as few allocations in the plugin as
//! one message.

use crate::message::{Audience, Message};
use crate::wasm::bindings::exports::halley::policy::{filter, filter_columns as columns, retention};
use crate::wasm::bindings::halley::policy::types;
use crate::wasm::string_column::{BytesColumn, StringColumn};

/// The messages of a batch.
#[derive(Debug)]
pub(crate) struct MessageColumns {
    rows: Vec<columns::Row>,
    texts: StringColumn,
    blobs: BytesColumn,
}

impl MessageColumns {
    pub(crate) fn of(messages: &[&Message]) -> Self {
        let bodies = messages.iter().map(|message| message.body.len()).sum();
        let mut batch = Self {
            rows: Vec::with_capacity(messages.len()),
            texts: StringColumn::with_capacity(2 * messages.len()),
            blobs: BytesColumn::with_capacity(messages.len(), bodies),
        };
        for message in messages {
            batch.push(message);
        }
        batch
    }

    fn push(&mut self, message: &Message) {
        let (audience, server, room, speed) = match &message.audience {
            Audience::Keys { server, .. } => {
                (types::Audience::Keys, server.as_deref().unwrap_or_default(), "", 0)
            }
            Audience::Room(room) => (types::Audience::Room, "", room.as_str(), 0),
            Audience::Everyone { speed } => (types::Audience::Everyone, "", "", *speed),
        };
        self.texts.push(server);
        self.texts.push(room);
        let mut keys = 0;
        if let Audience::Keys { keys: named, .. } = &message.audience {
            named.iter().for_each(|key| self.texts.push(key));
            keys = named.len() as u32;
        }
        let record = &message.record;
        for header in &record.headers {
            self.texts.push(header.name_text());
            self.blobs.push(header.value.as_deref().unwrap_or_default());
        }
        self.blobs.push(&message.body);
        self.rows.push(columns::Row {
            offset: record.origin.offset,
            timestamp_ms: record.timestamp_ms.unwrap_or(0),
            audience,
            operation: message.operation,
            speed,
            keys,
            headers: record.headers.len() as u32,
        });
    }

    /// The batch in the contract's type.
    pub(crate) fn lend(&self) -> columns::Batch<'_> {
        let Self { rows, texts, blobs } = self;
        columns::Batch {
            rows,
            texts: columns::Texts { joined: &texts.joined, ends: &texts.ends },
            blobs: columns::Blobs { joined: &blobs.joined, ends: &blobs.ends },
        }
    }
}

/// The rows in the type of `retention`, which is the same but belongs to another interface.
pub(crate) struct RetentionRows(Vec<retention::Row>);

impl RetentionRows {
    pub(crate) fn of(batch: &MessageColumns) -> Self {
        let row = |row: &columns::Row| {
            let columns::Row { offset, timestamp_ms, audience, operation, speed, keys, headers } = *row;
            retention::Row { offset, timestamp_ms, audience, operation, speed, keys, headers }
        };
        Self(batch.rows.iter().map(row).collect())
    }

    /// The batch in the contract's type.
    pub(crate) fn lend<'a>(&'a self, batch: &'a MessageColumns) -> retention::Batch<'a> {
        let MessageColumns { texts, blobs, .. } = batch;
        retention::Batch {
            rows: &self.0,
            texts: retention::Texts { joined: &texts.joined, ends: &texts.ends },
            blobs: retention::Blobs { joined: &blobs.joined, ends: &blobs.ends },
        }
    }
}

/// Converts a verdict to the type of `filter`.
pub(crate) fn verdict(verdict: columns::Verdict) -> filter::Verdict {
    match verdict {
        columns::Verdict::Pass => filter::Verdict::Pass,
        columns::Verdict::Drop(reason) => filter::Verdict::Drop(reason),
        columns::Verdict::DeadLetter(reason) => filter::Verdict::DeadLetter(reason),
        columns::Verdict::Amend(amendment) => {
            let columns::Amendment { body, operation, room, keys, only, except, also, once } = amendment;
            let once = once.into_iter().map(|columns::Once { key, ttl_ms }| filter::Once { key, ttl_ms });
            let once = once.collect();
            filter::Verdict::Amend(filter::Amendment {
                body,
                operation,
                room,
                keys,
                only,
                except,
                also,
                once,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Header, MessageId, Origin, Record};
    use crate::wasm::lower::with_messages;

    fn messages() -> impl Strategy<Value = Message> {
        let text = || "[a-z0-9_安静]{0,9}";
        let audience = prop_oneof![
            text().prop_map(|room| Audience::Room(room.into())),
            any::<i32>().prop_map(|speed| Audience::Everyone { speed }),
            (proptest::option::of(text()), vec(text(), 1..4)).prop_map(|(server, keys)| Audience::Keys {
                server: server.map(Into::into),
                keys: keys.into_iter().map(Into::into).collect(),
            }),
        ];
        let bytes = || vec(any::<u8>(), 0..20);
        let header = (text(), proptest::option::of(bytes()))
            .prop_map(|(name, value)| Header { name: name.into(), value: value.map(Into::into) });
        let record = (any::<i64>(), proptest::option::of(any::<i64>()), vec(header, 0..3));
        (audience, record, any::<i32>(), bytes()).prop_map(|(audience, record, operation, body)| {
            let (offset, timestamp_ms, headers) = record;
            let origin = Origin { topic: "push".into(), partition: 0, offset };
            let record = Record { origin, timestamp_ms, key: None, value: None, headers, trusted: false };
            let id = MessageId::from("id");
            Message { record: Arc::new(record), id, audience, operation, body: body.into() }
        })
    }

    /// What a plugin reads from columns, as text.
    fn read(batch: &columns::Batch<'_>) -> Vec<String> {
        fn next<'a, T>(
            joined: &'a T,
            ends: &'a [u32],
        ) -> impl FnMut() -> &'a <T as std::ops::Index<std::ops::Range<usize>>>::Output
        where
            T: std::ops::Index<std::ops::Range<usize>> + ?Sized,
        {
            let (mut begin, mut ends) = (0, ends.iter());
            move || {
                let end = *ends.next().expect("one for each") as usize;
                &joined[std::mem::replace(&mut begin, end)..end]
            }
        }
        let mut text = next(batch.texts.joined, batch.texts.ends);
        let mut blob = next(batch.blobs.joined, batch.blobs.ends);
        let mut read = Vec::new();
        for row in batch.rows {
            let (server, room) = (text(), text());
            let keys: Vec<&str> = (0..row.keys).map(|_| text()).collect();
            let names: Vec<&str> = (0..row.headers).map(|_| text()).collect();
            let headers: Vec<_> = names.into_iter().map(|name| (name, blob())).collect();
            let columns::Row { offset, timestamp_ms, audience, operation, speed, .. } = row;
            let (keys, headers, body) = (keys, headers, blob());
            read.push(format!(
                "{offset} {timestamp_ms} {audience:?} {operation} {speed} {server} {room} {keys:?} {headers:?} {body:?}"
            ));
        }
        read
    }

    fn in_words(message: &types::Message<'_>) -> String {
        let types::Message { offset, timestamp_ms, audience, operation, speed, .. } = message;
        let types::Message { server, room, keys, headers, body, .. } = message;
        let headers: Vec<_> = headers.iter().map(|header| (header.name, header.value)).collect();
        format!(
            "{offset} {timestamp_ms} {audience:?} {operation} {speed} {server} {room} {keys:?} {headers:?} {body:?}"
        )
    }

    proptest! {
        #[test]
        fn columns_equal_records(messages in vec(messages(), 0..6)) {
            let messages: Vec<&Message> = messages.iter().collect();
            let records: Vec<String> =
                with_messages(&messages, |records| records.iter().map(in_words).collect());
            prop_assert_eq!(read(&MessageColumns::of(&messages).lend()), records);
        }
    }
}
