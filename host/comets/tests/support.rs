//! A fake comet with programmable answers that records its calls, and a fleet to call it.

use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::comets::proto::delivery::delivery_server::{Delivery, DeliveryServer};
use crate::comets::proto::delivery::{
    Acks, Credit, FromComet, Message, ToComet, Welcome, from_comet, to_comet,
};
use crate::comets::proto::{chatroom, goim};
use crate::comets::{
    CallMessage, CallOutcome, CallRequest, CallTimeouts, Config, Content, Dialect, Fleet, MemoryCometStore,
    MessageRun, Metrics, OrderHold, Outcomes, Payload, Run,
};
use crate::message::{CallTarget, CometAddr, MESSAGE_ID, NamedBy};

/// One call as a comet saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SeenCall {
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
pub(super) type FakeAnswer = (Duration, Result<(), Status>);
type FakeBehavior = Box<dyn Fn(&SeenCall, usize) -> FakeAnswer + Send>;

pub(super) struct FakeComet {
    pub(super) address: CometAddr,
    /// The streams that were opened, if it serves them.
    streams: tokio::sync::Mutex<mpsc::UnboundedReceiver<FakeStream>>,
    state: FakeService,
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
struct FakeService {
    calls: Arc<Mutex<Vec<SeenCall>>>,
    /// Rooms and keys that a call is under way for.
    busy: Arc<Mutex<Vec<String>>>,
    behavior: Arc<Mutex<FakeBehavior>>,
}

impl FakeComet {
    pub(super) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"))
    }

    pub(super) fn start_at(at: SocketAddr) -> Self {
        Self::start_with(at, false)
    }

    /// One that serves streams.
    pub(super) fn start_streaming() -> Self {
        Self::start_with("127.0.0.1:0".parse().expect("an address"), true)
    }

    pub(super) fn start_with(at: SocketAddr, has_streams: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        // The port of a comet that has just died is free in a moment.
        let until = std::time::Instant::now() + Duration::from_secs(10);
        let incoming = loop {
            match TcpIncoming::bind(at) {
                Ok(incoming) => break incoming.with_nodelay(Some(true)),
                Err(error) => assert!(std::time::Instant::now() < until, "a free port: {error}"),
            }
            std::thread::yield_now();
        };
        let address = incoming.local_addr().expect("bound").to_string().into();
        let state = FakeService {
            calls: Arc::default(),
            busy: Arc::default(),
            behavior: Arc::new(Mutex::new(Box::new(|_, _| (Duration::ZERO, Ok(()))))),
        };
        let (sender, streams) = mpsc::unbounded_channel();
        let delivery = has_streams.then(|| DeliveryServer::new(FakeDelivery(sender)));
        let server = tonic::transport::Server::builder()
            .add_service(chatroom::comet_server::CometServer::new(state.clone()))
            .add_service(goim::comet_server::CometServer::new(state.clone()))
            .add_optional_service(delivery)
            .serve_with_incoming(incoming);
        runtime.handle().spawn(async move { server.await.expect("serves") });
        drop(entered);
        Self { address, streams: streams.into(), state, runtime: Some(runtime) }
    }

    /// The next stream that the gateway opens, after its Hello.
    pub(super) async fn stream(&self) -> FakeStream {
        let mut streams = self.streams.lock().await;
        let next = tokio::time::timeout(Duration::from_secs(10), streams.recv()).await;
        let mut stream = next.expect("a stream within ten seconds").expect("it serves streams");
        drop(streams);
        let Some(to_comet::Frame::Hello(hello)) = stream.next().await else { panic!("the first is Hello") };
        assert_eq!((hello.version, hello.stream, hello.streams), (1, 0, 1));
        stream
    }

    /// The next stream, welcomed with much credit.
    pub(super) async fn welcomed(&self) -> FakeStream {
        let stream = self.stream().await;
        stream.welcome(Credit { messages: 1_000_000, bytes: 1 << 40 });
        stream
    }

    /// From now on it answers so. Gets the call and how many there were before.
    pub(super) fn answers(&self, behavior: impl Fn(&SeenCall, usize) -> FakeAnswer + Send + 'static) {
        *self.state.behavior.lock() = Box::new(behavior);
    }

    /// The calls until now, without the peers.
    pub(super) fn calls(&self) -> Vec<SeenCall> {
        let calls = self.state.calls.lock().clone();
        calls.into_iter().map(|call| SeenCall { peer: None, ..call }).collect()
    }

    /// From how many connections calls came.
    pub(super) fn connections(&self) -> usize {
        let calls = self.state.calls.lock();
        calls.iter().filter_map(|call| call.peer).collect::<std::collections::HashSet<_>>().len()
    }
}

/// One stream, as its comet sees it.
pub(super) struct FakeStream {
    incoming: tonic::Streaming<ToComet>,
    outgoing: mpsc::UnboundedSender<Result<FromComet, Status>>,
}

impl FakeStream {
    /// The next frame; `None` once the gateway has ended it.
    pub(super) async fn next(&mut self) -> Option<to_comet::Frame> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.incoming.message()).await;
        next.expect("a frame within ten seconds").ok()??.frame
    }

    /// The next messages, at least this many.
    pub(super) async fn messages(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            match self.next().await {
                Some(to_comet::Frame::Messages(more)) => messages.extend(more.messages),
                other => panic!("{other:?} after {} of {count} messages", messages.len()),
            }
        }
        messages
    }

    pub(super) fn send(&self, frame: from_comet::Frame) {
        // It fails if the gateway has ended the stream.
        drop(self.outgoing.send(Ok(FromComet { frame: Some(frame) })));
    }

    pub(super) fn welcome(&self, credit: Credit) {
        self.send(from_comet::Frame::Welcome(Welcome {
            version: 1,
            credit: Some(credit),
            ..Welcome::default()
        }));
    }

    pub(super) fn acknowledge(&self, up_to: u64) {
        self.send(from_comet::Frame::Acks(Acks { up_to, ..Acks::default() }));
    }

    /// Ends it with this status.
    pub(super) fn fail(self, status: Status) {
        drop(self.outgoing.send(Err(status)));
    }
}

struct FakeDelivery(mpsc::UnboundedSender<FakeStream>);

#[tonic::async_trait]
impl Delivery for FakeDelivery {
    type DeliverStream = BoxStream<'static, Result<FromComet, Status>>;

    async fn deliver(
        &self,
        request: Request<tonic::Streaming<ToComet>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let (outgoing, receiver) = mpsc::unbounded_channel();
        let stream = FakeStream { incoming: request.into_inner(), outgoing };
        self.0.send(stream).map_err(|_| Status::unavailable("the test is over"))?;
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        Ok(Response::new(frames.boxed()))
    }
}

impl FakeService {
    async fn take(&self, call: SeenCall) -> Result<(), Status> {
        let (delay, result) = {
            let mut calls = self.calls.lock();
            let answer = self.behavior.lock()(&call, calls.len());
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
    fn occupy(&self, call: &SeenCall, begin: bool) {
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
    values.flat_map(|value| value.to_str().expect("ASCII").split(',').map(str::to_owned)).collect()
}

macro_rules! serve {
    ($dialect:ident) => {
        #[tonic::async_trait]
        impl $dialect::comet_server::Comet for FakeService {
            async fn push_msg(
                &self,
                request: Request<$dialect::PushMsgReq>,
            ) -> Result<Response<$dialect::PushMsgReply>, Status> {
                let (ids, peer) = (ids(&request), request.remote_addr());
                let $dialect::PushMsgReq { keys, proto, proto_op } = request.into_inner();
                let $dialect::Proto { ver, op, seq, body } = proto.unwrap_or_default();
                let (head, proto_op) = ((ver, op, seq), Some(proto_op));
                let call =
                    SeenCall { method: "PushMsg", to: keys, head, body, proto_op, ids, peer, speed: None };
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
                    SeenCall { method: "Broadcast", to: Vec::new(), head, body, proto_op, speed, ids, peer };
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
                let call = SeenCall {
                    method: "BroadcastRoom",
                    to,
                    head,
                    body,
                    proto_op: None,
                    speed: None,
                    ids,
                    peer,
                };
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
        breaker_window: Duration::ZERO,
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

pub(super) const TIMING: CallTimeouts =
    CallTimeouts { request_timeout: Duration::from_secs(2), delivery_timeout: Duration::from_secs(10) };

pub(super) fn fleet(config: &Config, timing: CallTimeouts) -> Arc<Fleet> {
    fleet_with(config, timing, &mut Registry::default())
}

pub(super) fn fleet_with(config: &Config, timing: CallTimeouts, registry: &mut Registry) -> Arc<Fleet> {
    fleet_sharing(config, timing, registry, MemoryCometStore::default())
}

/// A fleet that shares what it knows through this store.
pub(super) fn fleet_sharing(
    config: &Config,
    timing: CallTimeouts,
    registry: &mut Registry,
    store: MemoryCometStore,
) -> Arc<Fleet> {
    Fleet::start(config, timing, Metrics::register(registry), Arc::new(store)).expect("TLS is set up")
}

/// What the gateway waits for where it has to.
pub(super) trait SendNow {
    /// Sends what there has to be room for.
    fn send_now(&self, request: CallRequest) -> CallHandle;
    /// Encodes what there has to be room for.
    fn payload_now(&self, operation: i32, body: &Bytes) -> Payload;
}

impl SendNow for Fleet {
    fn send_now(&self, request: CallRequest) -> CallHandle {
        let (outcomes, handle) = handle();
        self.try_send(replying_to(request, outcomes)).expect("room in the queue");
        handle
    }

    fn payload_now(&self, operation: i32, body: &Bytes) -> Payload {
        let content = Content { operation, body, sent_ms: 1, trace: None, replayed: false };
        self.payload(&content).now_or_never().expect("room for its bytes")
    }
}

/// Awaits the outcome of one call. Dropping it cancels the message.
#[derive(Debug)]
pub(super) struct CallHandle(oneshot::Receiver<CallOutcome>);

#[derive(Debug)]
struct Told(Mutex<Option<oneshot::Sender<CallOutcome>>>);

/// The receiver of a call's outcome, and a handle on the outcome.
pub(super) fn handle() -> (Arc<dyn Outcomes>, CallHandle) {
    let (sender, receiver) = oneshot::channel();
    (Arc::new(Told(Mutex::new(Some(sender)))), CallHandle(receiver))
}

/// One message whose outcome is reported there.
pub(super) fn run(payload: Payload, id: &str, outcomes: Arc<dyn Outcomes>) -> MessageRun {
    let run = Run::one(CallMessage { payload, id: id.into() });
    run.into_calls(1, outcomes).next().expect("one call")
}

/// The same request, with its outcome reported elsewhere.
pub(super) fn replying_to(request: CallRequest, outcomes: Arc<dyn Outcomes>) -> CallRequest {
    let CallMessage { payload, id } = request.run.first();
    let run = run(payload.clone(), id.as_str(), outcomes);
    CallRequest { run, ..request }
}

impl Outcomes for Told {
    fn not_acknowledged(&self, _: u32, _: usize, outcome: CallOutcome, _: Option<OrderHold>) {
        let sender = self.0.lock().take().expect("told once");
        drop(sender.send(outcome));
    }

    fn finish(self: Arc<Self>, _: Range<u32>) {
        if let Some(sender) = self.0.lock().take() {
            drop(sender.send(CallOutcome::Acknowledged));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.lock().as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl Future for CallHandle {
    type Output = CallOutcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CallOutcome> {
        Pin::new(&mut self.0).poll(context).map(|delivered| delivered.expect("every call has an outcome"))
    }
}

/// Sends as the gateway does where it may have to wait.
pub(super) async fn send_waiting(fleet: &Fleet, request: CallRequest) -> CallHandle {
    let (outcomes, handle) = handle();
    fleet.send(replying_to(request, outcomes)).await;
    handle
}

/// A request with operation 5.
pub(super) fn request(
    fleet: &Fleet,
    comet: &CometAddr,
    target: CallTarget,
    body: &str,
    id: &str,
) -> CallRequest {
    let payload = fleet.payload_now(5, &Bytes::copy_from_slice(body.as_bytes()));
    let named_by = NamedBy::Record;
    let run = run(payload, id, handle().0);
    CallRequest { comet: comet.clone(), named_by, target, room: None, run }
}

/// Sends to a room and waits for the outcome.
pub(super) async fn to_room(fleet: &Fleet, comet: &CometAddr, room: &str, body: &str) -> CallOutcome {
    fleet.send_now(request(fleet, comet, CallTarget::Room(room.into()), body, body)).await
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
