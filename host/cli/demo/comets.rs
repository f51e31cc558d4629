//! The demo's comets: gRPC servers on loopback ports that report the calls they receive.

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::comets::proto::chatroom::comet_server::{Comet, CometServer};
use crate::comets::proto::chatroom::{
    BroadcastReply, BroadcastReq, BroadcastRoomReply, BroadcastRoomReq, Proto, PushMsgReply, PushMsgReq,
    RoomsReply, RoomsReq,
};
use crate::message::CometAddr;

/// A call that a comet received.
#[derive(Clone, Debug)]
pub(super) struct ReceivedCall {
    /// Which comet, from 0.
    pub(super) comet: usize,
    /// The gRPC method.
    pub(super) method: &'static str,
    /// The room, or the connection ids.
    pub(super) to: String,
    /// The body as text.
    pub(super) body: String,
}

/// The running comets.
pub(super) struct DemoComets {
    /// Their addresses.
    pub(super) addresses: Vec<CometAddr>,
    /// The calls that they receive.
    pub(super) arrivals: mpsc::Receiver<ReceivedCall>,
    _servers: JoinSet<Result<(), tonic::transport::Error>>,
}

impl DemoComets {
    /// Starts this many.
    pub(super) async fn start(count: usize) -> anyhow::Result<Self> {
        let (sender, arrivals) = mpsc::channel(1024);
        let mut servers = JoinSet::new();
        let mut addresses = Vec::new();
        for comet in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?.to_string().into());
            let service = CometServer::new(Reporter { comet, arrivals: sender.clone() });
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            servers.spawn(
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
            );
        }
        Ok(Self { addresses, arrivals, _servers: servers })
    }
}

struct Reporter {
    comet: usize,
    arrivals: mpsc::Sender<ReceivedCall>,
}

impl Reporter {
    async fn report(&self, method: &'static str, to: String, proto: Option<Proto>) -> Result<(), Status> {
        let body = proto.unwrap_or_default().body;
        let body = String::from_utf8_lossy(&body).into_owned();
        let arrival = ReceivedCall { comet: self.comet, method, to, body };
        self.arrivals.send(arrival).await.map_err(|_| Status::unavailable("the demo is ending"))
    }
}

#[tonic::async_trait]
impl Comet for Reporter {
    async fn push_msg(&self, request: Request<PushMsgReq>) -> Result<Response<PushMsgReply>, Status> {
        let PushMsgReq { keys, proto, .. } = request.into_inner();
        self.report("PushMsg", keys.join(", "), proto).await?;
        Ok(Response::new(PushMsgReply {}))
    }

    async fn broadcast(&self, request: Request<BroadcastReq>) -> Result<Response<BroadcastReply>, Status> {
        self.report("Broadcast", "everyone".to_owned(), request.into_inner().proto).await?;
        Ok(Response::new(BroadcastReply {}))
    }

    async fn broadcast_room(
        &self,
        request: Request<BroadcastRoomReq>,
    ) -> Result<Response<BroadcastRoomReply>, Status> {
        let BroadcastRoomReq { room_id, proto } = request.into_inner();
        self.report("BroadcastRoom", room_id, proto).await?;
        Ok(Response::new(BroadcastRoomReply {}))
    }

    async fn rooms(&self, _: Request<RoomsReq>) -> Result<Response<RoomsReply>, Status> {
        Ok(Response::new(RoomsReply::default()))
    }
}
