//! Serves HTTP/1: accepts connections and runs one task for each.
//!
//! Not `axum::serve`: that speaks every protocol that any crate of the build has enabled in hyper,
//! including HTTP/2 with hundreds of streams per connection.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admin::activity::{Activity, ActivityBody, ActivityStream, ConnectionTimeouts, TIMEOUTS};
use crate::admin::connections::{ConnectionSlot, Connections};
use crate::admin::listener::Listen;
use crate::admin::peer::Peer;
use crate::admin::refusals::{RefusalReason, Refusals};
use crate::admin::response_budget::ResponseBudget;

/// Maximum size of a request head, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Maximum number of headers of a request.
const MAX_HEADERS: usize = 64;
/// Pause after a failed accept, such as when too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Grace period of connections at the shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Everything needed to serve a listener.
#[derive(Clone)]
pub(super) struct Server {
    router: Router,
    connections: Connections,
    response_budget: ResponseBudget,
    refusals: Refusals,
    timeouts: ConnectionTimeouts,
}

impl Server {
    /// Serves these routes over at most `max_connections` connections.
    pub(super) fn new(router: Router, max_connections: usize, refusals: &Refusals) -> Self {
        let connections = Connections::new(max_connections, refusals.clone());
        let response_budget = ResponseBudget::new(connections.clone(), refusals.clone());
        Self { router, connections, response_budget, refusals: refusals.clone(), timeouts: TIMEOUTS }
    }

    /// Accepts and serves until the shutdown.
    pub(super) async fn serve<L: Listen>(self, listener: L, shutdown: CancellationToken) {
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
    async fn serve<S>(self, stream: S, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, activity, slot, server } = self;
        let stream = TokioIo::new(ActivityStream::new(stream, Arc::clone(&activity)));
        let routes = TowerToHyperService::new(server.router);
        let (response_budget, of_service) = (server.response_budget, Arc::clone(&activity));
        let service = service_fn(move |mut request: Request<Incoming>| {
            of_service.request_received();
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(Arc::clone(&of_service));
            let response = routes.call(request.map(Body::new));
            let (response_budget, activity) = (response_budget.clone(), Arc::clone(&of_service));
            async move {
                let Ok(response) = response.await;
                let response = response_budget.count(response).await;
                activity.response_ready();
                Ok::<_, Infallible>(response.map(|body| ActivityBody::new(body, activity)))
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                // hyper's own timeouts know less than `Activity`.
                .header_read_timeout(None)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD)
                // Bodies stay where they are counted, without a copy.
                .writev(true)
                .serve_connection(stream, service)
        );
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
                    connection.as_mut().graceful_shutdown();
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

#[cfg(test)]
mod tests;
