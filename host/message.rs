//! The data that passes through the gateway: the Kafka record, the message inside it, and the ids
//! (room, comet, connection, user) that all other modules use.
//!
//! Pure: this module depends on no other and does no I/O. For any bytes in a record, decoding
//! returns a [`Message`] or a [`DecodeError`], and never panics.

mod comet_addr;
mod copy;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod named_by;
mod names;
mod proof;
mod push;
mod record;
mod redrive_users;
mod trace_context;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use prost::Message as _;

pub use comet_addr::{Address, CometAddr, InvalidAddress};
pub use copy::{
    HEADERS_LEFT_OUT, KEY_LEFT_OUT, MalformedHeaders, RawHeader, RawRecord, RecordLimits, VALUE_LEFT_OUT,
    note as left_out_note, note_headers as left_out_headers_note,
};
pub use named_by::NamedBy;
pub use names::{
    ConnectionId, MESSAGE_ID, MessageId, ORIGIN_TOPIC, REDRIVE_COMETS, REDRIVE_USERS, REPLAYED, RoomId,
    STAGE, TRACEPARENT, TRACESTATE, UserId,
};
pub use proof::{ClaimedProof, PROOF, ProofContent, RedriveClaim, RedriveKey};
pub use record::{Header, Origin, Record};
pub use redrive_users::{RedriveUsers, list as list_of_users};
pub use trace_context::TraceContext;

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// PUSH: these connections or users.
    Keys {
        /// The comet that holds the keys, if the producer knows it: a name or an address.
        server: Option<Arc<str>>,
        /// Connection ids or user ids; never empty.
        keys: Vec<Arc<str>>,
    },
    /// ROOM: everyone in this room.
    Room(RoomId),
    /// BROADCAST: everyone who is connected.
    Everyone {
        /// Messages per second over all comets; 0 means no limit.
        speed: i32,
    },
}

/// A decoded message. Policies may amend everything but its record and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The record that it came in, untouched.
    pub record: Arc<Record>,
    /// Identifies it across redelivery.
    pub id: MessageId,
    /// Whom it is for.
    pub audience: Audience,
    /// The protocol operation that clients receive.
    pub operation: i32,
    /// The body, opaque to the gateway.
    pub body: Bytes,
}

/// Why a record is not a message. Its text is the reason in the dead-letter record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record has no value.
    #[error("the record has no value (a tombstone)")]
    NoValue,
    /// A part of the record was too large to be read.
    #[error("a part of the record was left out: {0}")]
    LeftOut(String),
    /// The value is not a `PushMsg`.
    #[error("the value is not a PushMsg: {0}")]
    Malformed(String),
    /// `type` is not PUSH, ROOM or BROADCAST.
    #[error("unknown type {0}; known are PUSH (0), ROOM (1) and BROADCAST (2)")]
    UnknownType(i32),
    /// A ROOM message names no room.
    #[error("a ROOM message without a room")]
    NoRoom,
    /// A PUSH message names no keys, or an empty one.
    #[error("a PUSH message without keys")]
    NoKeys,
    /// A PUSH message names more keys than are allowed.
    #[error("a PUSH message with {keys} keys; `[delivery] max_keys` is {allowed}")]
    TooManyKeys {
        /// How many it names.
        keys: usize,
        /// How many it may name.
        allowed: usize,
    },
}

/// Decodes messages. Those of one room share its name, so it is for messages that are processed together.
#[derive(Debug)]
pub struct Decoder {
    max_keys: usize,
    rooms: HashSet<RoomId, RandomState>,
    push: push::PushMsg,
    /// A buffer for ids.
    id: String,
}

impl Decoder {
    /// With a limit on the keys of a message.
    pub fn new(max_keys: usize) -> Self {
        Self { max_keys, rooms: HashSet::default(), push: push::PushMsg::default(), id: String::new() }
    }

    /// Decodes the `PushMsg` in a record's value.
    ///
    /// # Errors
    /// When the value is not a `PushMsg`, or has no recipients or too many keys.
    pub fn decode(&mut self, record: Arc<Record>) -> Result<Message, DecodeError> {
        let left_out = [VALUE_LEFT_OUT, KEY_LEFT_OUT, HEADERS_LEFT_OUT].into_iter();
        if let Some(why) = left_out.filter(|_| record.trusted).find_map(|name| record.header(name)) {
            return Err(DecodeError::LeftOut(String::from_utf8_lossy(why).into_owned()));
        }
        let value = record.value.clone().ok_or(DecodeError::NoValue)?;
        let keys = push::count_keys(&value);
        if keys > self.max_keys {
            return Err(DecodeError::TooManyKeys { keys, allowed: self.max_keys });
        }
        let push = &mut self.push;
        push.decode(value, keys).map_err(|error| DecodeError::Malformed(error.to_string()))?;
        let (body, keys) = (std::mem::take(&mut push.msg), std::mem::take(&mut push.keys));
        let audience = match wire::push_msg::Type::try_from(push.kind) {
            Ok(wire::push_msg::Type::Push) => keys_audience(&push.server, keys)?,
            Ok(wire::push_msg::Type::Room) if push.room.is_empty() => return Err(DecodeError::NoRoom),
            Ok(wire::push_msg::Type::Room) => Audience::Room(shared(&mut self.rooms, &push.room)),
            Ok(wire::push_msg::Type::Broadcast) => Audience::Everyone { speed: push.speed },
            Err(_) => return Err(DecodeError::UnknownType(push.kind)),
        };
        let id = record.message_id_with(&mut self.id);
        Ok(Message { record, id, audience, operation: push.operation, body })
    }
}

fn shared(rooms: &mut HashSet<RoomId, RandomState>, room: &str) -> RoomId {
    if let Some(room) = rooms.get(room) {
        return room.clone();
    }
    let room = RoomId::from(room);
    rooms.insert(room.clone());
    room
}

impl Message {
    /// Decodes the `PushMsg` in one record's value.
    ///
    /// # Errors
    /// When the value is not a `PushMsg`, or has no recipients.
    pub fn decode(record: Arc<Record>) -> Result<Self, DecodeError> {
        Decoder::new(usize::MAX).decode(record)
    }

    /// The room, if the message is for one.
    pub fn room(&self) -> Option<&RoomId> {
        match &self.audience {
            Audience::Room(room) => Some(room),
            Audience::Keys { .. } | Audience::Everyone { .. } => None,
        }
    }
}

fn keys_audience(server: &str, keys: Vec<Arc<str>>) -> Result<Audience, DecodeError> {
    if keys.is_empty() || keys.iter().any(|key| key.is_empty()) {
        return Err(DecodeError::NoKeys);
    }
    let server = (!server.is_empty()).then(|| Arc::from(server));
    Ok(Audience::Keys { server, keys })
}

/// Encodes a `PushMsg`, as producers do: for the demo, `halley explain`, examples and tests.
pub fn encode(audience: &Audience, operation: i32, body: &[u8]) -> Bytes {
    let mut push = wire::PushMsg { operation, msg: Bytes::copy_from_slice(body), ..Default::default() };
    match audience {
        Audience::Keys { server, keys } => {
            push.set_type(wire::push_msg::Type::Push);
            push.server = server.as_deref().unwrap_or_default().to_owned();
            push.keys = keys.iter().map(|key| key.to_string()).collect();
        }
        Audience::Room(room) => {
            push.set_type(wire::push_msg::Type::Room);
            push.room = room.to_string();
        }
        Audience::Everyone { speed } => {
            push.set_type(wire::push_msg::Type::Broadcast);
            push.speed = *speed;
        }
    }
    push.encode_to_vec().into()
}

/// What one call to a comet is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallTarget {
    /// All of the comet's connections in a room: `BroadcastRoom`.
    Room(RoomId),
    /// These connections: `PushMsg`.
    Connections(Vec<ConnectionId>),
    /// Every connection of the comet: `Broadcast`.
    Everyone {
        /// Messages per second for this comet; 0 means no limit.
        speed: i32,
    },
}

/// The generated protobuf type.
mod wire {
    #![allow(missing_docs, unreachable_pub, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/halley.push.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(value: Option<Bytes>) -> Arc<Record> {
        Arc::new(Record {
            origin: Origin { topic: "push".into(), partition: 3, offset: 42 },
            timestamp_ms: Some(7),
            key: None,
            value,
            headers: Vec::new(),
            trusted: false,
        })
    }

    #[test]
    fn a_room_message_is_read() {
        // Encoded independently of our own encoder, after goim's logic.proto.
        let bytes: &[u8] = b"\x08\x01\x10\x05\x2a\x09video_123\x3a\x02hi";
        let message = Message::decode(record(Some(Bytes::from_static(bytes)))).expect("decodes");
        assert_eq!(message.audience, Audience::Room("video_123".into()));
        assert_eq!(message.operation, 5);
        assert_eq!(message.body, "hi");
        assert_eq!(message.id.as_str(), "push/3/42/6e458567d135a3f7");
    }

    #[test]
    fn nothing_is_left_of_the_message_that_was_decoded_before() {
        let audiences = [
            Audience::Keys { server: Some("comet".into()), keys: vec!["a".into()] },
            Audience::Room("r".into()),
            Audience::Everyone { speed: 3 },
            Audience::Room("r".into()),
            Audience::Keys { server: None, keys: vec!["b".into()] },
            Audience::Everyone { speed: 0 },
        ];
        let mut decoder = Decoder::new(2);
        for (at, audience) in audiences.into_iter().enumerate() {
            let body = if at % 2 == 0 { "body" } else { "" };
            let record = record(Some(encode(&audience, at as i32, body.as_bytes())));
            let message = decoder.decode(Arc::clone(&record)).expect("decodes");
            assert_eq!((&message.audience, &*message.body), (&audience, body.as_bytes()));
            assert_eq!(Ok(message), Message::decode(record));
            assert!(decoder.decode(self::record(Some(Bytes::from_static(b"\xff\xff")))).is_err());
        }
    }

    #[test]
    fn more_keys_than_allowed_are_rejected() {
        let keys = Audience::Keys { server: None, keys: vec!["a".into(), "b".into()] };
        let record = record(Some(encode(&keys, 4, b"")));
        assert!(Decoder::new(2).decode(Arc::clone(&record)).is_ok());
        let refused = Decoder::new(1).decode(record);
        assert_eq!(refused, Err(DecodeError::TooManyKeys { keys: 2, allowed: 1 }));
    }

    #[test]
    fn a_message_without_recipients_is_rejected() {
        let of = |bytes: &'static [u8]| Message::decode(record(Some(Bytes::from_static(bytes))));
        assert_eq!(Message::decode(record(None)), Err(DecodeError::NoValue));
        assert_eq!(of(b"\x08\x01"), Err(DecodeError::NoRoom));
        assert_eq!(of(b""), Err(DecodeError::NoKeys));
        assert_eq!(of(b"\x32\x00"), Err(DecodeError::NoKeys));
        assert_eq!(of(b"\x08\x09"), Err(DecodeError::UnknownType(9)));
        assert!(matches!(of(b"\xff\xff\xff"), Err(DecodeError::Malformed(_))));
    }

    fn audiences() -> impl Strategy<Value = Audience> {
        let text = "[a-z0-9_:]{1,12}";
        prop_oneof![
            text.prop_map(|room| Audience::Room(room.into())),
            any::<i32>().prop_map(|speed| Audience::Everyone { speed }),
            (proptest::option::of(text), proptest::collection::vec(text, 1..5)).prop_map(|(server, keys)| {
                Audience::Keys {
                    server: server.map(Arc::from),
                    keys: keys.into_iter().map(Arc::from).collect(),
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn decoding_reverses_encoding(
            audience in audiences(), operation: i32, body in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let bytes = encode(&audience, operation, &body);
            let message = Message::decode(record(Some(bytes))).expect("decodes");
            prop_assert_eq!((message.audience, message.operation), (audience, operation));
            prop_assert_eq!(&message.body[..], &body[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Message::decode(record(Some(bytes.into())));
        }
    }
}
