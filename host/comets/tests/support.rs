//! A comet that does as it is told and remembers what it got, and a fleet to go with it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::comets::proto::{chatroom, goim};
use crate::comets::{
    Config, Delivered, Dialect, Fleet, MemoryCometStore, Metrics, Outcomes, Parcel, Payload, ReplyTo, Timing,
};
use crate::message::{CometAddr, MESSAGE_ID, NamedBy, Target};

/// One call as a comet saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) method: &'static str,
    /// The room, or the keys.
    pub(super) to: Vec<String>,
    /// `ver`, `op`, `seq`.
    pub(super) head: (i32, i32, i32),
    pub(super) body: Bytes,
    pub(super) proto_op: Option<i32>,
    pub(super) speed: Option<i32>,
    pub(super) ids: Vec<String>,
    pub(super) peer: Option<SocketAddr>,
}

/// What a comet answers, and when.
pub(super) type Answer = (Duration, Result<(), Status>);
type Behaviour = Box<dyn Fn(&Call, usize) -> Answer + Send>;

pub(super) struct FakeComet {
    pub(super) address: CometAddr,
    state: Service,
    /// Its own, so that dropping it cuts all connections, as when a process dies.
    runtime: Option<Runtime>,
}

impl Drop for FakeComet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Service {
    calls: Arc<Mutex<Vec<Call>>>,
    /// Rooms and keys that a call is under way for.
    busy: Arc<Mutex<Vec<String>>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl FakeComet {
    pub(super) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"))
    }

    pub(super) fn start_at(at: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let incoming = TcpIncoming::bind(at).expect("a free port").with_nodelay(Some(true));
        let address = incoming.local_addr().expect("bound").to_string().into();
        let state = Service {
            calls: Arc::default(),
            busy: Arc::default(),
            behaviour: Arc::new(Mutex::new(Box::new(|_, _| (Duration::ZERO, Ok(()))))),
        };
        let server = tonic::transport::Server::builder()
            .add_service(chatroom::comet_server::CometServer::new(state.clone()))
            .add_service(goim::comet_server::CometServer::new(state.clone()))
            .serve_with_incoming(incoming);
        runtime.handle().spawn(async move { server.await.expect("serves") });
        drop(entered);
        Self { address, state, runtime: Some(runtime) }
    }

    /// From now on it answers so. Gets the call and how many there were before.
    pub(super) fn answers(&self, behaviour: impl Fn(&Call, usize) -> Answer + Send + 'static) {
        *self.state.behaviour.lock() = Box::new(behaviour);
    }

    /// The calls until now, without the peers.
    pub(super) fn calls(&self) -> Vec<Call> {
        let calls = self.state.calls.lock().clone();
        calls.into_iter().map(|call| Call { peer: None, ..call }).collect()
    }

    /// From how many connections calls came.
    pub(super) fn connections(&self) -> usize {
        let calls = self.state.calls.lock();
        calls.iter().filter_map(|call| call.peer).collect::<std::collections::HashSet<_>>().len()
    }
}

impl Service {
    async fn take(&self, call: Call) -> Result<(), Status> {
        let (delay, result) = {
            let mut calls = self.calls.lock();
            let answer = self.behaviour.lock()(&call, calls.len());
            calls.push(call.clone());
            answer
        };
        if !delay.is_zero() {
            self.occupy(&call, true);
            tokio::time::sleep(delay).await;
            self.occupy(&call, false);
        }
        result
    }

    /// Two calls at a time for one room or connection are out of order, sooner or later.
    fn occupy(&self, call: &Call, begin: bool) {
        let mut busy = self.busy.lock();
        for to in &call.to {
            let is_busy = busy.contains(to);
            if begin {
                busy.push(to.clone());
                assert!(!is_busy, "two calls at a time for {to}");
            } else {
                busy.retain(|other| other != to);
            }
        }
    }
}

fn ids<T>(request: &Request<T>) -> Vec<String> {
    let values = request.metadata().get_all(MESSAGE_ID).into_iter();
    values.map(|value| value.to_str().expect("ASCII").to_owned()).collect()
}

macro_rules! serve {
    ($dialect:ident) => {
        #[tonic::async_trait]
        impl $dialect::comet_server::Comet for Service {
            async fn push_msg(
                &self,
                request: Request<$dialect::PushMsgReq>,
            ) -> Result<Response<$dialect::PushMsgReply>, Status> {
                let (ids, peer) = (ids(&request), request.remote_addr());
                let $dialect::PushMsgReq { keys, proto, proto_op } = request.into_inner();
                let $dialect::Proto { ver, op, seq, body } = proto.unwrap_or_default();
                let (head, proto_op) = ((ver, op, seq), Some(proto_op));
                let call = Call { method: "PushMsg", to: keys, head, body, proto_op, ids, peer, speed: None };
                self.take(call).await?;
                Ok(Response::new(Default::default()))
            }

            async fn broadcast(
                &self,
                request: Request<$dialect::BroadcastReq>,
            ) -> Result<Response<$dialect::BroadcastReply>, Status> {
                let (ids, peer) = (ids(&request), request.remote_addr());
                let $dialect::BroadcastReq { proto_op, proto, speed } = request.into_inner();
                let $dialect::Proto { ver, op, seq, body } = proto.unwrap_or_default();
                let (head, proto_op, speed) = ((ver, op, seq), Some(proto_op), Some(speed));
                let call =
                    Call { method: "Broadcast", to: Vec::new(), head, body, proto_op, speed, ids, peer };
                self.take(call).await?;
                Ok(Response::new(Default::default()))
            }

            async fn broadcast_room(
                &self,
                request: Request<$dialect::BroadcastRoomReq>,
            ) -> Result<Response<$dialect::BroadcastRoomReply>, Status> {
                let (ids, peer) = (ids(&request), request.remote_addr());
                let $dialect::BroadcastRoomReq { room_id, proto } = request.into_inner();
                let $dialect::Proto { ver, op, seq, body } = proto.unwrap_or_default();
                let (to, head) = (vec![room_id], (ver, op, seq));
                let call =
                    Call { method: "BroadcastRoom", to, head, body, proto_op: None, speed: None, ids, peer };
                self.take(call).await?;
                Ok(Response::new(Default::default()))
            }

            async fn rooms(
                &self,
                _: Request<$dialect::RoomsReq>,
            ) -> Result<Response<$dialect::RoomsReply>, Status> {
                Ok(Response::new(Default::default()))
            }
        }
    };
}

serve!(chatroom);
serve!(goim);

/// A configuration that loses no time.
pub(super) fn config() -> Config {
    Config {
        connect_timeout: Duration::from_millis(500),
        breaker_patience: Duration::ZERO,
        breaker_open: Duration::from_millis(50),
        breaker_open_max: Duration::from_millis(200),
        // Where these comets are.
        allow: Some(vec!["127.0.0.0/8".into(), "10.255.0.0/16".into()]),
        ..Config::default()
    }
}

pub(super) fn goim_config() -> Config {
    Config { dialect: Dialect::Goim, ..config() }
}

/// A breaker that stays closed.
pub(super) fn patient(config: Config) -> Config {
    Config { breaker_failures: u32::MAX, ..config }
}

pub(super) const TIMING: Timing =
    Timing { timeout: Duration::from_secs(2), give_up_after: Duration::from_secs(10) };

pub(super) fn fleet(config: &Config, timing: Timing) -> Arc<Fleet> {
    fleet_with(config, timing, &mut Registry::default())
}

pub(super) fn fleet_with(config: &Config, timing: Timing, registry: &mut Registry) -> Arc<Fleet> {
    fleet_sharing(config, timing, registry, MemoryCometStore::default())
}

/// A fleet that shares what it knows through this store.
pub(super) fn fleet_sharing(
    config: &Config,
    timing: Timing,
    registry: &mut Registry,
    store: MemoryCometStore,
) -> Arc<Fleet> {
    Fleet::start(config, timing, Metrics::register(registry), Arc::new(store))
}

/// What the gateway waits for where it has to.
pub(super) trait Now {
    /// Sends what there has to be room for.
    fn send_now(&self, parcel: Parcel) -> Receipt;
    /// Encodes what there has to be room for.
    fn payload_now(&self, operation: i32, body: &Bytes) -> Payload;
}

impl Now for Fleet {
    fn send_now(&self, parcel: Parcel) -> Receipt {
        let (reply, receipt) = receipt();
        self.try_send(Parcel { reply, ..parcel }).expect("room in the queue");
        receipt
    }

    fn payload_now(&self, operation: i32, body: &Bytes) -> Payload {
        self.payload(operation, body).now_or_never().expect("room for its bytes")
    }
}

/// The outcome of one parcel, to be awaited. Dropping it gives the message up.
#[derive(Debug)]
pub(super) struct Receipt(oneshot::Receiver<Delivered>);

#[derive(Debug)]
struct Told(Mutex<Option<oneshot::Sender<Delivered>>>);

/// Whom a parcel tells its outcome, and the outcome.
pub(super) fn receipt() -> (ReplyTo, Receipt) {
    let (sender, receiver) = oneshot::channel();
    (ReplyTo::new(Arc::new(Told(Mutex::new(Some(sender)))), 0), Receipt(receiver))
}

impl Outcomes for Told {
    fn ended(self: Arc<Self>, _: usize, delivered: Delivered) {
        let sender = self.0.lock().take().expect("told once");
        drop(sender.send(delivered));
    }

    fn is_abandoned(&self) -> bool {
        self.0.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl Future for Receipt {
    type Output = Delivered;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Delivered> {
        Pin::new(&mut self.0).poll(context).map(|delivered| delivered.expect("every parcel has an outcome"))
    }
}

/// Sends as the gateway does where it may have to wait.
pub(super) async fn send_waiting(fleet: &Fleet, parcel: Parcel) -> Receipt {
    let (reply, receipt) = receipt();
    fleet.send(Parcel { reply, ..parcel }).await;
    receipt
}

/// A parcel with operation 5.
pub(super) fn parcel(fleet: &Fleet, comet: &CometAddr, target: Target, body: &str, id: &str) -> Parcel {
    let payload = fleet.payload_now(5, &Bytes::copy_from_slice(body.as_bytes()));
    let named_by = NamedBy::Record;
    let (reply, _) = receipt();
    Parcel { comet: comet.clone(), named_by, target, room: None, payload, message: id.into(), reply }
}

/// Sends to a room and waits for the outcome.
pub(super) async fn to_room(fleet: &Fleet, comet: &CometAddr, room: &str, body: &str) -> Delivered {
    fleet.send_now(parcel(fleet, comet, Target::Room(room.into()), body, body)).await
}

/// Waits until something holds; fails after ten seconds.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert!(in_time.is_ok(), "not so within ten seconds: {what}");
}
