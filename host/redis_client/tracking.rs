//! Client-side caching: a server reports which of the keys that were read have changed.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/client-side-caching/>. The connection speaks
//! RESP3 and has `CLIENT TRACKING ON OPTIN`; `CLIENT CACHING YES` immediately before a command tracks the
//! keys of that command and of no other. The server then reports the next change of the key, once, as a
//! push between replies.
//!
//! Pushes are handled in the order of the stream, before any later reply is handed out. So a task that holds
//! the reply to a `PING` has been told of all changes before it.
//!
//! Where the server or the user's ACL does not allow it, the connection works without: one warning.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Pipeline, PushInfo, PushKind, Value};

use super::lease::{Lease, LeaseTerm};
use super::metrics::{Metrics, TrackingLabel};
use super::reply::{Refusal, refusal};
use super::slots::word;
use crate::telemetry::label_enum;

/// How often leases are renewed.
pub(super) const RENEWAL_INTERVAL: Duration = Duration::from_millis(500);
/// How often a server that refused is asked again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The ACL rule for the commands of this module.
pub(super) const ACL_RULE: &str = "+client|tracking +client|caching";

/// Is told what changes. Called while replies are read: it must not block.
pub trait KeyObserver: Send + Sync {
    /// This key has changed.
    fn key_changed(&self, key: &[u8]);

    /// Terms have ended: anything that was read under them may have changed.
    fn terms_ended(&self, cause: ForgetCause);
}

label_enum! {
    /// Why everything that was read over a connection is forgotten.
    pub enum ForgetCause {
        /// The database was emptied.
        Flushed = "flushed",
        /// The connection was lost or replaced.
        Disconnected = "disconnected",
        /// Another node serves some of the slots.
        SlotsMoved = "slots-moved",
    }
}

/// What one client tracks, on all of its connections.
#[derive(derive_more::Debug)]
#[debug("tracks {prefix}*, refused: {:?}", refused.lock())]
pub(super) struct Tracker {
    /// Commands on keys with this prefix are tracked.
    prefix: &'static str,
    observers: RwLock<Vec<Arc<dyn KeyObserver>>>,
    /// Why changes are not reported, by the latest connection that was opened.
    refused: Mutex<Option<Arc<str>>>,
    /// Whether the refusal has been logged.
    logged: AtomicBool,
    endpoint: Arc<str>,
    metrics: Metrics,
}

impl Tracker {
    pub(super) fn new(prefix: &'static str, endpoint: Arc<str>, metrics: Metrics) -> Arc<Self> {
        let (observers, refused, logged) = Default::default();
        Arc::new(Self { prefix, observers, refused, logged, endpoint, metrics })
    }

    /// Tells this observer of changes from now on.
    pub(super) fn observe(&self, observer: Arc<dyn KeyObserver>) {
        self.observers.write().push(observer);
    }

    /// Why changes are not reported; `None` if they are, or if nothing was read yet.
    pub(super) fn problem(&self) -> Option<String> {
        let refused = self.refused.lock().clone()?;
        Some(format!(
            "Redis at {} does not report changes of rooms ({refused}): cached rooms count for `[routing.cache] max_age` instead; \
             it needs Redis 6 or newer and, in the user's ACL, `{ACL_RULE}`; or set `[routing.cache] exact = \"off\"`",
            self.endpoint
        ))
    }

    fn accepted(&self) {
        *self.refused.lock() = None;
        if self.logged.swap(false, Ordering::AcqRel) {
            tracing::info!("Redis at {} reports changes of rooms now", self.endpoint);
        }
    }

    fn refuse(&self, why: &str) {
        *self.refused.lock() = Some(why.into());
        if !self.logged.swap(true, Ordering::AcqRel)
            && let Some(problem) = self.problem()
        {
            tracing::warn!("{problem}");
        }
    }

    fn invalidated(&self, lease: &Lease, data: Vec<Value>) {
        for part in data {
            match part {
                Value::Array(keys) if keys.iter().all(|key| matches!(key, Value::BulkString(_))) => {
                    let observers = self.observers.read();
                    for key in &keys {
                        let Value::BulkString(key) = key else { continue };
                        observers.iter().for_each(|observer| observer.key_changed(key));
                    }
                }
                // Nil: everything. Whatever else it may be, it is not to be ignored.
                _ => self.forget(lease, ForgetCause::Flushed),
            }
        }
    }

    /// Ends the lease's term.
    fn forget(&self, lease: &Lease, cause: ForgetCause) {
        lease.end_term();
        self.observers.read().iter().for_each(|observer| observer.terms_ended(cause));
    }
}

/// The tracking of one connection. Its lease ends with it.
#[derive(Debug)]
pub(super) struct ConnectionTracking {
    tracker: Arc<Tracker>,
    lease: Arc<Lease>,
    /// Whether the server reports changes.
    active: AtomicBool,
    /// Whether the connection speaks RESP3, without which it never will.
    resp3: bool,
    asked: Mutex<Instant>,
    lost: AtomicBool,
}

impl ConnectionTracking {
    /// Of a connection that is about to be opened.
    pub(super) fn new(tracker: &Arc<Tracker>, resp3: bool) -> Arc<Self> {
        let now = Instant::now();
        tracker.metrics.tracking(TrackingLabel::Refused).inc();
        Arc::new(Self {
            tracker: Arc::clone(tracker),
            lease: Lease::new(now),
            active: AtomicBool::new(false),
            resp3,
            asked: Mutex::new(now),
            lost: AtomicBool::new(false),
        })
    }

    /// Whether the server can push at all.
    pub(super) fn is_resp3(&self) -> bool {
        self.resp3
    }

    /// The receiver of the connection's pushes.
    pub(super) fn on_push(self: &Arc<Self>) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        let tracking = Arc::clone(self);
        move |push: PushInfo| {
            match push.kind {
                PushKind::Invalidate => tracking.tracker.invalidated(&tracking.lease, push.data),
                PushKind::Disconnection => tracking.forget(ForgetCause::Disconnected),
                _ => {}
            }
            Ok(())
        }
    }

    /// Asks for reports, and whether a command may be tracked.
    pub(super) fn request() -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(3);
        pipeline.cmd("CLIENT").arg("TRACKING").arg("ON").arg("OPTIN");
        pipeline.add_command(caching());
        // What `CACHING` asks for concerns the next command, and this one has no key.
        pipeline.cmd("PING");
        pipeline
    }

    /// The replies to [`Self::request`].
    pub(super) fn answered(&self, replies: &[Value]) {
        *self.asked.lock() = Instant::now();
        let refused = replies.iter().take(2).find_map(refusal);
        match refused {
            None => {
                self.tracker.accepted();
                if !self.active.swap(true, Ordering::AcqRel) {
                    self.tracker.metrics.tracking(TrackingLabel::Refused).dec();
                    self.tracker.metrics.tracking(TrackingLabel::Active).inc();
                }
            }
            Some(why) => self.refused(&why.to_string()),
        }
    }

    /// The server does not track keys any more: the user's ACL has changed.
    pub(super) fn revoked(&self, why: Refusal) {
        // First, since it concerns what was read while it was active.
        self.tracker.forget(&self.lease, ForgetCause::Disconnected);
        *self.asked.lock() = Instant::now();
        if self.active.swap(false, Ordering::AcqRel) {
            self.tracker.metrics.tracking(TrackingLabel::Active).dec();
            self.tracker.metrics.tracking(TrackingLabel::Refused).inc();
        }
        self.refused(&why.to_string());
    }

    /// The server does not report changes, for this reason.
    pub(super) fn refused(&self, why: &str) {
        self.tracker.refuse(why);
    }

    /// Whether the server should be asked again: on the same connection, or on a new one.
    pub(super) fn due(&self) -> Option<Retry> {
        if self.active.load(Ordering::Acquire) {
            return None;
        }
        let waited = self.asked.lock().elapsed();
        match self.resp3 {
            true => (waited >= RETRY_INTERVAL).then_some(Retry::Ask),
            false => (waited >= RETRY_INTERVAL * 30).then_some(Retry::Reconnect),
        }
    }

    /// The lease, if the server reports changes.
    pub(super) fn lease(&self) -> Option<&Arc<Lease>> {
        self.active.load(Ordering::Acquire).then_some(&self.lease)
    }

    /// The present term, if the server reports changes.
    pub(super) fn term(&self) -> Option<LeaseTerm> {
        self.lease().map(Lease::term)
    }

    /// What was read over this connection does not count any more. A connection is lost only once.
    pub(super) fn forget(&self, cause: ForgetCause) {
        let again = cause == ForgetCause::Disconnected && self.lost.swap(true, Ordering::AcqRel);
        if self.active.load(Ordering::Acquire) && !again {
            self.tracker.forget(&self.lease, cause);
        }
    }

    /// The pipeline with what makes the server track its keys.
    pub(super) fn wire<'a>(&self, pipeline: &'a Pipeline) -> Wire<'a> {
        let plain = Wire { pipeline: Cow::Borrowed(pipeline), added: Vec::new() };
        if !self.active.load(Ordering::Acquire) {
            return plain;
        }
        let prefix = self.tracker.prefix.as_bytes();
        let is_tracked =
            |command: &Cmd| command.args_iter().nth(1).is_some_and(|key| word(key).starts_with(prefix));
        if !pipeline.cmd_iter().any(is_tracked) {
            return plain;
        }
        let (mut whole, mut added) = (Pipeline::with_capacity(2 * pipeline.len()), Vec::new());
        let mut asking = false;
        for command in pipeline.cmd_iter() {
            // Either has to precede its command immediately, so that both is impossible.
            if is_tracked(command) && !asking {
                added.push(whole.len());
                whole.add_command(caching());
            }
            asking = command.args_iter().next().is_some_and(|name| word(name) == b"ASKING");
            whole.add_command(command.clone());
        }
        Wire { pipeline: Cow::Owned(whole), added }
    }
}

impl Drop for ConnectionTracking {
    fn drop(&mut self) {
        let active = self.active.load(Ordering::Acquire);
        let label = if active { TrackingLabel::Active } else { TrackingLabel::Refused };
        self.tracker.metrics.tracking(label).dec();
        // Even if nobody listens any more.
        self.lease.end_term();
    }
}

/// How a server that refused is asked again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Ask,
    Reconnect,
}

/// A pipeline as it is sent.
pub(super) struct Wire<'a> {
    pub(super) pipeline: Cow<'a, Pipeline>,
    /// The indexes of commands whose replies nobody waits for.
    added: Vec<usize>,
}

impl Wire<'_> {
    /// The replies to the original pipeline, and why some of its keys are not tracked.
    pub(super) fn replies(&self, replies: Vec<Value>) -> (Vec<Value>, Option<Refusal>) {
        if self.added.is_empty() {
            return (replies, None);
        }
        let (mut added, mut refused) = (self.added.iter().copied().peekable(), None);
        let mut own = Vec::with_capacity(replies.len().saturating_sub(self.added.len()));
        for (index, reply) in replies.into_iter().enumerate() {
            if added.next_if_eq(&index).is_some() {
                refused = refused.or_else(|| refusal(&reply));
            } else {
                own.push(reply);
            }
        }
        (own, refused)
    }
}

fn caching() -> Cmd {
    redis::cmd("CLIENT").arg("CACHING").arg("YES").take()
}
