//! Read routes: health, readiness, metrics, and the gateway's state.
//!
//! Expensive routes are limited by [`ConcurrencyLimiter`]. Directory look-ups run one at a time and use at most a
//! fifth of the time, so that this listener cannot keep Redis busy. Metrics are rendered once for all
//! requests that wait meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Mutex;

use crate::admin::access::{AccessControl, Permission, RouteGuard, authorize};
use crate::gateway::{CachedAge, Handle};
use crate::http_server::concurrency::{Busy, ConcurrencyLimiter, LimiterConfig};
use crate::http_server::refusals::{RefusalReason, Refusals};
use crate::http_server::response::{error_response, retry_later_response};
use crate::message::{CometAddr, RoomId};
use crate::router::{Route, ShareKind};
use crate::telemetry::exposition::{self, Exposition};

/// Deadline of a look-up for `/v1/routes/{room}`.
const ROUTE_DEADLINE: Duration = Duration::from_secs(5);
/// Directory look-ups.
const LOOKUPS: LimiterConfig =
    LimiterConfig { max_concurrent: 1, max_waiting: 8, wait: Duration::from_secs(2), pause: 4 };
/// Routes that read memory only.
const LISTS: LimiterConfig =
    LimiterConfig { max_concurrent: 4, max_waiting: 64, wait: Duration::from_secs(2), pause: 0 };
/// Rendering the metrics.
const METRICS: LimiterConfig =
    LimiterConfig { max_concurrent: 1, max_waiting: 256, wait: Duration::from_secs(10), pause: 1 };

/// State of the read routes.
#[derive(Clone)]
pub(super) struct ReadApi {
    gateway: Handle,
    refusals: Refusals,
    lookups: Arc<ConcurrencyLimiter>,
    lists: Arc<ConcurrencyLimiter>,
    metrics: Arc<Metrics>,
}

/// The rendered metrics, shared by all requests that wait for them.
struct Metrics {
    concurrency: ConcurrencyLimiter,
    /// The last rendering.
    rendered: Mutex<Option<Rendered>>,
}

/// All metrics at one time.
struct Rendered {
    /// When the rendering started.
    since: Instant,
    openmetrics: Bytes,
    /// Made for the first client that wants it.
    text: Option<Bytes>,
}

impl ReadApi {
    pub(super) fn new(gateway: Handle, refusals: Refusals) -> Self {
        Self {
            gateway,
            refusals,
            lookups: Arc::new(ConcurrencyLimiter::new(LOOKUPS)),
            lists: Arc::new(ConcurrencyLimiter::new(LISTS)),
            metrics: Arc::new(Metrics {
                concurrency: ConcurrencyLimiter::new(METRICS),
                rendered: Mutex::default(),
            }),
        }
    }

    /// Health, readiness and metrics.
    pub(super) fn probes(&self, access: &AccessControl) -> Router {
        let behind =
            |needs| middleware::from_fn_with_state(RouteGuard { access: access.clone(), needs }, authorize);
        // Whether the process is alive is no secret, and some probes send no Host.
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready).route_layer(behind(Permission::Host)))
            .route("/metrics", get(metrics).route_layer(behind(access.metrics_permission())))
            .with_state(self.clone())
    }

    /// The reads below `/v1/`.
    pub(super) fn router(&self, access: &AccessControl) -> Router {
        let authorize = middleware::from_fn_with_state(
            RouteGuard { access: access.clone(), needs: Permission::Read },
            authorize,
        );
        let lists = Router::new()
            .route("/v1/plugins", get(plugins))
            .route("/v1/plugins/{name}", get(plugin))
            .route("/v1/plugins/{name}/settings", get(settings))
            .route("/v1/plugins/{name}/versions", get(versions))
            .route("/v1/plugins/{name}/differences", get(differences))
            .route("/v1/comets", get(comets))
            .route("/v1/stalls", get(stalls))
            .route_layer(middleware::from_fn_with_state(self.clone(), limit_lists));
        lists.route("/v1/routes/{room}", get(route)).route_layer(authorize).with_state(self.clone())
    }

    /// The request is refused for now; the client may retry.
    fn busy(&self, status: StatusCode, error: &str, wait: Duration) -> Response {
        self.refusals.count(RefusalReason::Busy, None, || format!("a request was refused: {error}"));
        retry_later_response(status, error, wait)
    }
}

async fn limit_lists(State(reads): State<ReadApi>, request: Request, next: Next) -> Response {
    match reads.lists.next().await {
        Ok(_turn) => next.run(request).await,
        Err(Busy(wait)) => {
            reads.busy(StatusCode::SERVICE_UNAVAILABLE, "too many concurrent requests; retry later", wait)
        }
    }
}

async fn ready(State(ReadApi { gateway, .. }): State<ReadApi>) -> Response {
    readiness(&gateway.problems(), &gateway.warnings())
}

/// The answer of `/readyz`.
pub(super) fn readiness(problems: &[String], warnings: &[String]) -> Response {
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let response = json!({ "ready": problems.is_empty(), "reasons": problems, "warnings": warnings });
    (status, Json(response)).into_response()
}

/// The format of metrics that a client wants, and the headers of its answer.
pub(super) fn wanted_format(headers: &HeaderMap) -> (Exposition, [(header::HeaderName, &'static str); 2]) {
    // Several lines of one header are one list.
    let accept: Vec<_> =
        headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    let format = Exposition::negotiate(&accept.join(","));
    (format, [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "Accept")])
}

async fn metrics(State(reads): State<ReadApi>, headers: HeaderMap) -> Response {
    let (format, described) = wanted_format(&headers);
    match reads.metrics.render(&reads.gateway, format).await {
        Ok(Ok(text)) => (described, text).into_response(),
        Ok(Err(error)) => error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(Busy(wait)) => reads.busy(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests for the metrics; retry later",
            wait,
        ),
    }
}

impl Metrics {
    /// The metrics at the time of the call or later.
    async fn render(
        &self,
        gateway: &Handle,
        format: Exposition,
    ) -> Result<Result<Bytes, std::fmt::Error>, Busy> {
        let asked = Instant::now();
        let _turn = self.concurrency.next().await?;
        let mut last = self.rendered.lock().await;
        let rendered = match last.take().filter(|last| last.since >= asked) {
            Some(rendered) => rendered,
            None => match Rendered::now(gateway) {
                Ok(rendered) => rendered,
                Err(error) => return Ok(Err(error)),
            },
        };
        Ok(Ok(last.insert(rendered).in_format(format)))
    }
}

impl Rendered {
    fn now(gateway: &Handle) -> Result<Self, std::fmt::Error> {
        let since = Instant::now();
        Ok(Self { since, openmetrics: gateway.metrics()?.into(), text: None })
    }

    fn in_format(&mut self, format: Exposition) -> Bytes {
        match format {
            Exposition::OpenMetrics => self.openmetrics.clone(),
            Exposition::Text => {
                let openmetrics = &self.openmetrics;
                let make = || exposition::to_text(&String::from_utf8_lossy(openmetrics)).into();
                self.text.get_or_insert_with(make).clone()
            }
        }
    }
}

async fn plugins(State(ReadApi { gateway, .. }): State<ReadApi>) -> Response {
    Json(gateway.policies().status()).into_response()
}

async fn plugin(State(ReadApi { gateway, .. }): State<ReadApi>, Path(name): Path<String>) -> Response {
    match plugin_status(&gateway, &name) {
        Some(status) => Json(status).into_response(),
        None => unknown(&gateway, &name),
    }
}

/// The schema of an active plugin's settings, as it exports it, and as rows for people; `null` if it
/// exports none.
async fn settings(State(ReadApi { gateway, .. }): State<ReadApi>, Path(name): Path<String>) -> Response {
    let status = gateway.policies().status();
    let Some(plugin) = status.plugins.iter().find(|plugin| plugin.name == name) else {
        return unknown(&gateway, &name);
    };
    let fields = plugin.settings.as_ref().map(|settings| settings.fields());
    let described =
        json!({ "plugin": name, "hash": plugin.hash, "schema": plugin.settings, "fields": fields });
    Json(described).into_response()
}

async fn versions(State(ReadApi { gateway, .. }): State<ReadApi>, Path(name): Path<String>) -> Response {
    match gateway.policies().versions(&name) {
        Some(versions) => Json(json!({ "plugin": name, "versions": versions })).into_response(),
        None => unknown(&gateway, &name),
    }
}

async fn differences(State(ReadApi { gateway, .. }): State<ReadApi>, Path(name): Path<String>) -> Response {
    match gateway.policies().differences(&name) {
        Some(differences) => Json(differences).into_response(),
        None => error_response(StatusCode::NOT_FOUND, &format!("plugin `{name}` has no shadow candidate")),
    }
}

/// The active version of a plugin and the override of its file; `None` if there is neither.
pub(super) fn plugin_status(gateway: &Handle, name: &str) -> Option<serde_json::Value> {
    let status = gateway.policies().status();
    let active = status.plugins.iter().find(|plugin| plugin.name == name);
    let instead = status.overrides.get(name);
    if active.is_none() && instead.is_none() {
        return None;
    }
    Some(json!({ "generation": status.generation, "active": active, "override": instead }))
}

/// How many names an error lists.
const MOST_NAMES: usize = 20;

fn unknown(gateway: &Handle, name: &str) -> Response {
    let status = gateway.policies().status();
    let names = status.plugins.iter().take(MOST_NAMES).map(|plugin| format!("`{}`", plugin.name));
    let names = names.collect::<Vec<_>>().join(", ");
    let known = match status.plugins.len() {
        0 => "no plugin is active".to_owned(),
        1..=MOST_NAMES => format!("active: {names}"),
        all => format!("{all} are active, such as {names}; GET /v1/plugins lists all"),
    };
    error_response(StatusCode::NOT_FOUND, &format!("plugin `{name}` not found; {known}"))
}

async fn comets(State(ReadApi { gateway, .. }): State<ReadApi>) -> Response {
    Json(json!({ "comets": gateway.fleet().status() })).into_response()
}

async fn stalls(State(ReadApi { gateway, .. }): State<ReadApi>) -> Response {
    Json(json!({ "stalls": gateway.stalls() })).into_response()
}

/// The route of a room: from the cache, or looked up within the concurrency limit.
async fn route(State(reads): State<ReadApi>, Path(room): Path<String>) -> Response {
    let (gateway, room) = (&reads.gateway, RoomId::from(room));
    if let Some((route, age)) = gateway.cached_route(&room) {
        return Json(RouteView::new(&room, &route, age.into())).into_response();
    }
    let _turn = match reads.lookups.next().await {
        Ok(turn) => turn,
        Err(Busy(wait)) => {
            let error = "too many route look-ups; they run one at a time; retry later";
            return reads.busy(StatusCode::TOO_MANY_REQUESTS, error, wait);
        }
    };
    match tokio::time::timeout(ROUTE_DEADLINE, gateway.route(&room)).await {
        Ok(Ok(route)) => Json(RouteView::new(&room, &route, FreshnessView::READ_NOW)).into_response(),
        Ok(Err(error)) => error_response(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")),
        Err(_) => error_response(StatusCode::GATEWAY_TIMEOUT, "the directory did not answer in time"),
    }
}

/// A route as the API shows it: counts, and the first connections of each share.
#[derive(Serialize)]
struct RouteView<'a> {
    room: &'a RoomId,
    connections: usize,
    stale: usize,
    skipped: usize,
    absent: usize,
    freshness: FreshnessView,
    shares: Vec<ShareView<'a>>,
}

/// How current the answer is.
#[derive(Serialize)]
struct FreshnessView {
    /// `read-now`; `tracked`: cached, and Redis reports changes; `max-age`: cached for a short time;
    /// `deferred`: the room has changed, and is too large to be read again at once; `unconfirmed`: cached,
    /// but Redis is silent, and the next message reads the room.
    state: &'static str,
    /// How long ago the room was read.
    read_ms: u128,
    /// How long ago the oldest presence and connection details in it were read.
    presence_ms: u128,
}

impl FreshnessView {
    const READ_NOW: Self = Self { state: "read-now", read_ms: 0, presence_ms: 0 };
}

impl From<CachedAge> for FreshnessView {
    fn from(age: CachedAge) -> Self {
        let state = match age {
            CachedAge { confirmed: false, .. } => "unconfirmed",
            CachedAge { outdated: true, .. } => "deferred",
            CachedAge { tracked: true, .. } => "tracked",
            CachedAge { .. } => "max-age",
        };
        Self { state, read_ms: age.read.as_millis(), presence_ms: age.details.as_millis() }
    }
}

#[derive(Serialize)]
struct ShareView<'a> {
    comet: &'a CometAddr,
    call: &'static str,
    recipients: usize,
    first: Vec<&'a str>,
}

/// A room can have a hundred thousand connections; this many are listed.
const CONNECTIONS_SHOWN: usize = 20;

impl<'a> RouteView<'a> {
    fn new(room: &'a RoomId, route: &'a Route, freshness: FreshnessView) -> Self {
        let shares = route.shares.iter().map(|share| ShareView {
            comet: &share.comet,
            call: match share.part {
                ShareKind::Whole => "BroadcastRoom",
                ShareKind::Partial => "PushMsg",
            },
            recipients: share.recipients.len(),
            first: share.recipients.iter().take(CONNECTIONS_SHOWN).map(|r| r.connection.as_str()).collect(),
        });
        Self {
            room,
            connections: route.connections,
            stale: route.stale,
            skipped: route.skipped,
            absent: route.absent.len(),
            freshness,
            shares: shares.collect(),
        }
    }
}
