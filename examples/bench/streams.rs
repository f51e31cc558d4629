//! The streams of cheap comets: one task per stream reads frames, counts their messages, and
//! acknowledges each frame with one of its own.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use halley::comets::proto::delivery::{
    Acks, Credit, FromComet, Message, ToComet, Welcome, from_comet, message, to_comet,
};
use http::{HeaderValue, Response};
use prost::Message as _;

use crate::comets::Shared;

/// gRPC's prefix of every message.
const PREFIX: usize = 5;
pub(crate) const PATH: &str = "/halley.comet.v1.Delivery/Deliver";

/// Serves one stream until the gateway ends it.
pub(crate) async fn serve(
    mut incoming: RecvStream,
    mut respond: SendResponse<Bytes>,
    comet: usize,
    shared: &Shared,
) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut outgoing = respond.send_response(response, false)?;
    let credit = Some(Credit { messages: u64::MAX, bytes: u64::MAX });
    let welcome = Welcome { version: 1, credit, ..Welcome::default() };
    send(&mut outgoing, from_comet::Frame::Welcome(welcome))?;
    let mut rest = BytesMut::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        rest.extend_from_slice(&data);
        let mut up_to = 0;
        while let Some(frame) = next_frame(&mut rest) {
            let Ok(ToComet { frame: Some(to_comet::Frame::Messages(messages)) }) = ToComet::decode(frame)
            else {
                continue;
            };
            up_to = messages.messages.last().map_or(up_to, |last| last.seq);
            let rooms = messages.messages.iter().filter_map(room_and_body);
            shared.count_streamed(comet, rooms);
        }
        if up_to > 0 {
            shared.wait().await;
            send(&mut outgoing, from_comet::Frame::Acks(Acks { up_to, ..Acks::default() }))?;
        }
    }
    Ok(())
}

fn room_and_body(message: &Message) -> Option<(&str, &Bytes)> {
    let Some(message::Audience::Room(room)) = &message.audience else { return None };
    Some((room, &message.body))
}

fn next_frame(rest: &mut BytesMut) -> Option<Bytes> {
    let length = rest.get(1..PREFIX)?.get_u32() as usize;
    if rest.len() < PREFIX + length {
        return None;
    }
    rest.advance(PREFIX);
    Some(rest.split_to(length).freeze())
}

fn send(outgoing: &mut SendStream<Bytes>, frame: from_comet::Frame) -> Result<(), h2::Error> {
    let frame = FromComet { frame: Some(frame) };
    let mut buffer = BytesMut::with_capacity(PREFIX + frame.encoded_len());
    buffer.put_u8(0);
    buffer.put_u32(frame.encoded_len() as u32);
    buffer.put_slice(&frame.encode_to_vec());
    outgoing.send_data(buffer.freeze(), false)
}
