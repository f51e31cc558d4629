//! Cheap comets: bare HTTP/2 servers that answer gRPC calls with OK, and count them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use halley::comets::proto::goim::{BroadcastRoomReq, Proto};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::producer::{Stamp, now};
use crate::streams;

/// gRPC's prefix of every message.
const PREFIX: usize = 5;
/// goim: the body is made of frames (`OpRaw`).
const OP_RAW: i32 = 9;
const FRAME_HEADER: usize = 16;
/// The minimum of comets with grpc-go.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The number of messages whose latency is recorded.
const LATENCIES: usize = 1 << 20;

/// The running comets, each on its own port.
pub(crate) struct Comets {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

/// State that all comets share.
pub(crate) struct Shared {
    /// Whether streams are served.
    streams: AtomicBool,
    calls: AtomicU64,
    messages: AtomicU64,
    delay: AtomicU64,
    /// While it is set, nothing is answered.
    held: watch::Sender<bool>,
    seen: Vec<Mutex<Seen>>,
}

/// The messages that one comet received.
#[derive(Default)]
struct Seen {
    rooms: HashMap<String, u64>,
    latencies: Vec<Duration>,
    again: u64,
    skipped: u64,
}

impl Comets {
    /// Starts this many comets.
    ///
    /// # Errors
    /// When no ports are free.
    pub(crate) fn start(count: usize) -> anyhow::Result<Self> {
        // One thread for all: on a small machine the gateway needs the others.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shared = Arc::new(Shared {
            streams: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            held: watch::Sender::new(false),
            seen: std::iter::repeat_with(Mutex::default).take(count).collect(),
        });
        let mut addresses = Vec::new();
        for comet in 0..count {
            let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
            addresses.push(listener.local_addr()?);
            // The runtime owns the task.
            drop(runtime.spawn(listen(listener, comet, Arc::clone(&shared))));
        }
        Ok(Self { addresses, shared, _runtime: runtime })
    }

    /// The addresses of the first ones.
    pub(crate) fn addresses(&self, count: usize) -> &[SocketAddr] {
        &self.addresses[..count]
    }

    /// Clears the records. From now on, calls are answered after this time, and streams are served or
    /// not.
    pub(crate) fn reset(&self, delay: Duration, streams: bool) {
        self.shared.streams.store(streams, Ordering::Relaxed);
        self.shared.delay.store(delay.as_micros() as u64, Ordering::Relaxed);
        self.shared.held.send_replace(false);
        self.forget();
    }

    /// Clears the records.
    pub(crate) fn forget(&self) {
        for seen in &self.shared.seen {
            *lock(seen) = Seen::default();
        }
        self.shared.calls.store(0, Ordering::Relaxed);
        self.shared.messages.store(0, Ordering::Relaxed);
    }

    /// From now on, nothing is answered until the next reset.
    pub(crate) fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Messages so far.
    pub(crate) fn messages(&self) -> u64 {
        self.shared.messages.load(Ordering::Relaxed)
    }

    /// How often a room's messages were repeated, and how often some were skipped: those arrive later, or
    /// never.
    pub(crate) fn disorder(&self) -> (u64, u64) {
        let sum = |(again, skipped), seen: &Mutex<Seen>| {
            let seen = lock(seen);
            (again + seen.again, skipped + seen.skipped)
        };
        self.shared.seen.iter().fold((0, 0), sum)
    }

    /// The latencies of the messages so far, the shortest first.
    pub(crate) fn latencies(&self) -> Vec<Duration> {
        let mut all: Vec<Duration> =
            self.shared.seen.iter().flat_map(|seen| lock(seen).latencies.clone()).collect();
        all.sort_unstable();
        all
    }
}

impl Shared {
    fn count(&self, comet: usize, request: &BroadcastRoomReq) {
        let mut messages = 0;
        if let Some(proto) = &request.proto {
            messages = lock(&self.seen[comet]).take(&request.room_id, proto);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.messages.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts the messages of one frame, which counts as a call.
    pub(crate) fn count_streamed<'a>(
        &self,
        comet: usize,
        messages: impl Iterator<Item = (&'a str, &'a Bytes)>,
    ) {
        let mut seen = lock(&self.seen[comet]);
        let mut count = 0;
        for (room, body) in messages {
            seen.take_bodies(room, std::iter::once(body.clone()));
            count += 1;
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.messages.fetch_add(count, Ordering::Relaxed);
    }

    /// Waits as long as answers take.
    pub(crate) async fn wait(&self) {
        let delay = Duration::from_micros(self.delay.load(Ordering::Relaxed));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if *self.held.borrow() {
            // Ends when it is let go; the sender lives as long as this.
            drop(self.held.subscribe().wait_for(|held| !held).await);
        }
    }
}

impl Seen {
    /// Records the messages of a call, and returns their number.
    fn take(&mut self, room: &str, proto: &Proto) -> u64 {
        let is_raw = proto.op == OP_RAW;
        let mut rest = proto.body.clone();
        let next = move || if is_raw { frame(&mut rest) } else { one(&mut rest) };
        self.take_bodies(room, std::iter::from_fn(next))
    }

    fn take_bodies(&mut self, room: &str, bodies: impl Iterator<Item = Bytes>) -> u64 {
        let mut last = self.rooms.get(room).copied();
        let mut messages = 0;
        for body in bodies {
            messages += 1;
            let Some(stamp) = Stamp::read(&body) else { continue };
            match last {
                Some(last) if stamp.number <= last => self.again += 1,
                Some(last) if stamp.number > last + 1 => self.skipped += 1,
                _ => {}
            }
            last = Some(stamp.number);
            if self.latencies.len() < LATENCIES {
                self.latencies.push(now().saturating_sub(stamp.at));
            }
        }
        if let Some(last) = last {
            match self.rooms.get_mut(room) {
                Some(known) => *known = last,
                None => drop(self.rooms.insert(room.to_owned(), last)),
            }
        }
        messages
    }
}

/// The next frame's body: `packLen:4 headerLen:2 ver:2 op:4 seq:4`, then the body.
fn frame(rest: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(rest.get(..4)?.get_u32()).ok()?;
    if length < FRAME_HEADER || length > rest.len() {
        return None;
    }
    let mut frame = rest.split_to(length);
    frame.advance(FRAME_HEADER);
    Some(frame)
}

/// The whole of it, once.
fn one(rest: &mut Bytes) -> Option<Bytes> {
    if rest.is_empty() { None } else { Some(std::mem::take(rest)) }
}

async fn listen(listener: TcpListener, comet: usize, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    drop(stream.set_nodelay(true));
                    connections.spawn(serve(stream, comet, Arc::clone(&shared)));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// One connection, until the client closes it or breaks the protocol.
async fn serve(stream: TcpStream, comet: usize, shared: Arc<Shared>) -> Option<()> {
    let mut http2 = Builder::new();
    http2.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    let mut connection = http2.handshake(stream).await.ok()?;
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let (request, respond) = accepted?.ok()?;
                calls.push(answer(request, respond, comet, &shared));
            }
            // The caller has cancelled the call.
            Some(_answered) = calls.next() => {}
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    comet: usize,
    shared: &Shared,
) -> Result<(), h2::Error> {
    if request.uri().path() == streams::PATH && shared.streams.load(Ordering::Relaxed) {
        return streams::serve(request.into_body(), respond, comet, shared).await;
    }
    let is_room = request.uri().path().ends_with("/BroadcastRoom");
    let body = read(request.into_body()).await?;
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let request = body
        .get(PREFIX..)
        .filter(|_| is_room)
        .and_then(|_| BroadcastRoomReq::decode(body.slice(PREFIX..)).ok());
    let Some(request) = request else {
        // Other methods are not needed: UNIMPLEMENTED.
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("12"));
        return respond.send_response(response, true).map(drop);
    };
    shared.count(comet, &request);
    shared.wait().await;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(&[0; PREFIX]), false)?;
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

async fn read(mut body: RecvStream) -> Result<Bytes, h2::Error> {
    let mut whole = Bytes::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        whole = if whole.is_empty() {
            data
        } else {
            let mut more = BytesMut::from(whole);
            more.extend_from_slice(&data);
            more.freeze()
        };
    }
    Ok(whole)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
