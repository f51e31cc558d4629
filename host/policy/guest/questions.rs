//! Our plain types as plugins get them. Nothing is copied: what plugins see borrows.

use crate::decision::{Absent, Cause};
use crate::membership::{Grouping, Place};
use crate::message::{Audience, Message};
use crate::policy::guest::bindings::exports::halley::policy::{grouping, offline};
use crate::policy::guest::bindings::halley::policy::types;

/// Calls `ask` with the messages as a plugin sees them.
pub(in crate::policy) fn with_messages<R>(
    messages: &[&Message],
    ask: impl FnOnce(&[types::Message<'_>]) -> R,
) -> R {
    // The lists inside of messages have to live somewhere while the call lasts.
    let keys: Vec<Vec<&str>> = messages.iter().map(|message| keys(message)).collect();
    let headers: Vec<Vec<types::Header<'_>>> = messages.iter().map(|message| headers(message)).collect();
    let mut asked = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        asked.push(self::message(message, &keys[at], &headers[at]));
    }
    ask(&asked)
}

/// Calls `ask` with one message as a plugin sees it.
pub(in crate::policy) fn with_message<R>(message: &Message, ask: impl FnOnce(types::Message<'_>) -> R) -> R {
    let keys = keys(message);
    let headers = headers(message);
    ask(self::message(message, &keys, &headers))
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
            name: &header.name,
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

/// A room as a plugin sees it: the members that have a comet, as earlier plugins left them.
pub(in crate::policy) struct Room<'a> {
    pub(in crate::policy) comets: Vec<&'a str>,
    pub(in crate::policy) connections: Vec<grouping::Connection<'a>>,
    /// For each of the connections, which member of the grouping it is.
    pub(in crate::policy) members: Vec<u32>,
}

impl<'a> Room<'a> {
    pub(in crate::policy) fn of(grouping: &'a Grouping) -> Self {
        let comets = grouping.comets().iter().map(|comet| comet.as_str()).collect();
        let mut room = Self { comets, connections: Vec::new(), members: Vec::new() };
        for (at, (member, place)) in grouping.members().enumerate() {
            let Place::At(comet) = place else { continue };
            room.connections.push(grouping::Connection {
                id: member.id.as_str(),
                user: member.user.as_ref().map_or("", |user| user.as_str()),
                comet,
                online: member.online,
            });
            // A room has fewer than four billion members.
            room.members.push(at as u32);
        }
        room
    }
}

/// A recipient who is away, as a plugin sees it.
pub(in crate::policy) fn absent(absent: &Absent) -> offline::Absent<'_> {
    let cause = match absent.cause {
        Cause::NotOnline => offline::Cause::NotOnline,
        Cause::NoConnection => offline::Cause::NoConnection,
        Cause::CometUnreachable => offline::Cause::CometUnreachable,
    };
    let connection = absent.connection.as_ref().map_or("", |connection| connection.as_str());
    offline::Absent { user: absent.user.as_str(), connection, cause }
}
