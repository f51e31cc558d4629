//! The wire format of calls, in both dialects.
//!
//! Requests are not encoded from generated types, so that a message's body is encoded once for all
//! comets that are called; those that get it by stream do not need this (`stream::frames`). All three requests have their `Proto` as field 2: a payload is that field. A small
//! payload is copied between the fields around it; a large one is sent as a separate piece, so a
//! message of 1 MB that is queued for 200 comets takes 1 MB.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::body::Body;
use super::pending::PendingPermit;
use super::protobuf::{int_len, int32, item_len, put_int, put_item, put_text, text_len};
use super::stream::frames::Outgoing;
use super::trace_metadata::TraceMetadata;
use crate::message::{CallTarget, ConnectionId, MessageId, RoomId, TraceContext};

/// The comets' dialect: the service path and the format of the body.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `/ChatRoom.Comet.Comet/`, the body as it is.
    #[default]
    Chatroom,
    /// `/goim.comet.Comet/`, the body in goim's packet framing.
    Goim,
}

/// The protobuf tags (field number and wire type) of the requests' fields.
const BYTES_1: u8 = 0x0a;
const VARINT_1: u8 = 0x08;
const PROTO: u8 = 0x12;
const VARINT_3: u8 = 0x18;
/// The tags of `Proto`'s own fields.
const PROTO_VER: u8 = 0x08;
const PROTO_OP: u8 = 0x10;
const PROTO_BODY: u8 = 0x22;

/// goim: "the body is made of frames, write it to clients as it is" (`OpRaw`).
const OP_RAW: i32 = 9;
/// The length of goim's frame header.
const FRAME_HEADER: u16 = 16;

/// The approximate overhead of an encoded message: the struct, its id, its frame.
const OVERHEAD: usize = 256;

/// Tags, lengths, version and operation of `Proto`, at most.
const PROTO_OVERHEAD: usize = 28;

/// A message as all its calls carry it.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The protocol operation that clients receive.
    pub operation: i32,
    /// The body.
    pub body: &'a Bytes,
    /// When it was produced, in milliseconds since 1970; 0 if that is unknown.
    pub sent_ms: i64,
    /// The producer's trace context, if there is one.
    pub trace: Option<TraceContext<'a>>,
    /// Whether it comes from an inbox: its recipient may have it already.
    pub replayed: bool,
}

/// A message's content, which all its calls share.
#[derive(Clone, Debug)]
pub struct Payload {
    dialect: Dialect,
    operation: i32,
    body: Bytes,
    sent_ms: i64,
    trace: Option<Arc<TraceMetadata>>,
    replayed: bool,
    /// What unary calls for this message alone share. Streams and merged calls do without it.
    unary: OnceLock<Box<Unary>>,
    /// Its pending bytes, until its last call has ended; `None` if its run has them.
    held: Option<Arc<PendingPermit>>,
}

/// What unary calls for one message share.
#[derive(Clone, Debug)]
struct Unary {
    /// The field `Proto`.
    proto: Bytes,
    /// The whole request for the first room; usually there is only one.
    room: OnceLock<(RoomId, Body)>,
}

/// The field `Proto` of unary calls, with its tag and length.
fn proto_of(dialect: Dialect, operation: i32, body: &Bytes) -> Bytes {
    match dialect {
        Dialect::Chatroom => proto_field(operation, &[body]),
        // goim's job does the same for all three kinds of push: internal/job/push.go (pushKeys,
        // broadcast, broadcastRoomRawBytes) and room.go in Terry-Mao/goim.
        Dialect::Goim => proto_field(OP_RAW, &[&frame_header(operation, body.len()), body]),
    }
}

impl Payload {
    /// The pending bytes of a message of this size, with its overhead.
    pub(super) fn cost(body: &Bytes) -> usize {
        body.len() + OVERHEAD
    }

    /// A message for comets of this dialect.
    pub(super) fn new(dialect: Dialect, content: &Content<'_>) -> Self {
        let Content { operation, body, sent_ms, trace, replayed } = *content;
        let trace = trace.and_then(TraceMetadata::of).map(Arc::new);
        let unary = OnceLock::new();
        Self { dialect, operation, body: body.clone(), sent_ms, trace, replayed, unary, held: None }
    }

    /// The same, with pending bytes of its own.
    pub(super) fn holding(self, held: PendingPermit) -> Self {
        Self { held: Some(Arc::new(held)), ..self }
    }

    /// The pending bytes that its run has to hold for it.
    pub(super) fn pending(&self) -> usize {
        if self.held.is_some() { 0 } else { Self::cost(&self.body) }
    }

    /// What its unary calls share; encoded on first use.
    fn unary(&self) -> &Unary {
        let Self { dialect, operation, body, unary, .. } = self;
        unary.get_or_init(|| {
            Box::new(Unary { proto: proto_of(*dialect, *operation, body), room: OnceLock::new() })
        })
    }

    /// The field `Proto` of unary calls.
    fn proto(&self) -> &Bytes {
        &self.unary().proto
    }

    /// The message for a stream. Without `with_id`, it has no id.
    pub(super) fn outgoing<'a>(
        &'a self,
        seq: u64,
        id: Option<&'a MessageId>,
        target: &'a CallTarget,
    ) -> Outgoing<'a> {
        let Self { operation, body, sent_ms, trace, replayed, .. } = self;
        Outgoing {
            seq,
            id: id.map_or("", MessageId::as_str),
            target,
            operation: *operation,
            body,
            sent_ms: *sent_ms,
            traceparent: trace.as_deref().map(TraceMetadata::parent).unwrap_or_default(),
            replayed: *replayed,
        }
    }

    /// Its trace context.
    pub(super) fn trace(&self) -> Option<&TraceMetadata> {
        self.trace.as_deref()
    }

    /// Whether it comes from an inbox.
    pub(super) fn is_replayed(&self) -> bool {
        self.replayed
    }

    /// The size of the body in bytes.
    pub(super) fn body_len(&self) -> usize {
        self.body.len()
    }

    /// The size of its goim frame in bytes; 0 in the other dialect.
    pub(super) fn frame_len(&self) -> usize {
        match self.dialect {
            Dialect::Chatroom => 0,
            Dialect::Goim => usize::from(FRAME_HEADER) + self.body.len(),
        }
    }

    /// The size in bytes of the part that all its calls share.
    pub(super) fn len(&self) -> usize {
        PROTO_OVERHEAD + self.frame_len().max(self.body.len())
    }

    fn room_request(&self, room: &RoomId) -> Body {
        let proto = self.proto();
        let write = || {
            Body::around(
                proto,
                text_len(room.as_str()),
                |buffer| put_text(BYTES_1, room.as_str(), buffer),
                |_| (),
            )
        };
        if proto.len() >= SHARED_FROM {
            return write();
        }
        let (known, request) = self.unary().room.get_or_init(|| (room.clone(), write()));
        if known == room { request.clone() } else { write() }
    }
}

/// One call: its path and its encoded request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) body: Body,
}

/// A request's body is gRPC's prefix and the message.
impl Body {
    /// The message without any field.
    pub(super) fn empty() -> Self {
        Bytes::from_static(&[0; PREFIX]).into()
    }

    /// `proto` between the fields before it, of about this length, and after it.
    fn around(
        proto: &Bytes,
        length: usize,
        before: impl FnOnce(&mut BytesMut),
        after: impl FnOnce(&mut BytesMut),
    ) -> Self {
        let is_shared = proto.len() >= SHARED_FROM;
        let copied = if is_shared { 0 } else { proto.len() };
        let mut head = BytesMut::with_capacity(PREFIX + length + copied);
        head.put_bytes(0, PREFIX);
        before(&mut head);
        if is_shared {
            let mut tail = BytesMut::new();
            after(&mut tail);
            put_prefix(&mut head, proto.len() + tail.len());
            Body::new(head.freeze(), VecDeque::from([proto.clone(), tail.freeze()]))
        } else {
            head.put_slice(proto);
            after(&mut head);
            put_prefix(&mut head, 0);
            head.freeze().into()
        }
    }

    /// The protobuf message without gRPC's prefix, for those who read it back.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn message(&self) -> Bytes {
        let mut all = self.clone();
        let all = bytes::Buf::copy_to_bytes(&mut all, bytes::Buf::remaining(self));
        assert_eq!(all[1..PREFIX], ((all.len() - PREFIX) as u32).to_be_bytes(), "gRPC's prefix");
        all.slice(PREFIX..)
    }
}

/// The prefix of every message in gRPC: not compressed, and its length in four bytes.
const PREFIX: usize = 5;

/// Writes the prefix of a message that continues for `rest` bytes after this piece.
fn put_prefix(head: &mut BytesMut, rest: usize) {
    let length = head.len() - PREFIX + rest;
    head[1..PREFIX].copy_from_slice(&(length as u32).to_be_bytes());
}

/// From this size on, the calls of a message share its bytes: a separate piece costs an HTTP/2
/// frame, but no copy per queued call.
const SHARED_FROM: usize = 16 * 1024;
/// The same for frames in merged calls, on average: they share HTTP/2's frames.
const SHARED_FRAMES_FROM: usize = 512;

impl Dialect {
    /// The request for one message.
    pub(super) fn request(self, target: &CallTarget, payload: &Payload) -> Request {
        let (operation, proto) = (payload.operation, payload.proto());
        let (method, body) = match target {
            CallTarget::Room(room) => (Method::BroadcastRoom, payload.room_request(room)),
            // goim's comets send to clients that subscribe to `protoOp`, which is the message's
            // own operation even where `Proto.op` is `OpRaw`.
            CallTarget::Connections(keys) => {
                let length = keys.iter().map(key_len).sum::<usize>() + int_len(int32(operation));
                let before = |buffer: &mut BytesMut| {
                    keys.iter().for_each(|key| put_item(BYTES_1, key.as_str(), buffer))
                };
                let after = |buffer: &mut BytesMut| put_int(VARINT_3, int32(operation), buffer);
                (Method::PushMsg, Body::around(proto, length, before, after))
            }
            CallTarget::Everyone { speed } => {
                let length = int_len(int32(operation)) + int_len(int32(*speed));
                let before = |buffer: &mut BytesMut| put_int(VARINT_1, int32(operation), buffer);
                let after = |buffer: &mut BytesMut| put_int(VARINT_3, int32(*speed), buffer);
                (Method::Broadcast, Body::around(proto, length, before, after))
            }
        };
        Request { method, path: self.path(method), body }
    }

    /// goim: one request with the [frames] of several messages for one room. Short ones are copied; the
    /// calls to all comets share the others.
    pub(super) fn merged(self, room: &RoomId, frames: VecDeque<Bytes>) -> Request {
        let length = frames.iter().map(Bytes::len).sum();
        let is_shared = length >= frames.len() * SHARED_FRAMES_FROM;
        let copied = if is_shared { 0 } else { length };
        let mut head = BytesMut::with_capacity(PREFIX + text_len(room.as_str()) + PROTO_OVERHEAD + copied);
        head.put_bytes(0, PREFIX);
        put_text(BYTES_1, room.as_str(), &mut head);
        begin_proto(OP_RAW, length, &mut head);
        let body = if is_shared {
            put_prefix(&mut head, length);
            Body::new(head.freeze(), frames)
        } else {
            frames.iter().for_each(|frames| head.put_slice(frames));
            put_prefix(&mut head, 0);
            head.freeze().into()
        };
        Request { method: Method::BroadcastRoom, path: self.path(Method::BroadcastRoom), body }
    }

    fn path(self, method: Method) -> PathAndQuery {
        PathAndQuery::from_static(match (self, method) {
            (Self::Chatroom, Method::PushMsg) => "/ChatRoom.Comet.Comet/PushMsg",
            (Self::Chatroom, Method::Broadcast) => "/ChatRoom.Comet.Comet/Broadcast",
            (Self::Chatroom, Method::BroadcastRoom) => "/ChatRoom.Comet.Comet/BroadcastRoom",
            (Self::Goim, Method::PushMsg) => "/goim.comet.Comet/PushMsg",
            (Self::Goim, Method::Broadcast) => "/goim.comet.Comet/Broadcast",
            (Self::Goim, Method::BroadcastRoom) => "/goim.comet.Comet/BroadcastRoom",
        })
    }
}

/// goim: the frames of messages, one after the other.
pub(super) fn frames<'a>(payloads: impl Iterator<Item = &'a Payload> + Clone) -> Bytes {
    let mut frames = BytesMut::with_capacity(payloads.clone().map(Payload::frame_len).sum());
    for Payload { operation, body, .. } in payloads {
        frames.put_slice(&frame_header(*operation, body.len()));
        frames.put_slice(body);
    }
    frames.freeze()
}

/// The methods of a comet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    PushMsg,
    Broadcast,
    BroadcastRoom,
}

/// The size of a key in a `PushMsg` request.
pub(super) fn key_len(key: &ConnectionId) -> usize {
    item_len(key.as_str())
}

/// `Proto{ver=1, op, seq=0, body}` as field 2 of a request. Zeros are omitted, as in proto3.
fn proto_field(operation: i32, body: &[&[u8]]) -> Bytes {
    let body_len: usize = body.iter().map(|piece| piece.len()).sum();
    let mut buffer = BytesMut::with_capacity(PROTO_OVERHEAD + body_len);
    begin_proto(operation, body_len, &mut buffer);
    body.iter().for_each(|piece| buffer.put_slice(piece));
    buffer.freeze()
}

/// The same up to the body, which has this length.
fn begin_proto(operation: i32, body_len: usize, buffer: &mut BytesMut) {
    let body_field = if body_len == 0 { 0 } else { 1 + encoded_len_varint(body_len as u64) + body_len };
    buffer.put_u8(PROTO);
    encode_varint((2 + int_len(int32(operation)) + body_field) as u64, buffer);
    put_int(PROTO_VER, 1, buffer);
    put_int(PROTO_OP, int32(operation), buffer);
    if body_len > 0 {
        buffer.put_u8(PROTO_BODY);
        encode_varint(body_len as u64, buffer);
    }
}

/// goim's packet framing, api/protocol/protocol.go: big-endian `packLen:4 headerLen:2 ver:2
/// op:4 seq:4`, then the body. The lengths are not checked: a body that exceeds 32 bits does not fit
/// in a Kafka record.
fn frame_header(operation: i32, body_len: usize) -> [u8; FRAME_HEADER as usize] {
    let mut header = [0; FRAME_HEADER as usize];
    let mut rest = &mut header[..];
    rest.put_u32(body_len as u32 + u32::from(FRAME_HEADER));
    rest.put_u16(FRAME_HEADER);
    rest.put_u16(1);
    rest.put_i32(operation);
    rest.put_i32(0);
    header
}
