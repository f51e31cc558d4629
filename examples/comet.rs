//! An example comet: from Halley's gRPC calls to browsers.
//!
//! ```text
//! cargo run --example comet            # then open http://127.0.0.1:8081
//! cargo run --example produce -- room video_123 "hello"
//! ```
//!
//! A comet holds users' connections. This one shows all that Halley needs of it:
//!
//! - It serves the `chatroom` dialect, all four methods, and drops messages that come a second
//!   time (Halley delivers at least once) by the `halley-message-id` metadata.
//! - It serves streamed delivery as well (`comet/stream.rs`), which is cheaper for both sides.
//! - It writes each connection into Redis and takes it out again: `room:connections:{room}`,
//!   `connection:info:{connection}`, and `user:online:{user}`, which expires after 300 s and is
//!   renewed while the user is connected.
//! - It shows first what the user missed (`comet/inbox.rs`), if `--inbox` names the gateway's API.
//! - Memory is bounded: a browser that does not keep up is disconnected.
//!
//! It knows nothing of Kafka and asks nobody who a user is: an example, not a product.

#[path = "comet/inbox.rs"]
mod inbox;
#[path = "comet/stream.rs"]
mod stream;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use clap::Parser;
use halley::api::proto::inbox::Entry;
use halley::comets::proto::chatroom::comet_server::{Comet, CometServer};
use halley::comets::proto::chatroom::{
    BroadcastReply, BroadcastReq, BroadcastRoomReply, BroadcastRoomReq, Proto, PushMsgReply, PushMsgReq,
    RoomsReply, RoomsReq,
};
use halley::message::MESSAGE_ID;
use inbox::Inboxes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status, metadata::MetadataMap};
use tracing::{info, warn};

/// A user counts as online for this long after the last renewal.
const ONLINE: Duration = Duration::from_secs(300);
/// Often enough for two lost renewals to do no harm; each is also a ping to the browser.
const RENEWAL: Duration = Duration::from_secs(60);
/// Messages that wait for one browser before it counts as too slow.
const QUEUE: usize = 256;
/// Message ids that are remembered for one browser.
const REMEMBERED: usize = 1000;
/// How long the end may take, and one write to a browser.
const GRACE: Duration = Duration::from_secs(5);

/// An example comet: takes messages from Halley by gRPC and shows them in browsers.
#[derive(Parser)]
struct Args {
    /// Where to take gRPC calls from the gateway.
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where to serve the page and its WebSocket.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    http: SocketAddr,
    /// The gRPC address that the gateway reaches this comet at, when it is not --listen.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The Redis that the gateway reads its directory from.
    #[arg(long, default_value = "redis://127.0.0.1:6379", value_name = "URL")]
    redis: String,
    /// The gateway's API (`[api] listen`), such as http://127.0.0.1:9094: users who return get what they
    /// missed.
    #[arg(long, value_name = "URL")]
    inbox: Option<String>,
    /// The token for the API.
    #[arg(long, env = "HALLEY_API_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    inbox_token: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_target(false).init();
    let args = Args::parse();
    let redis = Redis::connect(&args.redis).await?;
    let grpc = TcpIncoming::bind(args.listen)
        .map(|incoming| incoming.with_nodelay(Some(true)))
        .with_context(|| format!("cannot listen on --listen {}", args.listen))?;
    let http = TcpListener::bind(args.http).await;
    let http = http.with_context(|| format!("cannot listen on --http {}", args.http))?;
    let address = args.advertise.unwrap_or(grpc.local_addr()?.to_string());
    info!("comet {address}: gRPC on {}, open http://{} in a browser", grpc.local_addr()?, http.local_addr()?);

    let inboxes = |url| Inboxes::new(url, args.inbox_token.as_deref());
    let inboxes = args.inbox.map(inboxes).transpose().context("--inbox or --inbox-token is not valid")?;
    let comet = Arc::new(ExampleComet {
        address,
        redis,
        inboxes,
        hub: Mutex::default(),
        draining: CancellationToken::new(),
        browsers: TaskTracker::new(),
        streams: TaskTracker::new(),
    });
    let pages = axum::Router::new()
        .route("/", get(async || Html(include_str!("comet.html"))))
        .route("/ws", get(upgrade))
        .with_state(comet.clone());
    let server = tonic::transport::Server::builder()
        .add_service(CometServer::from_arc(comet.clone()))
        .add_service(stream::service(comet.clone()));
    tokio::select! {
        ended = server.serve_with_incoming(grpc) => ended?,
        ended = axum::serve(http, pages).into_future() => ended?,
        () = asked_to_stop_and_drained(&comet) => {}
    }
    Ok(())
}

/// A connection to Redis, made again when it broke.
struct Redis {
    client: redis::Client,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

impl Redis {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = redis::Client::open(url).with_context(|| format!("--redis {url} is not a Redis URL"))?;
        let connected = client.get_multiplexed_async_connection().await;
        let connection = connected
            .with_context(|| format!("no Redis at {url}; start redis-server or name another with --redis"))?;
        Ok(Self { client, connection: tokio::sync::Mutex::new(Some(connection)) })
    }

    async fn query<T: redis::FromRedisValue>(&self, pipe: &redis::Pipeline) -> redis::RedisResult<T> {
        let mut connection = self.connection().await?;
        let answer = pipe.query_async(&mut connection).await;
        if answer.is_err() {
            *self.connection.lock().await = None;
        }
        answer
    }

    async fn connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        Ok(kept.insert(self.client.get_multiplexed_async_connection().await?).clone())
    }
}

/// Waits for SIGINT or SIGTERM; then every connection leaves the directory, while both servers
/// still run, so that no message is sent to a comet that is gone.
async fn asked_to_stop_and_drained(comet: &ExampleComet) {
    let mut terminate =
        signal(SignalKind::terminate()).expect("signals can be listened to in a tokio runtime");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    info!("stopping: {} connections leave", comet.hub.lock().browsers.len());
    comet.draining.cancel();
    comet.browsers.close();
    comet.streams.close();
    // Streams that gateways do not end in time break off; what they carried is delivered elsewhere.
    drop(tokio::time::timeout(GRACE / 2, comet.streams.wait()).await);
    if tokio::time::timeout(GRACE, comet.browsers.wait()).await.is_err() {
        warn!(
            "not every connection could be taken out of Redis within {GRACE:?}; those stay until cleaned up"
        );
    }
}

/// The comet: what its gRPC and its HTTP side share.
struct ExampleComet {
    /// What the directory calls this comet.
    address: String,
    redis: Redis,
    /// What users missed.
    inboxes: Option<Inboxes>,
    hub: Mutex<Hub>,
    /// Cancelled when every browser has to go.
    draining: CancellationToken,
    /// The tasks of all browsers, and of all streams of gateways.
    browsers: TaskTracker,
    streams: TaskTracker,
}

/// The connected browsers by connection id.
#[derive(Default)]
struct Hub {
    browsers: HashMap<String, Browser>,
}

struct Browser {
    room: String,
    queue: mpsc::Sender<Event>,
    seen: Seen,
}

/// A message on its way to a browser.
#[derive(Clone)]
struct Event {
    id: Option<Arc<str>>,
    text: Utf8Bytes,
}

/// The message ids that a browser has had, the oldest forgotten first.
#[derive(Default)]
struct Seen {
    ids: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl Seen {
    /// Whether this id comes for the first time.
    fn is_new(&mut self, id: &Arc<str>) -> bool {
        if !self.ids.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id.clone());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// Whom a call is for.
enum To<'a> {
    Room(&'a str),
    Connections(&'a [String]),
    Everyone,
}

impl Hub {
    /// Who of these is not here, if anyone; an empty list means that nobody of the room is.
    fn missing(&self, to: &To<'_>) -> Option<Vec<String>> {
        match to {
            To::Room(room) => {
                let is_empty = !self.browsers.values().any(|browser| browser.room == *room);
                is_empty.then(Vec::new)
            }
            To::Connections(keys) => {
                let missing = keys.iter().filter(|key| !self.browsers.contains_key(*key));
                Some(missing.cloned().collect::<Vec<_>>()).filter(|missing| !missing.is_empty())
            }
            To::Everyone => None,
        }
    }

    /// Puts a message into the queues of those it is for; browsers with a full queue are thrown
    /// out. Repeats are dropped per browser, because one message may come in several calls, each
    /// for other connections.
    fn deliver(&mut self, to: &To<'_>, event: &Event) {
        let send = |connection: &str, browser: &mut Browser| {
            let repeated = event.id.as_ref().is_some_and(|id| !browser.seen.is_new(id));
            let kept_up = repeated || browser.queue.try_send(event.clone()).is_ok();
            if !kept_up {
                warn!("connection {connection} does not keep up: disconnected");
            }
            kept_up
        };
        if let To::Connections(keys) = to {
            for key in *keys {
                let Some(browser) = self.browsers.get_mut(key) else { continue };
                if !send(key, browser) {
                    self.browsers.remove(key);
                }
            }
            return;
        }
        let concerned = |browser: &Browser| match to {
            To::Room(room) => browser.room == *room,
            To::Connections(_) | To::Everyone => true,
        };
        self.browsers.retain(|connection, browser| !concerned(browser) || send(connection, browser));
    }
}

impl ExampleComet {
    /// Answers a call that carries a message.
    fn take(&self, metadata: &MetadataMap, to: &To<'_>, proto: Option<Proto>) -> Result<(), Status> {
        let proto = proto.ok_or_else(|| Status::invalid_argument("the request has no `proto`"))?;
        // The chatroom dialect has one message, and so one id, in each call.
        let id = metadata.get(MESSAGE_ID).and_then(|id| id.to_str().ok()).map(Arc::from);
        // A call cannot say who is missing.
        self.show(to, proto.op, &proto.body, id);
        Ok(())
    }

    /// Shows a message to those it is for. Returns the connections that are not here, if any; an empty
    /// list means that nobody of the room is.
    fn show(&self, to: &To<'_>, operation: i32, body: &[u8], id: Option<Arc<str>>) -> Option<Vec<String>> {
        let to_whom = match to {
            To::Room(_) => "room",
            To::Connections(_) => "you",
            To::Everyone => "everyone",
        };
        let body = String::from_utf8_lossy(body);
        let event = serde_json::json!({ "to": to_whom, "op": operation, "body": body, "id": id });
        let mut hub = self.hub.lock();
        let missing = hub.missing(to);
        hub.deliver(to, &Event { text: event.to_string().into(), id });
        missing
    }

    /// Writes a connection into the directory; again and again, so that it heals there.
    async fn register(&self, visit: &Visit, connection: &str) -> redis::RedisResult<()> {
        let info = [("comet_id", self.address.as_str()), ("user_id", &visit.user), ("room_id", &visit.room)];
        let mut pipe = redis::pipe();
        // The details first: a member of a room without details is a stale one.
        pipe.hset_multiple(format!("connection:info:{connection}"), &info).ignore();
        pipe.sadd(format!("room:connections:{}", visit.room), connection).ignore();
        pipe.set_ex(format!("user:online:{}", visit.user), connection, ONLINE.as_secs()).ignore();
        self.redis.query(&pipe).await
    }

    /// Takes a connection out of the directory. The user stays online when another connection of
    /// theirs was registered later.
    async fn unregister(&self, visit: &Visit, connection: &str) -> redis::RedisResult<()> {
        let online = format!("user:online:{}", visit.user);
        let mut pipe = redis::pipe();
        pipe.srem(format!("room:connections:{}", visit.room), connection).ignore();
        pipe.del(format!("connection:info:{connection}")).ignore();
        pipe.get(&online);
        let (newest,): (Option<String>,) = self.redis.query(&pipe).await?;
        if newest.as_deref() == Some(connection) {
            let mut pipe = redis::pipe();
            pipe.del(&online).ignore();
            self.redis.query::<()>(&pipe).await?;
        }
        Ok(())
    }
}

/// What the page asks for.
#[derive(serde::Deserialize)]
struct Visit {
    user: String,
    room: String,
    /// Each device has its own position in the user's inbox.
    #[serde(default = "any_device")]
    device: String,
}

fn any_device() -> String {
    "browser".to_owned()
}

async fn upgrade(
    State(comet): State<Arc<ExampleComet>>,
    Query(visit): Query<Visit>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let fits = |name: &str| (1..=128).contains(&name.len());
    if !fits(&visit.user) || !fits(&visit.room) || !fits(&visit.device) {
        return (axum::http::StatusCode::BAD_REQUEST, "user and room take 1 to 128 bytes").into_response();
    }
    let serving = comet.browsers.token();
    upgrade.on_upgrade(async move |socket| {
        let _serving = serving;
        serve_browser(&comet, &visit, socket).await;
    })
}

/// The life of one browser's connection.
async fn serve_browser(comet: &ExampleComet, visit: &Visit, mut socket: WebSocket) {
    let connection = format!("conn-{:016x}", fastrand::u64(..));
    let (queue, mut events) = mpsc::channel(QUEUE);
    // Known here before the directory knows it, and here until the directory has forgotten it.
    let browser = Browser { room: visit.room.clone(), queue, seen: Seen::default() };
    comet.hub.lock().browsers.insert(connection.clone(), browser);
    info!("{connection}: user {} enters room {}", visit.user, visit.room);

    let hello = serde_json::json!({ "connection": connection, "comet": comet.address });
    let mut goes_on = send(&mut socket, Message::text(hello.to_string())).await
        && renew(comet, visit, &connection, &mut socket).await;
    // Live messages stay in the queue until what was missed has been shown.
    let missed = match goes_on {
        true => show_missed(comet, visit, &connection, &mut socket).await,
        false => HashSet::new(),
    };
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.reset();
    if goes_on {
        loop {
            goes_on = tokio::select! {
                event = events.recv() => match event {
                    Some(Event { id: Some(id), .. }) if missed.contains(&id) => true,
                    Some(event) => send(&mut socket, Message::Text(event.text)).await,
                    None => false, // thrown out by the hub
                },
                said = socket.recv() => matches!(said, Some(Ok(said)) if !matches!(said, Message::Close(_))),
                _ = renewal.tick() => renew(comet, visit, &connection, &mut socket).await,
                () = comet.draining.cancelled() => false,
            };
            if !goes_on {
                break;
            }
        }
    }

    if let Err(error) = comet.unregister(visit, &connection).await {
        warn!("{connection}: could not be taken out of Redis, where it is now stale: {error}");
    }
    comet.hub.lock().browsers.remove(&connection);
    info!("{connection}: user {} leaves room {}", visit.user, visit.room);
}

/// Shows what the user missed. Returns the ids of it: live messages that are held meanwhile may repeat
/// them.
async fn show_missed(
    comet: &ExampleComet,
    visit: &Visit,
    connection: &str,
    socket: &mut WebSocket,
) -> HashSet<Arc<str>> {
    let mut shown = HashSet::new();
    let Some(inboxes) = &comet.inboxes else { return shown };
    match show_pages(inboxes, visit, connection, socket, &mut shown).await {
        Ok(()) => info!("{connection}: user {} missed {} messages", visit.user, shown.len()),
        // What was not shown comes with the next visit.
        Err(status) => warn!("{connection}: the inbox of {} cannot be read: {status}", visit.user),
    }
    shown
}

/// Shows each page, and acknowledges it then.
async fn show_pages(
    inboxes: &Inboxes,
    visit: &Visit,
    connection: &str,
    socket: &mut WebSocket,
    shown: &mut HashSet<Arc<str>>,
) -> Result<(), Status> {
    let mut pages = inboxes.replay(&visit.user, &visit.device, connection).await?;
    while let Some(page) = pages.message().await? {
        if page.truncated {
            warn!("{connection}: user {} missed more than is kept", visit.user);
        }
        if page.entries.is_empty() {
            continue;
        }
        for entry in page.entries {
            let id: Arc<str> = entry.id.as_str().into();
            if shown.insert(id) && !send(socket, Message::text(missed(&entry).to_string())).await {
                return Err(Status::cancelled("the browser has gone"));
            }
        }
        inboxes.acknowledge(&visit.user, &visit.device, page.next).await?;
    }
    Ok(())
}

/// A missed message, as the page shows it.
fn missed(entry: &Entry) -> serde_json::Value {
    serde_json::json!({
        "to": if entry.room.is_empty() { "you" } else { "room" },
        "op": entry.operation,
        "body": String::from_utf8_lossy(&entry.body),
        "id": entry.id,
        "missed": true,
        "sent_ms": entry.sent_ms,
    })
}

/// Registers the connection, for the first time or again, and pings the browser.
async fn renew(comet: &ExampleComet, visit: &Visit, connection: &str, socket: &mut WebSocket) -> bool {
    if let Err(error) = comet.register(visit, connection).await {
        warn!("{connection}: not registered in Redis, tried again in {RENEWAL:?}: {error}");
    }
    send(socket, Message::Ping(Default::default())).await
}

/// Whether the browser took it in time.
async fn send(socket: &mut WebSocket, message: Message) -> bool {
    matches!(tokio::time::timeout(GRACE, socket.send(message)).await, Ok(Ok(())))
}

#[tonic::async_trait]
impl Comet for ExampleComet {
    async fn push_msg(&self, request: Request<PushMsgReq>) -> Result<tonic::Response<PushMsgReply>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.take(&metadata, &To::Connections(&request.keys), request.proto)?;
        Ok(tonic::Response::new(PushMsgReply {}))
    }

    /// `speed` (messages per second) matters to comets with very many connections; not here.
    async fn broadcast(
        &self,
        request: Request<BroadcastReq>,
    ) -> Result<tonic::Response<BroadcastReply>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.take(&metadata, &To::Everyone, request.proto)?;
        Ok(tonic::Response::new(BroadcastReply {}))
    }

    async fn broadcast_room(
        &self,
        request: Request<BroadcastRoomReq>,
    ) -> Result<tonic::Response<BroadcastRoomReply>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.take(&metadata, &To::Room(&request.room_id), request.proto)?;
        Ok(tonic::Response::new(BroadcastRoomReply {}))
    }

    async fn rooms(&self, _: Request<RoomsReq>) -> Result<tonic::Response<RoomsReply>, Status> {
        let rooms = self.hub.lock().browsers.values().map(|browser| (browser.room.clone(), true)).collect();
        Ok(tonic::Response::new(RoomsReply { rooms }))
    }
}
