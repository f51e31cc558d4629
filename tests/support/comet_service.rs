//! The gRPC side of a fake comet: the same four methods for both dialects, whose generated types
//! differ only in name.

use std::sync::Arc;

use halley::comets::proto::{chatroom, goim};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use super::comet::{Call, CallLog, Dialect, Packet, Serves, To};
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
                let call = Call::received(request.metadata());
                let request = request.into_inner();
                let (to, proto_op) = (To::Keys(request.keys), request.proto_op);
                self.0.answer(Call { to, proto_op, proto: request.proto.map(Packet::from), ..call }).await?;
                Ok(Response::new($dialect::PushMsgReply {}))
            }

            async fn broadcast(
                &self,
                request: Request<$dialect::BroadcastReq>,
            ) -> Result<Response<$dialect::BroadcastReply>, Status> {
                let call = Call::received(request.metadata());
                let request = request.into_inner();
                let (to, proto_op) = (To::Everyone { speed: request.speed }, request.proto_op);
                self.0.answer(Call { to, proto_op, proto: request.proto.map(Packet::from), ..call }).await?;
                Ok(Response::new($dialect::BroadcastReply {}))
            }

            async fn broadcast_room(
                &self,
                request: Request<$dialect::BroadcastRoomReq>,
            ) -> Result<Response<$dialect::BroadcastRoomReply>, Status> {
                let call = Call::received(request.metadata());
                let request = request.into_inner();
                let to = To::Room(request.room_id);
                self.0.answer(Call { to, proto: request.proto.map(Packet::from), ..call }).await?;
                Ok(Response::new($dialect::BroadcastRoomReply {}))
            }

            async fn rooms(
                &self,
                request: Request<$dialect::RoomsReq>,
            ) -> Result<Response<$dialect::RoomsReply>, Status> {
                self.0.answer(Call::received(request.metadata())).await?;
                Ok(Response::new($dialect::RoomsReply { rooms: Default::default() }))
            }
        }
    };
}

implement!(Chatroom, chatroom);
implement!(Goim, goim);
