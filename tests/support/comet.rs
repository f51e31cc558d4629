//! Fake comets: gRPC servers in both dialects that record every call.
//!
//! A fake answers OK unless configured otherwise. It can be crashed and restarted on the same port.
//! Each has its own runtime, so that a crash closes its connections like the end of a process.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use halley::message::{CometAddr, MESSAGE_ID, REPLAYED, TRACEPARENT, TRACESTATE};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};

pub use super::comet_stream::StreamFault;
use super::{PATIENCE, comet_service, eventually};

/// The dialect of a comet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/ChatRoom.Comet.Comet/<Method>`
    Chatroom,
    /// `/goim.comet.Comet/<Method>`
    Goim,
}

/// How a comet takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// By calls only.
    Calls,
    /// By stream, and by calls.
    Streams,
}

/// The recipients of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// `BroadcastRoom`
    Room(String),
    /// `PushMsg`
    Keys(Vec<String>),
    /// `Broadcast`
    Everyone { speed: i32 },
    /// `Rooms`
    Rooms,
}

/// One frame, as clients receive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub ver: i32,
    pub op: i32,
    pub seq: i32,
    pub body: Bytes,
}

/// A received call.
#[derive(Debug, Clone)]
pub struct Call {
    pub to: To,
    /// `protoOp` of `PushMsg` and `Broadcast`.
    pub proto_op: i32,
    /// The `Proto` of the request.
    pub proto: Option<Packet>,
    /// The ids in `halley-message-id`, in order.
    pub messages: Vec<String>,
    /// Whether it was marked as coming from an inbox.
    pub replayed: bool,
    /// `traceparent` and `tracestate`; empty without them.
    pub trace: (String, String),
    /// When it arrived.
    pub at: Instant,
    /// Whether it was answered with an error: no client received it.
    pub refused: bool,
}

impl Call {
    /// A call with this metadata, which has arrived.
    pub(super) fn received(metadata: &tonic::metadata::MetadataMap) -> Self {
        let text = |name| {
            let value =
                metadata.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            value.unwrap_or_default()
        };
        Self {
            to: To::Rooms,
            proto_op: 0,
            proto: None,
            messages: message_ids(metadata),
            replayed: metadata.contains_key(REPLAYED),
            trace: (text(TRACEPARENT), text(TRACESTATE)),
            at: Instant::now(),
            refused: false,
        }
    }

    /// The messages for clients as (operation, body): in the goim dialect, every frame of the
    /// body; in the chatroom dialect, the one `Proto`.
    pub fn deliveries(&self) -> Vec<(i32, Bytes)> {
        let Some(proto) = &self.proto else { return Vec::new() };
        match frames(proto) {
            Some(frames) => frames.into_iter().map(|frame| (frame.op, frame.body)).collect(),
            None => vec![(proto.op, proto.body.clone())],
        }
    }
}

/// goim's framing: `packLen:4 headerLen:2 ver:2 op:4 seq:4` and the body, big-endian, in a
/// `Proto` whose operation is 9 (`OpRaw`).
fn frames(proto: &Packet) -> Option<Vec<Packet>> {
    if proto.op != 9 {
        return None;
    }
    let mut rest = proto.body.clone();
    let mut frames = Vec::new();
    while rest.has_remaining() {
        let length = rest.try_get_u32().ok()? as usize;
        let header = usize::from(rest.try_get_u16().ok()?);
        let ver = i32::from(rest.try_get_i16().ok()?);
        let (op, seq) = (rest.try_get_i32().ok()?, rest.try_get_i32().ok()?);
        let body = length.checked_sub(header).filter(|n| header == 16 && *n <= rest.len())?;
        frames.push(Packet { ver, op, seq, body: rest.split_to(body) });
    }
    Some(frames)
}

/// The reaction of a fake to a call, after recording it.
#[derive(Debug, Clone, Default)]
pub enum Behaviour {
    /// Answers OK.
    #[default]
    Ok,
    /// Answers with this status.
    Fail(Code),
    /// Answers OK after this time.
    Delay(Duration),
    /// Answers with this status after this time.
    FailLater(Duration, Code),
    /// Never answers.
    Hang,
}

/// State that is kept across restarts.
#[derive(Default)]
pub(super) struct CallLog {
    calls: Mutex<Vec<Call>>,
    count: watch::Sender<usize>,
    behaviour: Mutex<Behaviour>,
    fail_next: Mutex<(usize, Option<Code>)>,
    /// Rooms and keys that are refused, with the status code.
    refusing: Mutex<HashMap<String, Code>>,
    /// The mistake in the next acknowledgement of a stream.
    stream_fault: Mutex<Option<StreamFault>>,
}

impl CallLog {
    /// Records the call and reacts as configured.
    pub(super) async fn answer(&self, call: Call) -> Result<(), Status> {
        let behaviour = self.enter(call);
        match behaviour {
            Behaviour::Ok => Ok(()),
            Behaviour::Fail(code) => Err(Status::new(code, "the fake comet is configured to fail")),
            Behaviour::Delay(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Behaviour::FailLater(time, code) => {
                tokio::time::sleep(time).await;
                Err(Status::new(code, "the fake comet is configured to fail"))
            }
            Behaviour::Hang => std::future::pending().await,
        }
    }

    pub(super) fn take_stream_fault(&self) -> Option<StreamFault> {
        self.stream_fault.lock().take()
    }

    /// Records the call, and returns the reaction.
    pub(super) fn enter(&self, call: Call) -> Behaviour {
        let behaviour = self.refusing(&call.to).unwrap_or_else(|| self.behaviour());
        let refused = matches!(behaviour, Behaviour::Fail(_) | Behaviour::FailLater(..));
        let count = {
            let mut calls = self.calls.lock();
            calls.push(Call { refused, ..call });
            calls.len()
        };
        self.count.send_replace(count);
        behaviour
    }

    fn refusing(&self, to: &To) -> Option<Behaviour> {
        let refusing = self.refusing.lock();
        let code = match to {
            To::Room(room) => refusing.get(room),
            To::Keys(keys) => keys.iter().find_map(|key| refusing.get(key)),
            To::Everyone { .. } | To::Rooms => None,
        };
        code.map(|code| Behaviour::Fail(*code))
    }

    fn behaviour(&self) -> Behaviour {
        let mut fail_next = self.fail_next.lock();
        if let (left @ 1.., Some(code)) = *fail_next {
            fail_next.0 = left - 1;
            return Behaviour::Fail(code);
        }
        self.behaviour.lock().clone()
    }
}

/// A fake comet, running or stopped.
pub struct FakeComet {
    dialect: Dialect,
    serves: Mutex<Serves>,
    address: SocketAddr,
    call_log: Arc<CallLog>,
    server: Mutex<Option<Runtime>>,
}

impl FakeComet {
    /// Starts a fake of the chatroom dialect.
    pub async fn start() -> Self {
        Self::start_speaking(Dialect::Chatroom).await
    }

    /// Starts a fake of this dialect on a free port.
    pub async fn start_speaking(dialect: Dialect) -> Self {
        Self::start_serving(dialect, Serves::Calls).await
    }

    /// Starts a fake of this dialect on a free port, with streams or without.
    pub async fn start_serving(dialect: Dialect, serves: Serves) -> Self {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let call_log = Arc::new(CallLog::default());
        let (server, address) = serve(dialect, serves, anywhere, call_log.clone()).expect("a free port");
        Self { dialect, serves: Mutex::new(serves), address, call_log, server: Mutex::new(Some(server)) }
    }

    /// How it takes messages from its next start on.
    pub fn serve_from_now(&self, serves: Serves) {
        *self.serves.lock() = serves;
    }

    /// Makes this mistake in the next acknowledgement of a stream.
    pub fn misbehave(&self, fault: StreamFault) {
        *self.call_log.stream_fault.lock() = Some(fault);
    }

    /// Whether the last [`FakeComet::misbehave`] has happened.
    pub fn has_misbehaved(&self) -> bool {
        self.call_log.stream_fault.lock().is_none()
    }

    /// Its address, as `comet_id` in the directory.
    pub fn address(&self) -> CometAddr {
        CometAddr::from(self.address.to_string())
    }

    /// Sets the reaction from the next call on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.call_log.behaviour.lock() = behaviour;
    }

    /// The next `calls` calls fail with this status; then the previous reaction applies.
    pub fn fail_next(&self, calls: usize, code: Code) {
        *self.call_log.fail_next.lock() = (calls, Some(code));
    }

    /// Calls for this room or key fail with this status from now on.
    pub fn refuse(&self, room_or_key: &str, code: Code) {
        self.call_log.refusing.lock().insert(room_or_key.to_owned(), code);
    }

    /// Crashes: closes the port and all connections. Recorded calls are kept.
    pub async fn stop(&self) {
        let server = self.server.lock().take();
        let ended = tokio::task::spawn_blocking(move || {
            if let Some(server) = server {
                server.shutdown_timeout(Duration::from_secs(5));
            }
        });
        ended.await.expect("ending a runtime does not panic");
    }

    /// Starts again on the same port.
    pub async fn restart(&self) {
        self.stop().await;
        let server = eventually(format!("port {} to be free", self.address), PATIENCE, async || {
            serve(self.dialect, *self.serves.lock(), self.address, self.call_log.clone()).ok()
        });
        let (server, _) = server.await;
        *self.server.lock() = Some(server);
    }

    /// All calls so far, in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.call_log.calls.lock().clone()
    }

    /// The number of calls so far.
    pub fn count(&self) -> usize {
        *self.call_log.count.borrow()
    }

    /// All messages for clients so far as (recipients, operation, body as text), in order.
    pub fn deliveries(&self) -> Vec<(To, i32, String)> {
        deliveries(&self.calls())
    }

    /// Forgets the calls so far.
    pub fn forget(&self) {
        self.call_log.calls.lock().clear();
        self.call_log.count.send_replace(0);
    }

    /// Waits for at least `n` calls, and returns all of them.
    ///
    /// # Panics
    /// After [`PATIENCE`], with the calls so far.
    pub async fn wait_for(&self, n: usize) -> Vec<Call> {
        let mut count = self.call_log.count.subscribe();
        let enough = tokio::time::timeout(PATIENCE, count.wait_for(|count| *count >= n)).await;
        assert!(enough.is_ok(), "wanted {n} calls within {PATIENCE:?}; {self:?}");
        self.calls()
    }

    /// Waits for exactly these messages (recipients, operation, body), in this order.
    ///
    /// # Panics
    /// If anything else arrives, or after [`PATIENCE`].
    pub async fn wait_for_deliveries(&self, wanted: &[(To, i32, &str)]) {
        let mut count = self.call_log.count.subscribe();
        let same = |have: &[(To, i32, String)]| {
            have.iter().zip(wanted).all(|(h, w)| (&h.0, h.1, h.2.as_str()) == (&w.0, w.1, w.2))
        };
        let all = count.wait_for(|_| {
            let have = self.deliveries();
            assert!(have.len() <= wanted.len() && same(&have), "wanted {wanted:#?}; {self:?}");
            have.len() == wanted.len()
        });
        let all = tokio::time::timeout(PATIENCE, all).await.map(|_| ());
        assert!(all.is_ok(), "wanted {wanted:#?} within {PATIENCE:?}; {self:?}");
    }
}

impl Drop for FakeComet {
    fn drop(&mut self) {
        // Without waiting: dropping a runtime inside another one would block it.
        if let Some(server) = self.server.lock().take() {
            server.shutdown_background();
        }
    }
}

impl fmt::Debug for FakeComet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.calls();
        writeln!(f, "comet {} ({:?}) has {} calls:", self.address, self.dialect, calls.len())?;
        // Limits the output of stories with thousands of calls.
        for call in calls.iter().take(50) {
            let bodies = deliveries(std::slice::from_ref(call));
            writeln!(f, "  {:?} messages {:?} deliveries {bodies:?}", call.to, call.messages)?;
        }
        Ok(())
    }
}

pub(super) fn deliveries(calls: &[Call]) -> Vec<(To, i32, String)> {
    let mut all = Vec::new();
    for call in calls {
        for (operation, body) in call.deliveries() {
            all.push((call.to.clone(), operation, String::from_utf8_lossy(&body).into_owned()));
        }
    }
    all
}

fn serve(
    dialect: Dialect,
    serves: Serves,
    address: SocketAddr,
    call_log: Arc<CallLog>,
) -> std::io::Result<(Runtime, SocketAddr)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let entered = runtime.enter();
    let incoming = match TcpIncoming::bind(address) {
        Ok(incoming) => incoming.with_nodelay(Some(true)),
        Err(error) => {
            drop(entered);
            runtime.shutdown_background();
            return Err(error);
        }
    };
    let address = incoming.local_addr()?;
    // The runtime owns the task, and the fake owns the runtime.
    drop(runtime.spawn(comet_service::router(dialect, serves, call_log).serve_with_incoming(incoming)));
    drop(entered);
    Ok((runtime, address))
}

/// The ids of the messages of a call, in order: entries of `halley-message-id` are lists.
fn message_ids(metadata: &tonic::metadata::MetadataMap) -> Vec<String> {
    let values = metadata.get_all(MESSAGE_ID).iter();
    let list =
        |value: &[u8]| String::from_utf8_lossy(value).split(',').map(str::to_owned).collect::<Vec<_>>();
    values.flat_map(|value| list(value.as_bytes())).collect()
}
