//! Tracks what a connection is doing and when it times out, so that no client holds a connection by
//! being slow or idle.
//!
//! [`ActivityStream`] sees the bytes, [`ActivityBody`] the end of a response body. Both report to the
//! [`Activity`] of the connection, whose owner closes it at the deadline.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Timeout of each phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionTimeouts {
    /// Receiving the head of a request, including its first byte on a new connection.
    pub(crate) head: Duration,
    /// Waiting for the next request after a response.
    pub(crate) idle: Duration,
    /// Sending a response while the client reads nothing.
    pub(crate) stall: Duration,
    /// Sending a whole response.
    pub(crate) response: Duration,
    /// Handling a request: from its head to the start of the response. Slow operations (uploads,
    /// compilation, look-ups) have shorter deadlines of their own.
    pub(crate) handling: Duration,
}

/// Prometheus scrapes every 15 to 60 seconds over one connection.
pub(crate) const TIMEOUTS: ConnectionTimeouts = ConnectionTimeouts {
    head: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    stall: Duration::from_secs(10),
    response: Duration::from_secs(60),
    handling: Duration::from_secs(300),
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No byte has been received.
    New,
    /// The last response has been sent.
    Idle,
    /// The head of a request is being received.
    Head,
    /// A request is being handled. A write is never interrupted.
    Handling { is_write: bool },
    /// A response is being sent. `body_sent`: the connection has buffered all of its body.
    Answering { body_sent: bool },
}

#[derive(Clone, Copy, Debug)]
struct ActivityState {
    phase: Phase,
    /// When the phase started.
    since: Instant,
    /// When the client last read something.
    read: Instant,
    /// Requests in progress, on a connection that multiplexes them (HTTP/2); `None` on others.
    open: Option<usize>,
}

/// What closing a connection in favour of another one would cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EvictionClass {
    /// The gateway is waiting for the client to send or to read.
    Waiting,
    /// The client is waiting for the response to a read.
    Served,
}

/// What a connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<ActivityState>,
    timeouts: ConnectionTimeouts,
}

impl Activity {
    pub(crate) fn new(timeouts: ConnectionTimeouts) -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(ActivityState { phase: Phase::New, since: now, read: now, open: None }),
            timeouts,
        }
    }

    /// When to close the connection if nothing happens before.
    pub(crate) fn deadline(&self) -> Instant {
        let ActivityState { phase, since, read, open } = *self.state.lock();
        let timeouts = &self.timeouts;
        match phase {
            // Its streams may be long; a dead peer is noticed by pings.
            _ if open.is_some_and(|open| open > 0) => Instant::now() + timeouts.handling,
            Phase::Idle if open.is_some() => since + timeouts.handling,
            Phase::New | Phase::Head => since + timeouts.head,
            Phase::Idle => since + timeouts.idle,
            Phase::Handling { .. } => since + timeouts.handling,
            Phase::Answering { .. } => (since + timeouts.response).min(read + timeouts.stall),
        }
    }

    /// Whether the connection may be closed in favour of another one, and in which order: first those
    /// that wait for their client, then those whose reads are being handled, the oldest first. A
    /// write is never interrupted.
    pub(crate) fn eviction_class(&self) -> Option<(EvictionClass, Instant)> {
        let state = self.state.lock();
        let how = match state.phase {
            Phase::Handling { is_write: true } => return None,
            Phase::Handling { is_write: false } => EvictionClass::Served,
            _ => EvictionClass::Waiting,
        };
        Some((how, state.since))
    }

    /// Since when the client has left a response unread.
    pub(crate) fn unread_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        matches!(state.phase, Phase::Answering { .. }).then_some(state.since)
    }

    /// The head of a request has been received on a connection that multiplexes them. It ends when the
    /// result is dropped.
    pub(crate) fn stream_opened(self: &Arc<Self>) -> StreamGuard {
        let mut state = self.state.lock();
        let now = Instant::now();
        let open = Some(state.open.unwrap_or_default() + 1);
        *state = ActivityState { phase: Phase::Handling { is_write: false }, since: now, read: now, open };
        StreamGuard(Arc::clone(self))
    }

    /// The head of a request has been received.
    pub(crate) fn request_received(&self) {
        self.enter(Phase::Handling { is_write: false });
    }

    /// The current request is a write and has been authorized.
    pub(crate) fn writes(&self) {
        if let Phase::Handling { is_write } = &mut self.state.lock().phase {
            *is_write = true;
        }
    }

    /// The response is ready.
    pub(crate) fn response_ready(&self) {
        if self.state.lock().open.is_none() {
            self.enter(Phase::Answering { body_sent: false });
        }
    }

    fn bytes_received(&self) {
        let state = *self.state.lock();
        if state.open.is_none() && matches!(state.phase, Phase::New | Phase::Idle) {
            self.enter(Phase::Head);
        }
    }

    fn body_sent(&self) {
        let mut state = self.state.lock();
        if let Phase::Answering { body_sent } = &mut state.phase {
            *body_sent = true;
        }
    }

    fn bytes_read(&self) {
        self.state.lock().read = Instant::now();
    }

    fn flushed(&self) {
        if self.state.lock().phase == (Phase::Answering { body_sent: true }) {
            self.enter(Phase::Idle);
        }
    }

    fn enter(&self, phase: Phase) {
        let now = Instant::now();
        let mut state = self.state.lock();
        *state = ActivityState { phase, since: now, read: now, open: state.open };
    }
}

/// A request in progress on a connection that multiplexes them.
pub(crate) struct StreamGuard(Arc<Activity>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.open = state.open.map(|open| open.saturating_sub(1));
        if state.open == Some(0) {
            (state.phase, state.since) = (Phase::Idle, Instant::now());
        }
    }
}

/// A stream that reports its traffic.
pub(crate) struct ActivityStream<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> ActivityStream<S> {
    pub(crate) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    fn wrote(&self, done: &Poll<io::Result<usize>>) {
        if matches!(done, Poll::Ready(Ok(1..))) {
            self.activity.bytes_read();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ActivityStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ActivityStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.activity.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A body that reports when the connection has buffered all of it.
pub(crate) struct ActivityBody {
    body: Body,
    activity: Arc<Activity>,
    _stream: Option<StreamGuard>,
}

impl ActivityBody {
    pub(crate) fn new(body: Body, activity: Arc<Activity>, stream: Option<StreamGuard>) -> Self {
        Self { body, activity, _stream: stream }
    }
}

impl http_body::Body for ActivityBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ActivityBody {
    fn drop(&mut self) {
        self.activity.body_sent();
    }
}

#[cfg(test)]
impl Activity {
    /// Moves the start of the phase back by this much.
    pub(crate) fn age(&self, by: Duration) {
        self.state.lock().since -= by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplexed_requests_keep_a_connection_open() {
        let activity = Arc::new(Activity::new(TIMEOUTS));
        activity.bytes_received();
        let (first, second) = (activity.stream_opened(), activity.stream_opened());
        activity.age(Duration::from_secs(3600));
        activity.response_ready();
        activity.flushed();
        drop(first);
        assert!(activity.deadline() > Instant::now(), "one is in progress");
        drop(second);
        activity.bytes_received();
        activity.age(TIMEOUTS.handling);
        assert!(activity.deadline() <= Instant::now(), "pings do not keep an idle connection open");
    }

    #[test]
    fn each_phase_has_its_deadline() {
        let activity = Activity::new(TIMEOUTS);
        let left = || activity.deadline().saturating_duration_since(activity.state.lock().since);
        assert_eq!(left(), TIMEOUTS.head);
        activity.bytes_received();
        let head = activity.state.lock().since;
        activity.bytes_received();
        assert_eq!(
            (left(), activity.state.lock().since),
            (TIMEOUTS.head, head),
            "more bytes do not extend the deadline"
        );
        activity.request_received();
        let how = || activity.eviction_class().map(|(how, _)| how);
        assert_eq!((left(), how()), (TIMEOUTS.handling, Some(EvictionClass::Served)));
        activity.writes();
        assert_eq!((left(), how()), (TIMEOUTS.handling, None));
        activity.response_ready();
        activity.flushed();
        assert_eq!(left(), TIMEOUTS.stall, "only a part of the answer is flushed");
        assert!(activity.unread_since().is_some());
        activity.state.lock().read += Duration::from_secs(3600);
        assert_eq!(left(), TIMEOUTS.response, "slow reading is bounded as well");
        activity.body_sent();
        activity.flushed();
        assert_eq!(left(), TIMEOUTS.idle);
        assert!(activity.unread_since().is_none() && how() == Some(EvictionClass::Waiting));
        activity.bytes_received();
        assert_eq!(left(), TIMEOUTS.head);
    }
}
