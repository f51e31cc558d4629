//! A comet on another gRPC implementation: a process that reports every call.

use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use halley::comets::proto::chatroom;
use halley::message::CometAddr;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::program;
use crate::support::child_process::ChildProcess;
use crate::support::comet::{Call, Packet, To, deliveries};
use crate::support::redis_nodes::free_port;
use crate::support::{PATIENCE, eventually, folder, repository};

/// The gRPC implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// grpc-go.
    GrpcGo,
    /// gRPC's C core, by way of Python's grpcio.
    GrpcCore,
}

/// A running comet. It serves both dialects, with its implementation's own limits on pings.
pub struct PeerComet {
    stack: Stack,
    port: u16,
    process: Mutex<ChildProcess>,
}

impl PeerComet {
    /// Starts it and waits until it listens. `None`, with a warning, if its tools are missing.
    pub async fn start(stack: Stack) -> Option<Self> {
        let port = free_port();
        let (program, mut args) = match stack {
            Stack::GrpcGo => (program("go").await?, vec!["comet".to_owned()]),
            Stack::GrpcCore => {
                let script = repository("tests/peers/python/comet.py").display().to_string();
                (program("python").await?, vec![script])
            }
        };
        args.push(port.to_string());
        let process = ChildProcess::start(&program.display().to_string(), &args, folder("comet"));
        let comet = Self { stack, port, process: Mutex::new(process.expect("what was built starts")) };
        comet.listening(1).await;
        Some(comet)
    }

    /// Its address, as `comet_id` in the directory.
    pub fn address(&self) -> CometAddr {
        CometAddr::from(format!("127.0.0.1:{}", self.port))
    }

    /// From the next call on, answers after this delay with this status, or OK.
    pub async fn behave(&self, delay: Duration, status: Option<(Code, &str)>) {
        let (code, message) = status.unwrap_or((Code::Ok, ""));
        let wanted = json!({ "delay_ms": delay.as_millis(), "status": code as i32, "message": message });
        let endpoint = Channel::from_shared(format!("http://{}", self.address())).expect("an address");
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.expect("it listens"));
        client.ready().await.expect("it listens");
        let codec = RawCodec;
        let request = tonic::Request::new(wanted.to_string().into_bytes());
        let path = PathAndQuery::from_static("/halley.Peer/Behave");
        client.unary(request, path, codec).await.expect("the peer accepts the setting");
    }

    /// Kills it: every connection is closed. Reported calls are kept.
    pub fn stop(&self) {
        self.process.lock().kill();
    }

    /// Kills it if it runs, and restarts it on the same port.
    pub async fn restart(&self) {
        let starts = self.events().iter().filter(|event| event.get("listening").is_some()).count();
        self.process.lock().restart().expect("what was built starts");
        self.listening(starts + 1).await;
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    pub fn signal(&self, signal: &str) {
        self.process.lock().signal(signal);
    }

    /// All calls so far, in order of arrival; `at` is when they are read.
    pub fn calls(&self) -> Vec<Call> {
        self.events().iter().filter_map(call).collect()
    }

    /// The number of opened and of closed connections; only grpc-go reports it. Those of
    /// [`Self::behave`] count as well.
    pub fn connections(&self) -> (usize, usize) {
        let events = self.events();
        let count = |what| events.iter().filter(|event| event["connection"] == what).count();
        (count("opened"), count("closed"))
    }

    /// All messages for clients so far as (recipients, operation, body as text), in order.
    pub fn deliveries(&self) -> Vec<(To, i32, String)> {
        deliveries(&self.calls())
    }

    /// Waits for at least `n` calls, and returns all of them.
    ///
    /// # Panics
    /// After [`PATIENCE`], with the calls so far.
    pub async fn wait_for(&self, n: usize) -> Vec<Call> {
        let until = Instant::now() + PATIENCE;
        loop {
            let calls = self.calls();
            if calls.len() >= n {
                return calls;
            }
            assert!(Instant::now() < until, "wanted {n} calls within {PATIENCE:?}; {self:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for exactly these messages (recipients, operation, body), in this order.
    ///
    /// # Panics
    /// If anything else arrives, or after [`PATIENCE`].
    pub async fn wait_for_deliveries(&self, wanted: &[(To, i32, &str)]) {
        let until = Instant::now() + PATIENCE;
        let wanted: Vec<_> =
            wanted.iter().map(|(to, operation, body)| (to.clone(), *operation, (*body).to_owned())).collect();
        loop {
            let have = self.deliveries();
            if have == wanted {
                return;
            }
            let hope = wanted.starts_with(&have) && Instant::now() < until;
            assert!(hope, "wanted {wanted:#?} within {PATIENCE:?}; {self:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn listening(&self, starts: usize) {
        eventually(format!("{self:?} to listen"), PATIENCE, async || {
            let ended = self.process.lock().ended();
            assert!(ended.is_none(), "it ended with {ended:?}; {self:?}");
            let listening = self.events().into_iter().filter(|event| event.get("listening").is_some());
            (listening.count() >= starts).then_some(())
        })
        .await;
    }

    /// Its reports, line by line; an incomplete line is left for later.
    fn events(&self) -> Vec<Value> {
        let log = self.process.lock().log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl fmt::Debug for PeerComet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.process.lock().log();
        let last: Vec<&str> = log.lines().rev().take(50).collect();
        writeln!(f, "comet {} on {:?}, last reports:", self.address(), self.stack)?;
        last.iter().rev().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Parses the line about a call. The dialects share their messages, field by field.
fn call(event: &Value) -> Option<Call> {
    let method = event.get("method")?.as_str()?.rsplit('/').next()?;
    let request = STANDARD.decode(event["request"].as_str().unwrap_or_default()).expect("base64");
    let request = Bytes::from(request);
    let (to, proto_op, proto) = match method {
        "PushMsg" => {
            let request = chatroom::PushMsgReq::decode(request).expect("a PushMsgReq");
            (To::Keys(request.keys), request.proto_op, request.proto)
        }
        "Broadcast" => {
            let request = chatroom::BroadcastReq::decode(request).expect("a BroadcastReq");
            (To::Everyone { speed: request.speed }, request.proto_op, request.proto)
        }
        "BroadcastRoom" => {
            let request = chatroom::BroadcastRoomReq::decode(request).expect("a BroadcastRoomReq");
            (To::Room(request.room_id), 0, request.proto)
        }
        _ => (To::Rooms, 0, None),
    };
    let ids = event["ids"].as_array().map_or(&[][..], Vec::as_slice);
    Some(Call {
        to,
        proto_op,
        proto: proto.map(Packet::from),
        messages: ids.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        at: Instant::now(),
        replayed: false,
        trace: Default::default(),
        refused: false,
    })
}

/// Passes messages through unchanged.
#[derive(Default)]
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = ();
    type Error = tonic::Status;

    fn decode(&mut self, _: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, tonic::Status> {
        Ok(Some(()))
    }
}
