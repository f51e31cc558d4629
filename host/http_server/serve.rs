//! Serves HTTP/1 and, where it is wanted, HTTP/2: accepts connections and runs one task for each.
//!
//! Not `axum::serve`: that speaks every protocol that any crate of the build has enabled in hyper, and
//! HTTP/2 with hundreds of streams per connection.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http_server::activity::{Activity, ActivityBody, ActivityStream, ConnectionTimeouts, TIMEOUTS};
use crate::http_server::connections::{ConnectionSlot, Connections};
use crate::http_server::listener::{Establish, Listen};
use crate::http_server::peer::{ClientName, Peer};
use crate::http_server::refusals::{RefusalReason, Refusals};
use crate::http_server::response_budget::ResponseBudget;
use crate::http_server::tls::{Certificate, TlsListener};

/// Maximum size of a request head, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Maximum number of headers of a request.
const MAX_HEADERS: usize = 64;
/// Maximum number of HTTP/2 requests at a time on one connection.
const MAX_STREAMS: u32 = 64;
/// Bytes of a response that HTTP/2 keeps before its client has room for them.
const SEND_BUFFER: usize = 64 * 1024;
/// How often an HTTP/2 client is asked whether it is there, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept, such as when too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Grace period of connections at the shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Everything needed to serve a listener.
#[derive(Clone)]
pub(crate) struct Server {
    router: Router,
    connections: Connections,
    response_budget: ResponseBudget,
    refusals: Refusals,
    timeouts: ConnectionTimeouts,
    http2: bool,
}

impl Server {
    /// Serves these routes over at most `max_connections` connections.
    pub(crate) fn new(router: Router, max_connections: usize, refusals: &Refusals) -> Self {
        let connections = Connections::new(max_connections, refusals.clone());
        let response_budget = ResponseBudget::new(connections.clone(), refusals.clone());
        Self {
            router,
            connections,
            response_budget,
            refusals: refusals.clone(),
            timeouts: TIMEOUTS,
            http2: false,
        }
    }

    /// Speaks HTTP/2 as well.
    pub(crate) fn with_http2(self) -> Self {
        Self { http2: true, ..self }
    }

    /// As [`Server::serve`], over TLS if there is a certificate.
    pub(crate) async fn serve_tcp(
        self,
        listener: TcpListener,
        certificate: Option<Arc<Certificate>>,
        shutdown: CancellationToken,
    ) {
        match certificate {
            Some(certificate) => self.serve(TlsListener::new(listener, certificate), shutdown).await,
            None => self.serve(listener, shutdown).await,
        }
    }

    /// Accepts and serves until the shutdown.
    pub(crate) async fn serve<L: Listen>(self, listener: L, shutdown: CancellationToken) {
        let mut serving = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = serving.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let activity = Arc::new(Activity::new(self.timeouts));
                    if let Some(slot) = self.connections.open(peer, &activity) {
                        let connection = HttpConnection { peer, activity, slot, server: self.clone() };
                        serving.spawn(connection.serve(stream, shutdown.clone()));
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let what = || {
                        format!(
                            "cannot accept connections: {error}; if too many files are open, raise the limit"
                        )
                    };
                    self.refusals.count(RefusalReason::Accept, None, what);
                    // Retrying at once would fail again; closing a connection may help.
                    self.connections.close_longest_waiting();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let finish = async { while serving.join_next().await.is_some() {} };
        // Dropping the set aborts what is left.
        drop(timeout(LAST_ANSWERS, finish).await);
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A connection that holds a slot.
struct HttpConnection {
    peer: Peer,
    activity: Arc<Activity>,
    slot: ConnectionSlot,
    server: Server,
}

impl HttpConnection {
    async fn serve<E: Establish>(self, accepted: E, shutdown: CancellationToken) {
        let established = tokio::select! {
            established = timeout(self.server.timeouts.head, accepted.establish()) => established,
            () = self.slot.close.cancelled() => return,
            () = shutdown.cancelled() => return,
        };
        let refusals = &self.server.refusals;
        match established {
            Ok(Ok((stream, name))) => self.serve_http(stream, name, shutdown).await,
            Ok(Err(error)) => refusals.count(RefusalReason::Tls, Some(self.peer), || error.to_string()),
            Err(_) => {
                let what = || "connection closed: its handshake was too slow".to_owned();
                refusals.count(RefusalReason::Timeout, Some(self.peer), what);
            }
        }
    }

    async fn serve_http<S>(self, stream: S, name: ClientName, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(ActivityStream::new(stream, Arc::clone(&self.activity)));
        let routes = TowerToHyperService::new(self.server.router.clone());
        let (response_budget, of_service) = (self.server.response_budget.clone(), Arc::clone(&self.activity));
        let peer = self.peer;
        let service = service_fn(move |mut request: Request<Incoming>| {
            let open = if request.version() == Version::HTTP_2 {
                name_host(&mut request);
                Some(of_service.stream_opened())
            } else {
                of_service.request_received();
                None
            };
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(name.clone());
            request.extensions_mut().insert(Arc::clone(&of_service));
            let response = routes.call(request.map(Body::new));
            let (response_budget, activity) = (response_budget.clone(), Arc::clone(&of_service));
            async move {
                let Ok(response) = response.await;
                let response = response_budget.count(response).await;
                activity.response_ready();
                Ok::<_, Infallible>(response.map(|body| ActivityBody::new(body, activity, open)))
            }
        });
        // Ends the streams of a connection that ends.
        let streams = shutdown.child_token();
        let _ended = streams.clone().drop_guard();
        if self.server.http2 {
            let builder = both_protocols(streams);
            let connection = pin!(builder.serve_connection(stream, service));
            self.drive(connection, |connection| connection.graceful_shutdown(), shutdown).await;
        } else {
            let connection = pin!(http1_only().serve_connection(stream, service));
            self.drive(connection, |connection| connection.graceful_shutdown(), shutdown).await;
        }
    }

    /// Runs a connection until its end, its deadline, or the shutdown.
    async fn drive<C: Future>(
        self,
        mut connection: Pin<&mut C>,
        end: impl Fn(Pin<&mut C>),
        shutdown: CancellationToken,
    ) {
        let Self { peer, activity, slot, server } = self;
        let mut is_ending = false;
        loop {
            // A phase with an earlier deadline may begin at any time: check in between.
            let look = server.timeouts.head / 4;
            tokio::select! {
                // Clients that disconnect are normal.
                _ = connection.as_mut() => return,
                () = slot.close.cancelled() => return,
                () = shutdown.cancelled(), if !is_ending => {
                    is_ending = true;
                    end(connection.as_mut());
                }
                () = tokio::time::sleep(look) => {}
            }
            if activity.deadline() <= Instant::now() {
                let what = || "connection closed: idle or too slow".to_owned();
                return server.refusals.count(RefusalReason::Timeout, Some(peer), what);
            }
        }
    }
}

fn http1_only() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // hyper's own timeouts know less than `Activity`. Bodies stay where they are counted, without a copy.
    builder.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD).writev(true);
    builder
}

/// HTTP/1 and, with prior knowledge or by ALPN, HTTP/2: bounded in streams, headers and bytes.
fn both_protocols(ended: CancellationToken) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(StreamExecutor { streams: TaskTracker::new(), ended });
    let mut http1 = builder.http1();
    http1.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD).writev(true);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Runs the streams of one connection until they end, or the connection does.
#[derive(Clone)]
struct StreamExecutor {
    streams: TaskTracker,
    ended: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let ended = self.ended.clone();
        drop(self.streams.spawn(async move { ended.run_until_cancelled(stream).await }));
    }
}

/// HTTP/2 names the host in the request itself; what checks it looks into the header.
fn name_host(request: &mut Request<Incoming>) {
    if request.headers().contains_key(header::HOST) {
        return;
    }
    let host = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
}

#[cfg(test)]
mod tests;
