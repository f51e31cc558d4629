//! Converts our plain types to the types of the contract. Nothing is copied: plugins see borrowed
//! data.

use crate::decision::{AbsenceCause, AbsentRecipient};
use crate::message::{Audience, Message};
use crate::wasm::bindings::exports::halley::policy::offline;
use crate::wasm::bindings::halley::policy::types;

/// Calls `ask` with the messages as a plugin sees them.
pub(crate) fn with_messages<R>(messages: &[&Message], ask: impl FnOnce(&[types::Message<'_>]) -> R) -> R {
    // The lists inside of messages must live as long as the call.
    let keys: Vec<Vec<&str>> = messages.iter().map(|message| keys(message)).collect();
    let headers: Vec<Vec<types::Header<'_>>> = messages.iter().map(|message| headers(message)).collect();
    let mut asked = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        asked.push(self::message(message, &keys[at], &headers[at]));
    }
    ask(&asked)
}

fn keys(message: &Message) -> Vec<&str> {
    match &message.audience {
        Audience::Keys { keys, .. } => keys.iter().map(|key| &**key).collect(),
        Audience::Room(_) | Audience::Everyone { .. } => Vec::new(),
    }
}

fn headers(message: &Message) -> Vec<types::Header<'_>> {
    let headers = &message.record.headers;
    headers
        .iter()
        .map(|header| types::Header {
            name: header.name_text(),
            value: header.value.as_deref().unwrap_or_default(),
        })
        .collect()
}

fn message<'a>(
    message: &'a Message,
    keys: &'a [&'a str],
    headers: &'a [types::Header<'a>],
) -> types::Message<'a> {
    let (audience, room, server, speed) = match &message.audience {
        Audience::Keys { server, .. } => {
            (types::Audience::Keys, "", server.as_deref().unwrap_or_default(), 0)
        }
        Audience::Room(room) => (types::Audience::Room, room.as_str(), "", 0),
        Audience::Everyone { speed } => (types::Audience::Everyone, "", "", *speed),
    };
    types::Message {
        offset: message.record.origin.offset,
        timestamp_ms: message.record.timestamp_ms.unwrap_or(0),
        audience,
        operation: message.operation,
        speed,
        server,
        room,
        keys,
        headers,
        body: &message.body,
    }
}

/// An absent recipient, as a plugin sees it.
pub(crate) fn absent(absent: &AbsentRecipient) -> offline::Absent<'_> {
    let cause = match absent.cause {
        AbsenceCause::NotOnline => offline::Cause::NotOnline,
        AbsenceCause::NoConnection => offline::Cause::NoConnection,
        AbsenceCause::CometUnreachable => offline::Cause::CometUnreachable,
    };
    let connection = absent.connection.as_ref().map_or("", |connection| connection.as_str());
    offline::Absent { user: absent.user.as_str(), connection, cause }
}
