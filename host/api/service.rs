//! The operations on inboxes, whatever the form of the request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api::access::Caller;
use crate::api::error::ApiError;
use crate::gateway::{Erased, Handle};
use crate::history::RoomHistoryReader;
use crate::http_server::concurrency::{Busy, ConcurrencyLimiter, LimiterConfig};
use crate::inbox::{Cursor, DeviceId, Owner, Page, PageQuery, Standing, Unavailable};
use crate::message::{ConnectionId, UserId};
use crate::replay::{ReplayError, Replayed};
use crate::telemetry::{Counter, Family, Gauge, Histogram, at_zero, label_enum, latency_histogram, metrics};
use crate::time::now_ms;

/// Pages that are read at a time: each takes up to 1 MiB.
const READS: LimiterConfig =
    LimiterConfig { max_concurrent: 32, max_waiting: 512, wait: Duration::from_secs(5), pause: 0 };
/// Replays that are open at a time.
const MAX_STREAMS: usize = 256;
/// Pushed replays at a time.
const MAX_PUSHES: usize = 64;
/// How often a followed inbox is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// A cursor may be ahead of this process's clock by this much, in milliseconds: clocks differ.
const MAX_CLOCK_SKEW_MS: u64 = 3_600_000;

label_enum! {
    /// An operation.
    pub(super) enum Operation as "operation" {
        Read = "read",
        Position = "position",
        Acknowledge = "acknowledge",
        Replay = "replay",
        Push = "push",
        Delete = "delete",
    }
}

label_enum! {
    /// How it ended.
    enum RequestOutcome as "outcome" {
        Ok = "ok",
        Invalid = "invalid",
        Forbidden = "forbidden",
        NotConnected = "not-connected",
        Busy = "busy",
        Unavailable = "unavailable",
    }
}

metrics! {
    /// The API's metrics.
    #[derive(Clone, Debug)]
    pub(super) struct Metrics {
        /// Requests to inboxes, by operation and outcome.
        requests: Family<(Operation, RequestOutcome), Counter> = "halley_api_requests" in at_zero(Family::default());
        /// Time of a request to an inbox, without the sending of its response.
        duration: Histogram = "halley_api_request_duration_seconds" in latency_histogram();
        /// Messages from inboxes that comets acknowledged in replays that were requested.
        pushed: Counter = "halley_inbox_replayed";
        /// Replays that are being streamed.
        streams: Gauge = "halley_inbox_replay_streams";
    }
}

impl Metrics {
    fn record<T>(&self, operation: Operation, since: Instant, result: &Result<T, ApiError>) {
        let outcome = match result {
            Ok(_) => RequestOutcome::Ok,
            Err(ApiError::Invalid { .. } | ApiError::Unsupported(_)) => RequestOutcome::Invalid,
            Err(ApiError::Forbidden(_)) => RequestOutcome::Forbidden,
            Err(ApiError::NotConnected(_)) => RequestOutcome::NotConnected,
            Err(ApiError::Busy(_)) => RequestOutcome::Busy,
            Err(ApiError::Unavailable(_)) => RequestOutcome::Unavailable,
        };
        self.requests.get_or_create(&(operation, outcome)).inc();
        self.duration.observe(since.elapsed().as_secs_f64());
    }
}

/// A replay that is pushed through the user's comet.
#[derive(Debug, Default)]
pub(super) struct PushRequest {
    pub(super) connection: Option<ConnectionId>,
    pub(super) device: Option<DeviceId>,
    /// `None`: what the device has acknowledged, or the oldest.
    pub(super) after: Option<Cursor>,
    pub(super) limit: usize,
    /// Whether the device's position follows what was pushed.
    pub(super) acknowledge: bool,
}

/// The operations. Clones share their limits.
#[derive(Clone)]
pub(super) struct InboxService(Arc<ServiceInner>);

struct ServiceInner {
    gateway: Handle,
    metrics: Metrics,
    reads: ConcurrencyLimiter,
    pushes: Semaphore,
    streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl InboxService {
    pub(super) fn new(gateway: Handle, metrics: Metrics, shutdown: CancellationToken) -> Self {
        Self(Arc::new(ServiceInner {
            gateway,
            metrics,
            reads: ConcurrencyLimiter::new(READS),
            pushes: Semaphore::new(MAX_PUSHES),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            shutdown,
        }))
    }

    /// A page of an inbox or of a room's history.
    pub(super) async fn page(
        &self,
        caller: &Caller,
        owner: Owner<'_>,
        query: PageQuery,
    ) -> Result<Page, ApiError> {
        self.measured(Operation::Read, async {
            caller.may_read_owner(owner)?;
            self.read(owner, &query).await
        })
        .await
    }

    /// Where an inbox, or a room's history, stands; of an inbox also what the device has acknowledged.
    pub(super) async fn position(
        &self,
        caller: &Caller,
        owner: Owner<'_>,
        device: Option<&DeviceId>,
    ) -> Result<Standing, ApiError> {
        self.measured(Operation::Position, async {
            caller.may_read_owner(owner)?;
            let _permit = self.0.reads.next().await.map_err(busy)?;
            match owner {
                Owner::User(user) => Ok(self.0.gateway.inbox().standing(user, device).await?),
                Owner::Room(room) => Ok(self.histories()?.standing(room).await?),
            }
        })
        .await
    }

    fn histories(&self) -> Result<&RoomHistoryReader, ApiError> {
        let none = "this gateway keeps no history of rooms: `[redis] url` is memory://";
        self.0.gateway.history().ok_or(ApiError::Unsupported(none))
    }

    /// The device has seen everything up to the cursor.
    pub(super) async fn acknowledge(
        &self,
        caller: &Caller,
        user: &UserId,
        device: &DeviceId,
        cursor: Cursor,
    ) -> Result<Standing, ApiError> {
        self.measured(Operation::Acknowledge, async {
            caller.may_write(user)?;
            let _permit = self.0.reads.next().await.map_err(busy)?;
            let inbox = self.0.gateway.inbox();
            match cursor {
                // Nothing has been seen.
                Cursor::Before(_) => Ok(inbox.standing(user, Some(device)).await?),
                Cursor::At(position) if position.ms > now_ms() + MAX_CLOCK_SKEW_MS => {
                    Err(ApiError::invalid("cursor", "it lies in the future; pass one as it was returned"))
                }
                Cursor::At(position) => Ok(inbox.acknowledge(user, device, position).await?),
            }
        })
        .await
    }

    /// Deletes a user's inbox, positions and archive.
    pub(super) async fn delete(&self, caller: &Caller, user: &UserId) -> Result<Erased, ApiError> {
        self.measured(Operation::Delete, async {
            caller.may_write(user)?;
            let _permit = self.0.reads.next().await.map_err(busy)?;
            let deleted = self.0.gateway.erase(user).await?;
            let Erased { inbox, archive } = deleted;
            let certificate = caller.certificate.as_deref();
            let (from, token) = (caller.peer, &caller.grant.name);
            info!(%from, certificate, %token, %user, inbox, archive, "audit: a user's messages were deleted");
            Ok(deleted)
        })
        .await
    }

    /// Pushes a page through the user's comet.
    pub(super) async fn push(
        &self,
        caller: &Caller,
        user: &UserId,
        request: PushRequest,
    ) -> Result<Replayed, ApiError> {
        self.measured(Operation::Push, async {
            caller.may_write(user)?;
            let _permit = self.0.pushes.try_acquire().map_err(|_| ApiError::Busy("too many replays"))?;
            let gateway = &self.0.gateway;
            let after = self.start(user, request.device.as_ref(), request.after).await?;
            let query = PageQuery { after, limit: request.limit, ..PageQuery::default() };
            let replayed = gateway.replay(user, request.connection.as_ref(), &query).await?;
            self.0.metrics.pushed.inc_by(replayed.pushed as u64);
            if let (true, Some(device), Some(Cursor::At(position))) =
                (request.acknowledge, &request.device, replayed.next)
            {
                gateway.inbox().acknowledge(user, device, position).await?;
            }
            Ok(replayed)
        })
        .await
    }

    /// Pages to the end of an inbox and, with `follow`, what is stored later. A page is read when the
    /// client takes it.
    pub(super) async fn replay(
        &self,
        caller: &Caller,
        user: UserId,
        device: Option<DeviceId>,
        query: PageQuery,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Page, ApiError>> + Send + use<>, ApiError> {
        self.measured(Operation::Replay, async {
            caller.may_read(&user)?;
            let permit = Arc::clone(&self.0.streams).try_acquire_owned();
            let permit = permit.map_err(|_| ApiError::Busy("too many open replays"))?;
            let after = self.start(&user, device.as_ref(), query.after).await?;
            self.0.metrics.streams.inc();
            let replay = Replay {
                service: self.clone(),
                user,
                query: PageQuery { after, ..query },
                follow,
                is_caught_up: false,
                has_ended: false,
                _permit: permit,
            };
            Ok(unfold(replay, Replay::next))
        })
        .await
    }

    /// Where a replay starts.
    async fn start(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        after: Option<Cursor>,
    ) -> Result<Option<Cursor>, ApiError> {
        match (after, device) {
            (None, Some(device)) => {
                Ok(self.0.gateway.inbox().standing(user, Some(device)).await?.acknowledged)
            }
            (after, _) => Ok(after),
        }
    }

    async fn read(&self, owner: Owner<'_>, query: &PageQuery) -> Result<Page, ApiError> {
        let _permit = self.0.reads.next().await.map_err(busy)?;
        match owner {
            Owner::User(user) => Ok(self.0.gateway.inbox().page(user, query).await?),
            Owner::Room(room) => Ok(self.histories()?.page(room, query).await?),
        }
    }

    async fn measured<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let since = Instant::now();
        let result = work.await;
        self.0.metrics.record(operation, since, &result);
        result
    }
}

/// A replay that is being streamed.
struct Replay {
    service: InboxService,
    user: UserId,
    query: PageQuery,
    follow: bool,
    is_caught_up: bool,
    has_ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Replay {
    /// The next page, once there is one.
    async fn next(mut self) -> Option<(Result<Page, ApiError>, Self)> {
        let shutdown = self.service.0.shutdown.clone();
        while !self.has_ended && !shutdown.is_cancelled() {
            if self.is_caught_up {
                let waited = shutdown.run_until_cancelled(tokio::time::sleep(FOLLOW_INTERVAL)).await;
                waited?;
            }
            let page = match self.page().await {
                Ok(page) => page,
                Err(error) => {
                    self.has_ended = true;
                    return Some((Err(error), self));
                }
            };
            let is_news = !page.entries.is_empty() || !self.is_caught_up;
            self.query.after = page.next;
            self.is_caught_up = !page.more;
            self.has_ended = self.is_caught_up && !self.follow;
            if is_news {
                return Some((Ok(page), self));
            }
        }
        None
    }
}

impl Replay {
    /// The next page. What is stored once the end was reached is in the inbox itself: the archive is read
    /// only if something has left it already.
    async fn page(&self) -> Result<Page, ApiError> {
        if self.is_caught_up {
            let recent = PageQuery { only_recent: true, ..self.query };
            let page = self.service.read(Owner::User(&self.user), &recent).await?;
            if page.entries.is_empty() || !page.truncated {
                return Ok(page);
            }
        }
        self.service.read(Owner::User(&self.user), &self.query).await
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.service.0.metrics.streams.dec();
    }
}

impl From<Unavailable> for ApiError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable.to_string())
    }
}

impl From<ReplayError> for ApiError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::NotConnected(_) => Self::NotConnected(error.to_string()),
            ReplayError::Unavailable(unavailable) => unavailable.into(),
        }
    }
}

fn busy(_: Busy) -> ApiError {
    ApiError::Busy("too many requests")
}
