//! Serving: connections are accepted, and each is served HTTP/1 in a task of its own.
//!
//! Not `axum::serve`: that speaks whatever protocol any crate of the build has compiled into hyper,
//! HTTP/2 with its hundreds of streams a connection among them.

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

use crate::admin::activity::{Activity, Answered, TIMEOUTS, Timeouts, Watched};
use crate::admin::connections::{Connections, Place};
use crate::admin::listener::Listen;
use crate::admin::peer::Peer;
use crate::admin::refusals::{Reason, Refusals};
use crate::admin::unread::Unread;

/// The most that the head of a request may have, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// The most headers that a request may have.
const MAX_HEADERS: usize = 64;
/// How long to wait when the system gives no connection, as when too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long connections may finish what they do at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What serving a listener needs.
#[derive(Clone)]
pub(super) struct Server {
    router: Router,
    connections: Connections,
    unread: Unread,
    refusals: Refusals,
    timeouts: Timeouts,
}

impl Server {
    /// Serves these routes over at most this many connections.
    pub(super) fn new(router: Router, max_connections: usize, refusals: &Refusals) -> Self {
        let connections = Connections::new(max_connections, refusals.clone());
        let unread = Unread::new(connections.clone(), refusals.clone());
        Self { router, connections, unread, refusals: refusals.clone(), timeouts: TIMEOUTS }
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
                    if let Some(place) = self.connections.open(peer, &activity) {
                        let connection = Connection { peer, activity, place, server: self.clone() };
                        serving.spawn(connection.serve(stream, shutdown.clone()));
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let what = || {
                        format!(
                            "no connection can be accepted: {error}; raise the limit on open files if that is it"
                        )
                    };
                    self.refusals.count(Reason::Accept, None, what);
                    // Nothing comes of asking again at once; a connection less may help.
                    self.connections.close_longest_waiting();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let finish = async { while serving.join_next().await.is_some() {} };
        // What is left is cut off with the set.
        drop(timeout(LAST_ANSWERS, finish).await);
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A connection that has its place.
struct Connection {
    peer: Peer,
    activity: Arc<Activity>,
    place: Place,
    server: Server,
}

impl Connection {
    async fn serve<S>(self, stream: S, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { peer, activity, place, server } = self;
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
        let routes = TowerToHyperService::new(server.router);
        let (unread, of_service) = (server.unread, Arc::clone(&activity));
        let service = service_fn(move |mut request: Request<Incoming>| {
            of_service.called();
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(Arc::clone(&of_service));
            let answer = routes.call(request.map(Body::new));
            let (unread, activity) = (unread.clone(), Arc::clone(&of_service));
            async move {
                let Ok(answer) = answer.await;
                let answer = unread.count(answer).await;
                activity.answered();
                Ok::<_, Infallible>(answer.map(|body| Answered::new(body, activity)))
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                // Its own timeouts know less of what goes on than `Activity`.
                .header_read_timeout(None)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD)
                // Bodies stay where they are counted, instead of being copied.
                .writev(true)
                .serve_connection(stream, service)
        );
        let mut is_ending = false;
        loop {
            // It may begin a phase with an earlier deadline, so it is looked at in between.
            let look = server.timeouts.head / 4;
            tokio::select! {
                // Clients that break off are everyday.
                _ = connection.as_mut() => return,
                () = place.close.cancelled() => return,
                () = shutdown.cancelled(), if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = tokio::time::sleep(look) => {}
            }
            if activity.deadline() <= Instant::now() {
                let what = || "a connection was closed: it was idle, or too slow".to_owned();
                return server.refusals.count(Reason::Timeout, Some(peer), what);
            }
        }
    }
}

#[cfg(test)]
mod tests;
