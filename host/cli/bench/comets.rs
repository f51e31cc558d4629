//! The benchmark's comets: gRPC servers that note in a ledger what they get.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::ledger::{Delivery, Ledger, Stamp};
use crate::comets::Dialect;
use crate::comets::proto::delivery::Messages;
use crate::comets::proto::delivery::delivery_server::DeliveryServer;
use crate::comets::proto::{chatroom, goim};
use crate::message::CometAddr;

/// The running comets.
pub(super) struct BenchComets {
    /// Where the gateway finds them.
    pub(super) addresses: Vec<CometAddr>,
    _servers: JoinSet<Result<(), tonic::transport::Error>>,
}

/// What the comets are like.
pub(super) struct CometsConfig<'a> {
    pub(super) count: usize,
    /// The address on which they listen, and the one at which the gateway reaches them.
    pub(super) listen: IpAddr,
    pub(super) advertised: &'a str,
    pub(super) dialect: Dialect,
    /// Whether they serve streams next to the calls of the dialect.
    pub(super) delivery: Delivery,
}

/// Notes what one comet gets.
#[derive(Clone)]
pub(super) struct Receiver {
    comet: usize,
    run: u32,
    began: Instant,
    ledger: Arc<Mutex<Ledger>>,
}

impl BenchComets {
    /// Starts them on free ports.
    pub(super) async fn start(
        config: CometsConfig<'_>,
        (run, began): (u32, Instant),
        ledger: &Arc<Mutex<Ledger>>,
    ) -> anyhow::Result<Self> {
        let CometsConfig { count, listen, advertised, dialect, delivery } = config;
        let (mut servers, mut addresses) = (JoinSet::new(), Vec::new());
        for comet in 0..count {
            let listener = TcpListener::bind(SocketAddr::new(listen, 0)).await;
            let listener = listener.with_context(|| format!("cannot listen on {listen}; see --listen"))?;
            let port = listener.local_addr()?.port();
            addresses.push(format!("{advertised}:{port}").into());
            let receiver = Receiver { comet, run, began, ledger: Arc::clone(ledger) };
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            // A frame has as many messages as its credit permits.
            let streams = (delivery == Delivery::Stream)
                .then(|| DeliveryServer::new(receiver.clone()).max_decoding_message_size(usize::MAX));
            let mut server = Server::builder();
            let router = server.add_optional_service(streams);
            let router = match dialect {
                Dialect::Chatroom => router.add_service(chatroom::comet_server::CometServer::new(receiver)),
                Dialect::Goim => router.add_service(goim::comet_server::CometServer::new(receiver)),
            };
            servers.spawn(router.serve_with_incoming(incoming));
        }
        Ok(Self { addresses, _servers: servers })
    }
}

impl Receiver {
    fn chatroom(&self, proto: Option<chatroom::Proto>) {
        let at = self.began.elapsed();
        self.note(at, Delivery::Unary, proto.into_iter().map(|proto| proto.body));
    }

    fn goim(&self, proto: Option<goim::Proto>) {
        let at = self.began.elapsed();
        self.note(at, Delivery::Unary, proto.into_iter().flat_map(|proto| Frames(proto.body)));
    }

    /// Notes the messages of a frame.
    pub(super) fn streamed(&self, messages: Messages) {
        let at = self.began.elapsed();
        self.note(at, Delivery::Stream, messages.messages.into_iter().map(|message| message.body));
    }

    fn note(&self, at: std::time::Duration, by: Delivery, bodies: impl Iterator<Item = Bytes>) {
        let mut ledger = self.ledger.lock();
        for stamp in bodies.filter_map(|body| Stamp::of(&body)).filter(|stamp| stamp.run == self.run) {
            ledger.arrived(self.comet, stamp, at, by);
        }
    }
}

/// The bodies of goim's frames: `packLen:4 headerLen:2 ver:2 op:4 seq:4`, then the body.
struct Frames(Bytes);

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut frame = self.0.clone();
        let length = frame.try_get_u32().ok()? as usize;
        let header = usize::from(frame.try_get_u16().ok()?);
        if header > length || length > self.0.len() || header < 6 {
            return None;
        }
        Some(self.0.split_to(length).slice(header..))
    }
}

macro_rules! implement {
    ($dialect:ident) => {
        #[tonic::async_trait]
        impl $dialect::comet_server::Comet for Receiver {
            async fn push_msg(
                &self,
                request: Request<$dialect::PushMsgReq>,
            ) -> Result<Response<$dialect::PushMsgReply>, Status> {
                self.$dialect(request.into_inner().proto);
                Ok(Response::new($dialect::PushMsgReply {}))
            }

            async fn broadcast(
                &self,
                _: Request<$dialect::BroadcastReq>,
            ) -> Result<Response<$dialect::BroadcastReply>, Status> {
                // Of others.
                Ok(Response::new($dialect::BroadcastReply {}))
            }

            async fn broadcast_room(
                &self,
                request: Request<$dialect::BroadcastRoomReq>,
            ) -> Result<Response<$dialect::BroadcastRoomReply>, Status> {
                self.$dialect(request.into_inner().proto);
                Ok(Response::new($dialect::BroadcastRoomReply {}))
            }

            async fn rooms(
                &self,
                _: Request<$dialect::RoomsReq>,
            ) -> Result<Response<$dialect::RoomsReply>, Status> {
                Ok(Response::new($dialect::RoomsReply::default()))
            }
        }
    };
}

implement!(chatroom);
implement!(goim);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_and_a_broken_one_ends_them() {
        let frame = |body: &[u8]| {
            let mut frame = (16 + body.len() as u32).to_be_bytes().to_vec();
            frame.extend([0, 16, 0, 1, 0, 0, 0, 4, 0, 0, 0, 0]);
            frame.extend(body);
            frame
        };
        let both = Bytes::from([frame(b"a"), frame(b""), frame(b"bc")].concat());
        assert_eq!(Frames(both.clone()).collect::<Vec<_>>(), ["a", "", "bc"]);
        assert_eq!(Frames(both.slice(..both.len() - 1)).count(), 2);
        assert_eq!(Frames(Bytes::from_static(&[0; 40])).count(), 0);
    }
}
