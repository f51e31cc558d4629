//! The gRPC side of a fake comet: the same four methods for both dialects, whose generated types
//! differ only in name.

use std::sync::Arc;
use std::time::Instant;

use halley::comets::proto::{chatroom, goim};
use halley::message::REPLAYED;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use super::comet::{Call, CallLog, Dialect, Packet, Serves, To, message_ids};
use super::comet_stream;

/// A server of this dialect that records calls in this log, with streams or without.
pub(super) fn router(dialect: Dialect, serves: Serves, call_log: Arc<CallLog>) -> Router {
    let streams = (serves == Serves::Streams).then(|| comet_stream::service(Arc::clone(&call_log)));
    let server = Server::builder().add_optional_service(streams);
    match dialect {
        Dialect::Chatroom => server.add_service(chatroom::comet_server::CometServer::new(Chatroom(call_log))),
        Dialect::Goim => server.add_service(goim::comet_server::CometServer::new(Goim(call_log))),
    }
}

struct Chatroom(Arc<CallLog>);
struct Goim(Arc<CallLog>);

macro_rules! implement {
    ($service:ident, $dialect:ident) => {
        impl From<$dialect::Proto> for Packet {
            fn from(proto: $dialect::Proto) -> Self {
                Self { ver: proto.ver, op: proto.op, seq: proto.seq, body: proto.body }
            }
        }

        #[tonic::async_trait]
        impl $dialect::comet_server::Comet for $service {
            async fn push_msg(
                &self,
                request: Request<$dialect::PushMsgReq>,
            ) -> Result<Response<$dialect::PushMsgReply>, Status> {
                let (messages, at) = (message_ids(request.metadata()), Instant::now());
                let replayed = request.metadata().contains_key(REPLAYED);
                let request = request.into_inner();
                let (to, proto_op) = (To::Keys(request.keys), request.proto_op);
                let proto = request.proto.map(Packet::from);
                self.0.answer(Call { to, proto_op, proto, messages, at, replayed, refused: false }).await?;
                Ok(Response::new($dialect::PushMsgReply {}))
            }

            async fn broadcast(
                &self,
                request: Request<$dialect::BroadcastReq>,
            ) -> Result<Response<$dialect::BroadcastReply>, Status> {
                let (messages, at) = (message_ids(request.metadata()), Instant::now());
                let replayed = request.metadata().contains_key(REPLAYED);
                let request = request.into_inner();
                let (to, proto_op) = (To::Everyone { speed: request.speed }, request.proto_op);
                let proto = request.proto.map(Packet::from);
                self.0.answer(Call { to, proto_op, proto, messages, at, replayed, refused: false }).await?;
                Ok(Response::new($dialect::BroadcastReply {}))
            }

            async fn broadcast_room(
                &self,
                request: Request<$dialect::BroadcastRoomReq>,
            ) -> Result<Response<$dialect::BroadcastRoomReply>, Status> {
                let (messages, at) = (message_ids(request.metadata()), Instant::now());
                let replayed = request.metadata().contains_key(REPLAYED);
                let request = request.into_inner();
                let (to, proto_op) = (To::Room(request.room_id), 0);
                let proto = request.proto.map(Packet::from);
                self.0.answer(Call { to, proto_op, proto, messages, at, replayed, refused: false }).await?;
                Ok(Response::new($dialect::BroadcastRoomReply {}))
            }

            async fn rooms(
                &self,
                request: Request<$dialect::RoomsReq>,
            ) -> Result<Response<$dialect::RoomsReply>, Status> {
                let (messages, at) = (message_ids(request.metadata()), Instant::now());
                let replayed = request.metadata().contains_key(REPLAYED);
                self.0
                    .answer(Call {
                        to: To::Rooms,
                        proto_op: 0,
                        proto: None,
                        messages,
                        at,
                        replayed,
                        refused: false,
                    })
                    .await?;
                Ok(Response::new($dialect::RoomsReply { rooms: Default::default() }))
            }
        }
    };
}

implement!(Chatroom, chatroom);
implement!(Goim, goim);
