//! Unary gRPC calls to one comet, on HTTP/2 as the `h2` crate speaks it.
//!
//! There is no queue, task or buffer between a call and the connection. The connection is driven by
//! a future ([`Drivers`]) that the comet's task polls together with the calls: requests that start
//! together leave in one write (`coalesced`), and replies that arrive together wake one task. (tonic's `Channel`
//! adds a buffer and a task behind it, and costs two to three times as much per call; `make bench`
//! has the figures.)
//!
//! A client connects on its first call. Once its connection has ended it [is
//! closed](CometClient::is_closed). The next client resolves the name again, so that a comet whose
//! address changed behind its DNS name is found. Proxy settings in the environment are ignored.
//!
//! This module distinguishes an answer of the comet from a failure to get one: a
//! [`CallFailure::Status`] is a gRPC status that was received over the wire.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::{FuturesUnordered, Stream as _};
use h2::client::{Builder, SendRequest};
use http::header::{Entry, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::access::{DialGate, GatedConnector};
use super::body::Body;
use super::coalesced::coalesced;
use super::grpc::{CallFailure, Target, classify_error, headers, read_status, request, status};
use super::stream::{self, open::Offered};
use super::tls::TlsClient;
use super::trace_metadata::TraceMetadata;
use super::wire;
use crate::message::{CometAddr, InvalidAddress, MESSAGE_ID, REPLAYED};

/// TCP keepalive detects a peer that vanished while the connection is idle: a probe after this long
/// without traffic, then up to `TCP_KEEPALIVE_PROBES`, one per interval.
///
/// There are no HTTP/2 pings: gRPC servers on the C core and in Go allow one every five minutes,
/// and none without calls (`keepalive.md`, "Too many pings"); more close the connection and fail the
/// calls on it. While calls are in flight, their deadlines detect a vanished peer: see `comet`.
const TCP_KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE_PROBES: u32 = 3;
/// Flow-control windows for what comets send: empty replies.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How large the headers or the trailers of a reply may be.
const MAX_REPLY_HEADERS: u32 = 16 * 1024;
/// The metadata with the ids of messages.
const ID: HeaderName = HeaderName::from_static(MESSAGE_ID);
/// How many calls may be in flight before the server's own limit is known.
const FIRST_STREAMS: usize = 100;

/// Makes clients of one comet.
#[derive(Clone)]
pub(super) struct Dialer {
    target: Target,
    connector: GatedConnector,
    /// For a comet that speaks TLS.
    tls: Option<Arc<TlsClient>>,
    connect_timeout: Duration,
    drivers: mpsc::UnboundedSender<Driver>,
    /// How long a comet may take for its Welcome.
    welcome_timeout: Duration,
}

/// The futures that drive a dialer's connections; each ends with its connection. They must be polled
/// together with the calls.
pub(super) struct Drivers {
    /// One per connected client. Bounded by the number of clients that calls and probes create.
    new: mpsc::UnboundedReceiver<Driver>,
    running: FuturesUnordered<Driver>,
}

type Driver = BoxFuture<'static, ()>;

impl Dialer {
    /// A dialer that connects only where the gate allows it.
    ///
    /// # Errors
    /// When the address is invalid.
    pub(super) fn new(
        address: &CometAddr,
        connect_timeout: Duration,
        welcome_timeout: Duration,
        gate: DialGate,
        tls: Option<&Arc<TlsClient>>,
    ) -> Result<(Self, Drivers), InvalidAddress> {
        let checked = address.address()?;
        let tls = tls.filter(|tls| tls.speaks_with(&checked)).cloned();
        let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let authority = Authority::from_maybe_shared(checked.authority())
            .unwrap_or_else(|_| Authority::from_static("comet.invalid"));
        let target = Target { scheme, authority };
        let connector = GatedConnector::new(gate, |http| {
            http.set_connect_timeout(Some(connect_timeout));
            http.set_nodelay(true);
            http.set_keepalive(Some(TCP_KEEPALIVE_AFTER));
            http.set_keepalive_interval(Some(TCP_KEEPALIVE_EVERY));
            http.set_keepalive_retries(Some(TCP_KEEPALIVE_PROBES));
        });
        let (drivers, new) = mpsc::unbounded_channel();
        let dialer = Self { target, connector, tls, connect_timeout, drivers, welcome_timeout };
        Ok((dialer, Drivers { new, running: FuturesUnordered::new() }))
    }

    /// A new client, which connects on its first call.
    pub(super) fn dial(&self) -> CometClient {
        let closed = Arc::new(AtomicBool::new(false));
        let connecting = self.clone().connect(Arc::clone(&closed)).boxed().shared();
        let (target, welcome_timeout) = (self.target.clone(), self.welcome_timeout);
        let offering = offer(connecting.clone(), target.clone(), welcome_timeout).boxed().shared();
        CometClient { target, connecting, offering, welcome_timeout, closed }
    }

    async fn connect(mut self, closed: Arc<AtomicBool>) -> Result<SendRequest<Body>, CallFailure> {
        let connected = self.handshake(&closed).await;
        if connected.is_err() {
            closed.store(true, Ordering::Relaxed);
        }
        connected
    }

    async fn handshake(&mut self, closed: &Arc<AtomicBool>) -> Result<SendRequest<Body>, CallFailure> {
        // The connector takes the port from the authority.
        let uri = Target { scheme: Scheme::HTTP, ..self.target.clone() }.uri(PathAndQuery::from_static("/"));
        let stream = self.connector.connect(uri).await.map_err(|error| classify_error(&*error))?;
        match &self.tls {
            None => self.speak(stream, closed).await,
            Some(tls) => {
                let host = self.target.authority.host().trim_matches(['[', ']']);
                let connected = tls.connect(host, stream, self.connect_timeout).await;
                let stream = connected.map_err(|error| CallFailure::NoAnswer(error.to_string()))?;
                self.speak(stream, closed).await
            }
        }
    }

    /// Begins HTTP/2.
    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        closed: &Arc<AtomicBool>,
    ) -> Result<SendRequest<Body>, CallFailure> {
        let mut http2 = Builder::new();
        http2
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(FIRST_STREAMS)
            .max_header_list_size(MAX_REPLY_HEADERS)
            .enable_push(false);
        let (stream, out) = coalesced(stream);
        let (sender, mut connection) =
            http2.handshake(stream).await.map_err(|error| classify_error(&error))?;
        let closed = Arc::clone(closed);
        let driver = async move {
            std::future::poll_fn(|context| {
                // Its calls get the error; nothing is left to report here.
                let has_ended = Pin::new(&mut connection).poll(context).is_ready();
                let has_failed = matches!(out.poll(context), Poll::Ready(Err(_)));
                if has_ended || has_failed { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            closed.store(true, Ordering::Relaxed);
        };
        // Fails if the comet's task has ended. Then no call waits for the connection.
        drop(self.drivers.send(driver.boxed()));
        Ok(sender)
    }
}

impl Drivers {
    /// Lets all connections read and write what they can. Never ready: connections come and go.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) {
        while let Poll::Ready(Some(driver)) = self.new.poll_recv(context) {
            self.running.push(driver);
        }
        while let Poll::Ready(Some(())) = Pin::new(&mut self.running).poll_next(context) {}
    }

    /// Runs a future while driving the connections.
    pub(super) async fn run<F: Future>(&mut self, until: F) -> F::Output {
        let mut until = std::pin::pin!(until);
        std::future::poll_fn(|context| {
            // The connections are polled before and after: arrived replies must be seen, and new requests
            // must be written.
            if let Poll::Ready(output) = until.as_mut().poll(context) {
                self.poll(context);
                return Poll::Ready(output);
            }
            self.poll(context);
            until.as_mut().poll(context)
        })
        .await
    }
}

type Connecting = Shared<BoxFuture<'static, Result<SendRequest<Body>, CallFailure>>>;

/// One connection to a comet. Clones share it.
#[derive(Clone)]
pub(super) struct CometClient {
    target: Target,
    connecting: Connecting,
    /// Asks for a stream, once.
    offering: Shared<BoxFuture<'static, Result<Offered, CallFailure>>>,
    welcome_timeout: Duration,
    closed: Arc<AtomicBool>,
}

/// Asks for a stream on this connection.
async fn offer(connecting: Connecting, target: Target, wait: Duration) -> Result<Offered, CallFailure> {
    stream::open::open(connecting.await?, &target, wait).await
}

impl CometClient {
    /// Whether the connection has ended, or could not be made: further calls need another client.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// What the comet offers on this connection: asked for once, when this is first awaited.
    pub(super) async fn offered(&self) -> Result<Offered, CallFailure> {
        self.offering.clone().await
    }

    /// Asks again.
    pub(super) fn ask_again(&self) -> BoxFuture<'static, Result<Offered, CallFailure>> {
        offer(self.connecting.clone(), self.target.clone(), self.welcome_timeout).boxed()
    }

    /// Makes one call. It has no deadline of its own; dropping it cancels the call.
    pub(super) async fn call(self, call: GrpcRequest) -> Result<(), CallFailure> {
        let Self { target, connecting, .. } = self;
        let no_answer = |error: h2::Error| classify_error(&error);
        // A stream may have to wait until the server's limit lets it begin.
        let mut sender = connecting.await?.ready().await.map_err(no_answer)?;
        let GrpcRequest { path, headers, body } = call;
        let (response, mut stream) =
            sender.send_request(request(&target, path, headers), false).map_err(no_answer)?;
        drop(sender);
        stream.send_data(body, true).map_err(no_answer)?;
        let response = response.await.map_err(no_answer)?;
        if response.status() != StatusCode::OK {
            // Not a comet: for example a proxy in front of one that is down.
            return Err(CallFailure::NoAnswer(format!("HTTP {}", response.status())));
        }
        let (head, body) = response.into_parts();
        match status(&head.headers) {
            Some(status) => status,
            None => read_status(body).await,
        }
    }
}

/// A call that is ready to be sent.
pub(super) struct GrpcRequest {
    path: PathAndQuery,
    headers: HeaderMap,
    body: Body,
}

impl GrpcRequest {
    /// A request with the ids of its messages as metadata, and the trace context that they share.
    pub(super) fn new(
        request: wire::Request,
        mut ids: impl Iterator<Item = HeaderValue>,
        trace: Option<&TraceMetadata>,
        is_replayed: bool,
    ) -> Self {
        let wire::Request { path, body, .. } = request;
        let mut call = Self::to(path, body);
        // Looked up once for all entries.
        if let (Some(first), Entry::Vacant(entry)) = (ids.next(), call.headers.entry(ID)) {
            let mut entry = entry.insert_entry(first);
            ids.for_each(|id| entry.append(id));
        }
        if let Some(trace) = trace {
            trace.insert_into(&mut call.headers);
        }
        if is_replayed {
            call.headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        call
    }

    /// gRPC's health check of the whole server (`grpc/health/v1/health.proto`).
    pub(super) fn health() -> Self {
        Self::to(PathAndQuery::from_static("/grpc.health.v1.Health/Check"), Body::empty())
    }

    fn to(path: PathAndQuery, body: Body) -> Self {
        Self { path, headers: headers(), body }
    }
}
