//! Builders of the hooks' arguments.

use std::cell::Cell;

use crate::bindings::grouping_columns::exports::halley::policy::grouping_columns as columns;
use crate::room::{self, Connection};
use crate::{Absent, Audience, Cause, Header, Message};

/// A message to everyone in a room.
pub fn room(id: &str) -> MessageBuilder {
    let mut builder = MessageBuilder::new(Audience::Room);
    builder.0.room = id.to_owned();
    builder
}

/// A message to connections or users.
pub fn keys<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> MessageBuilder {
    let mut builder = MessageBuilder::new(Audience::Keys);
    builder.0.keys = keys.into_iter().map(Into::into).collect();
    builder
}

/// A message to all connected users.
pub fn everyone() -> MessageBuilder {
    MessageBuilder::new(Audience::Everyone)
}

/// Builds a message: operation 4, an empty body, and a unique offset. Accepted wherever a message is
/// expected.
#[derive(Clone, Debug)]
pub struct MessageBuilder(Message);

thread_local! {
    static NEXT_OFFSET: Cell<i64> = const { Cell::new(0) };
}

impl MessageBuilder {
    fn new(audience: Audience) -> Self {
        Self(Message {
            offset: NEXT_OFFSET.replace(NEXT_OFFSET.get() + 1),
            timestamp_ms: 0,
            audience,
            operation: 4,
            speed: 0,
            server: String::new(),
            room: String::new(),
            keys: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
        })
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = body.into();
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.0.headers.push(Header { name: name.to_owned(), value: value.into() });
        self
    }

    /// Sets the operation.
    pub fn operation(mut self, operation: i32) -> Self {
        self.0.operation = operation;
        self
    }

    /// Sets the offset.
    pub fn offset(mut self, offset: i64) -> Self {
        self.0.offset = offset;
        self
    }

    /// Sets the timestamp, in milliseconds since 1970-01-01 UTC; 0 is none.
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.0.timestamp_ms = timestamp_ms;
        self
    }

    /// Sets the speed of a message to everyone, in messages per second.
    pub fn speed(mut self, speed: i32) -> Self {
        self.0.speed = speed;
        self
    }

    /// Sets the comet of a message to keys.
    pub fn server(mut self, server: &str) -> Self {
        self.0.server = server.to_owned();
        self
    }

    /// Builds the message.
    pub fn build(self) -> Message {
        self.0
    }
}

impl From<MessageBuilder> for Message {
    fn from(builder: MessageBuilder) -> Self {
        builder.build()
    }
}

/// An online connection without a user, at the comet with this address.
pub fn connection(id: &str, comet: &str) -> ConnectionBuilder {
    ConnectionBuilder { id: id.to_owned(), user: String::new(), comet: comet.to_owned(), online: true }
}

/// Builds a connection.
#[derive(Clone, Debug)]
pub struct ConnectionBuilder {
    id: String,
    user: String,
    comet: String,
    online: bool,
}

impl ConnectionBuilder {
    /// Sets the user.
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        self
    }

    /// Marks the user as offline.
    pub fn away(mut self) -> Self {
        self.online = false;
        self
    }
}

/// The comets in order of first appearance, and the connections that refer to them, like the gateway
/// passes a room.
pub(super) fn grouped(builders: &[ConnectionBuilder]) -> (Vec<String>, columns::Connections) {
    let mut comets = Vec::<String>::new();
    let mut connections = columns::Connections::default();
    for ConnectionBuilder { id, user, comet, online } in builders {
        let known = comets.iter().position(|address| address == comet);
        let comet = known.unwrap_or_else(|| {
            comets.push(comet.clone());
            comets.len() - 1
        });
        room::push(&mut connections, Connection { id, user, comet: comet as u32, online: *online });
    }
    (comets, connections)
}

/// An absent recipient. Without a connection, unless the cause is that its comet was unreachable:
/// then the connection has the user's id.
pub fn absent(user: &str, cause: Cause) -> Absent {
    let connection = if cause == Cause::CometUnreachable { user } else { "" };
    Absent { user: user.to_owned(), connection: connection.to_owned(), cause }
}
