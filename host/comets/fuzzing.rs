//! Checks the calls of any message by decoding them with the types that comets use.

use bytes::{Buf, Bytes};
use prost::Message as _;

use super::message_run::id_list;
use super::proto::goim;
use super::wire::{Content, Dialect, Payload, Request, frames};
use crate::message::{Audience, CallTarget, ConnectionId, Message, RoomId};

/// goim's frame header, in bytes.
const HEADER: usize = 16;

/// Checks the calls that this message would be, in both dialects.
pub(crate) fn check(message: &Message) {
    for dialect in [Dialect::Chatroom, Dialect::Goim] {
        let content = Content {
            operation: message.operation,
            body: &message.body,
            sent_ms: message.record.timestamp_ms.unwrap_or_default(),
            trace: message.record.trace_context(),
            replayed: false,
        };
        let payload = Payload::new(dialect, &content);
        if let Some(id) = id_list(std::iter::once(&message.id)) {
            assert_eq!(id.as_bytes(), message.id.as_str().as_bytes());
        }
        let one = [message];
        match &message.audience {
            Audience::Room(room) => {
                check_room(dialect, &dialect.request(&CallTarget::Room(room.clone()), &payload), room, &one);
                if dialect == Dialect::Goim {
                    let frames = [frames([&payload].into_iter()), frames([&payload].into_iter())];
                    let twice = dialect.merged(room, frames.into());
                    check_room(dialect, &twice, room, &[message, message]);
                }
            }
            Audience::Keys { keys, .. } => {
                let ids: Vec<ConnectionId> = keys.iter().map(|key| ConnectionId::from(&**key)).collect();
                let request = dialect.request(&CallTarget::Connections(ids), &payload);
                let read = goim::PushMsgReq::decode(request.body.message()).expect("a PushMsgReq");
                assert!(read.keys.iter().map(String::as_str).eq(keys.iter().map(|key| &**key)));
                assert_eq!(read.proto_op, message.operation);
                check_proto(dialect, read.proto, &one);
            }
            Audience::Everyone { speed } => {
                let request = dialect.request(&CallTarget::Everyone { speed: *speed }, &payload);
                let read = goim::BroadcastReq::decode(request.body.message()).expect("a BroadcastReq");
                assert_eq!((read.proto_op, read.speed), (message.operation, *speed));
                check_proto(dialect, read.proto, &one);
            }
        }
    }
}

fn check_room(dialect: Dialect, request: &Request, room: &RoomId, messages: &[&Message]) {
    let read = goim::BroadcastRoomReq::decode(request.body.message()).expect("a BroadcastRoomReq");
    assert_eq!(read.room_id, room.as_str());
    check_proto(dialect, read.proto, messages);
}

fn check_proto(dialect: Dialect, proto: Option<goim::Proto>, messages: &[&Message]) {
    let goim::Proto { ver, op, seq, mut body } = proto.expect("every call has one");
    assert_eq!((ver, seq), (1, 0));
    if dialect == Dialect::Chatroom {
        assert_eq!((op, &body), (messages[0].operation, &messages[0].body));
        return;
    }
    assert_eq!(op, 9, "OpRaw");
    for message in messages {
        assert_eq!(frame(&mut body), (message.operation, message.body.clone()));
    }
    assert!(body.is_empty(), "bytes behind the last frame");
}

/// Reads one frame as goim's clients do.
fn frame(rest: &mut Bytes) -> (i32, Bytes) {
    let length = rest.get_u32() as usize;
    assert_eq!((rest.get_u16(), rest.get_u16()), (HEADER as u16, 1), "header length and version");
    let (operation, seq) = (rest.get_i32(), rest.get_i32());
    assert_eq!(seq, 0);
    (operation, rest.split_to(length - HEADER))
}
