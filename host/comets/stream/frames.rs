//! The frames that a stream sends: messages are written into batches.
//!
//! Pure. A batch is one gRPC message with many messages in it, written in one pass into a buffer that
//! is reused. A body is copied once per comet, or shared by all comets if it is large.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::comets::proto::delivery::{Finish, Hello, Ping, ToComet, to_comet};
use crate::comets::protobuf::{int_len, int32, item_len, put_int, put_item, put_text, text_len};
use crate::message::CallTarget;

/// gRPC's prefix of every message: a flag for compression, and the length in four bytes.
pub(super) const PREFIX: usize = 5;
/// The prefix, the tag of `ToComet.messages`, and its length.
const HEAD: usize = PREFIX + 1 + 10;
/// A batch is not extended beyond this size: gRPC servers reject messages of more than 4 MiB by default.
const BATCH: usize = 64 * 1024;
/// The first space of a buffer; it grows with the load.
const FIRST: usize = 1024;
/// From this size on, a body is shared instead of copied.
const SHARED_FROM: usize = 16 * 1024;

/// The tags of the fields: number and wire type.
const MESSAGES: u8 = 0x12;
const MESSAGE: u8 = 0x0a;
const SEQ: u8 = 0x08;
const ID: u8 = 0x12;
const ROOM: u8 = 0x1a;
const CONNECTIONS: u8 = 0x22;
const EVERYONE: u8 = 0x2a;
const OPERATION: u8 = 0x30;
const BODY: u8 = 0x3a;
const SENT_MS: u8 = 0x40;
const REPLAYED: u8 = 0x48;
const TRACEPARENT: u8 = 0x52;
/// `Connections.ids` and `Everyone.speed`.
const IDS: u8 = 0x0a;
const SPEED: u8 = 0x08;

/// A message as it is sent.
#[derive(Clone, Copy, Debug)]
pub(in crate::comets) struct Outgoing<'a> {
    pub(in crate::comets) seq: u64,
    /// Empty if comets do not get ids.
    pub(in crate::comets) id: &'a str,
    pub(in crate::comets) target: &'a CallTarget,
    pub(in crate::comets) operation: i32,
    pub(in crate::comets) body: &'a Bytes,
    pub(in crate::comets) sent_ms: i64,
    pub(in crate::comets) traceparent: &'a str,
    pub(in crate::comets) replayed: bool,
}

/// Writes messages into batches.
#[derive(Debug, Default)]
pub(in crate::comets) struct BatchWriter {
    buffer: BytesMut,
    /// The body of the last message, if it is shared.
    body: Bytes,
}

impl BatchWriter {
    /// Whether the batch is large enough to be sent.
    pub(in crate::comets) fn is_full(&self) -> bool {
        self.buffer.len() + self.body.len() >= BATCH || !self.body.is_empty()
    }

    /// Adds a message to a batch that is not full.
    pub(in crate::comets) fn push(&mut self, message: &Outgoing<'_>) {
        if self.buffer.is_empty() {
            self.buffer.reserve(HEAD + FIRST);
            self.buffer.put_bytes(0, HEAD);
        }
        let (audience, body) = (Audience::of(message.target), message.body);
        let length = message.len(&audience);
        let is_shared = body.len() >= SHARED_FROM;
        let copied = if is_shared { length - body.len() } else { length };
        self.buffer.reserve(1 + 10 + copied);
        self.buffer.put_u8(MESSAGE);
        encode_varint(length as u64, &mut self.buffer);
        message.write(&audience, &mut self.buffer);
        if is_shared {
            self.body = body.clone();
        } else {
            self.buffer.put_slice(body);
        }
    }

    /// The batch as gRPC sends it, in one or two pieces.
    pub(in crate::comets) fn finish(&mut self) -> [Bytes; 2] {
        let mut batch = self.buffer.split();
        let content = (batch.len() - HEAD + self.body.len()) as u64;
        let mut head = [0; HEAD];
        let mut rest = &mut head[PREFIX..];
        rest.put_u8(MESSAGES);
        encode_varint(content, &mut rest);
        let length = HEAD - rest.len();
        head[1..PREFIX].copy_from_slice(&((length - PREFIX) as u32 + content as u32).to_be_bytes());
        // The head's length is known only now: it ends where the content begins.
        batch.advance(HEAD - length);
        batch[..length].copy_from_slice(&head[..length]);
        [batch.freeze(), std::mem::take(&mut self.body)]
    }
}

impl Outgoing<'_> {
    /// The size of the message in bytes.
    fn len(&self, audience: &Audience<'_>) -> usize {
        let body = if self.body.is_empty() {
            0
        } else {
            1 + encoded_len_varint(self.body.len() as u64) + self.body.len()
        };
        int_len(self.seq)
            + text_len(self.id)
            + audience.len()
            + int_len(int32(self.operation))
            + int_len(self.sent_ms as u64)
            + int_len(u64::from(self.replayed))
            + text_len(self.traceparent)
            + body
    }

    /// Writes everything but the body's bytes, which come last.
    fn write(&self, audience: &Audience<'_>, buffer: &mut BytesMut) {
        put_int(SEQ, self.seq, buffer);
        put_text(ID, self.id, buffer);
        audience.write(buffer);
        put_int(OPERATION, int32(self.operation), buffer);
        put_int(SENT_MS, self.sent_ms as u64, buffer);
        put_int(REPLAYED, u64::from(self.replayed), buffer);
        put_text(TRACEPARENT, self.traceparent, buffer);
        if !self.body.is_empty() {
            buffer.put_u8(BODY);
            encode_varint(self.body.len() as u64, buffer);
        }
    }
}

/// The field for the recipients, and the size of its content. It is written even if it is empty.
struct Audience<'a> {
    target: &'a CallTarget,
    content: usize,
}

impl<'a> Audience<'a> {
    fn of(target: &'a CallTarget) -> Self {
        let content = match target {
            CallTarget::Room(room) => room.as_str().len(),
            CallTarget::Connections(ids) => ids.iter().map(|id| item_len(id.as_str())).sum(),
            CallTarget::Everyone { speed } => int_len(int32(*speed)),
        };
        Self { target, content }
    }

    fn len(&self) -> usize {
        1 + encoded_len_varint(self.content as u64) + self.content
    }

    fn write(&self, buffer: &mut BytesMut) {
        let mut begin = |tag| {
            buffer.put_u8(tag);
            encode_varint(self.content as u64, buffer);
        };
        match self.target {
            CallTarget::Room(room) => {
                begin(ROOM);
                buffer.put_slice(room.as_str().as_bytes());
            }
            CallTarget::Connections(ids) => {
                begin(CONNECTIONS);
                ids.iter().for_each(|id| put_item(IDS, id.as_str(), buffer));
            }
            CallTarget::Everyone { speed } => {
                begin(EVERYONE);
                put_int(SPEED, int32(*speed), buffer);
            }
        }
    }
}

/// The first frame.
pub(in crate::comets) fn hello(hello: Hello) -> Bytes {
    frame(to_comet::Frame::Hello(hello))
}

/// Asks whether the comet is alive.
pub(in crate::comets) fn ping(nonce: u64) -> Bytes {
    frame(to_comet::Frame::Ping(Ping { nonce }))
}

/// Nothing more comes.
pub(in crate::comets) fn finish() -> Bytes {
    frame(to_comet::Frame::Finish(Finish {}))
}

fn frame(frame: to_comet::Frame) -> Bytes {
    let message = ToComet { frame: Some(frame) };
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(PREFIX + length);
    buffer.put_u8(0);
    buffer.put_u32(length as u32);
    // Cannot fail: the buffer grows.
    let _ = message.encode(&mut buffer);
    buffer.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comets::proto::delivery::{Connections, Everyone, Message, message};
    use proptest::prelude::*;

    fn targets() -> impl Strategy<Value = CallTarget> {
        prop_oneof![
            "[a-z]{0,10}".prop_map(|room| CallTarget::Room(room.into())),
            proptest::collection::vec("[a-z]{0,200}", 0..4)
                .prop_map(|ids| CallTarget::Connections(ids.into_iter().map(Into::into).collect())),
            any::<i32>().prop_map(|speed| CallTarget::Everyone { speed }),
        ]
    }

    fn expected(outgoing: &Outgoing<'_>) -> Message {
        let audience = match outgoing.target {
            CallTarget::Room(room) => message::Audience::Room(room.as_str().to_owned()),
            CallTarget::Connections(ids) => {
                let ids = ids.iter().map(|id| id.as_str().to_owned()).collect();
                message::Audience::Connections(Connections { ids })
            }
            CallTarget::Everyone { speed } => message::Audience::Everyone(Everyone { speed: *speed }),
        };
        Message {
            seq: outgoing.seq,
            id: outgoing.id.to_owned(),
            audience: Some(audience),
            operation: outgoing.operation,
            body: outgoing.body.clone(),
            sent_ms: outgoing.sent_ms,
            replayed: outgoing.replayed,
            traceparent: outgoing.traceparent.to_owned(),
        }
    }

    /// The messages of a batch.
    fn read(pieces: &[Bytes; 2]) -> Vec<Message> {
        let all = Bytes::from(pieces.concat());
        assert_eq!(all[1..PREFIX], ((all.len() - PREFIX) as u32).to_be_bytes(), "gRPC's prefix");
        let message = ToComet::decode(all.slice(PREFIX..)).expect("a ToComet");
        let Some(to_comet::Frame::Messages(messages)) = message.frame else { panic!("{message:?}") };
        messages.messages
    }

    proptest! {
        /// Against the generated types.
        #[test]
        fn a_batch_is_what_comets_decode(
            parts in proptest::collection::vec(
                (targets(), any::<i32>(), any::<i64>(), "[ -~]{0,20}", 0usize..300, prop_oneof![4 => Just(1), 1 => Just(100)]),
                1..20
            )
        ) {
            let bodies: Vec<Bytes> = parts.iter().map(|part| vec![b'x'; part.4 * part.5].into()).collect();
            let all: Vec<Outgoing<'_>> = (1..).zip(parts.iter().zip(&bodies)).map(|(seq, (part, body))| Outgoing {
                seq, id: &part.3, target: &part.0, operation: part.1, body, sent_ms: part.2, traceparent: &part.3,
                replayed: part.2 % 2 == 0,
            }).collect();
            let (mut writer, mut seen) = (BatchWriter::default(), Vec::new());
            for outgoing in &all {
                writer.push(outgoing);
                if writer.is_full() {
                    seen.extend(read(&writer.finish()));
                }
            }
            if !writer.buffer.is_empty() {
                seen.extend(read(&writer.finish()));
            }
            prop_assert!(seen.iter().eq(all.iter().map(expected).collect::<Vec<_>>().iter()));
        }
    }

    #[test]
    fn a_large_body_is_shared_and_ends_its_batch() {
        let (target, body) = (CallTarget::Room("r".into()), Bytes::from(vec![b'x'; SHARED_FROM]));
        let mut writer = BatchWriter::default();
        let outgoing = Outgoing {
            seq: 1,
            id: "",
            target: &target,
            operation: 0,
            body: &body,
            sent_ms: 0,
            traceparent: "",
            replayed: false,
        };
        writer.push(&outgoing);
        assert!(writer.is_full());
        let pieces = writer.finish();
        assert_eq!(pieces[1].as_ptr(), body.as_ptr());
        assert_eq!(read(&pieces), [expected(&outgoing)]);
    }
}
