//! Write routes: push, roll back and release versions of policies.
//!
//! Requests are bounded in size, number and time. A change is applied as a whole between two batches,
//! or not at all. Each write leaves an audit line: who, what, and the versions before and after.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{post, put};
use axum::{Extension, Router};
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::info;

use crate::admin::access::{AccessControl, Caller, Permission, RouteGuard, authorize};
use crate::admin::read::plugin_status;
use crate::gateway::{Handle, OperatorResult};
use crate::http_server::activity::Activity;
use crate::http_server::peer::{ClientName, Peer};
use crate::http_server::refusals::shown;
use crate::http_server::response::{discard, error_response, retry_later_response};
use crate::policy::{Policies, Upload};
use crate::telemetry::{Counter, Family, at_zero, label_enum, metrics};

/// Maximum size of a plugin, in bytes.
const MAX_PLUGIN: usize = 64 * 1024 * 1024;
/// Maximum size of a request body, in bytes.
const MAX_BODY: usize = 2 * MAX_PLUGIN;
/// Maximum number of plugins of a request.
const MAX_PLUGINS: usize = 64;
/// The header with the base64 signature, of a request or of one of its parts.
const SIGNATURE: &str = "halley-signature";
/// Deadline of an upload.
const SENDING: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct WriteApi {
    gateway: Handle,
    /// One upload at a time is held in memory.
    uploading: Arc<Semaphore>,
    metrics: WriteMetrics,
}

/// The outcome of a write, for the log.
#[derive(Clone)]
struct AuditOutcome {
    words: String,
    /// The versions before and after, as `plugin:hash`.
    before: String,
    after: String,
}

label_enum! {
    /// What a write does.
    enum WriteOperation as "operation" {
        Push = "push",
        Rollback = "rollback",
        Release = "release",
        Promote = "promote",
        Abandon = "abandon",
    }
}

label_enum! {
    /// What became of a write.
    enum WriteOutcome as "outcome" {
        Applied = "applied",
        Refused = "refused",
    }
}

metrics! {
    /// Counts writes.
    #[derive(Clone, Debug)]
    pub(super) struct WriteMetrics {
        /// Changes of policies over the admin API, by operation and outcome.
        writes: Family<(WriteOperation, WriteOutcome), Counter> = "halley_admin_writes"
            in at_zero(Family::default());
    }
}

/// The write routes.
pub(super) fn router(gateway: Handle, access: &AccessControl, metrics: WriteMetrics) -> Router {
    let guarded = |routes: Router<WriteApi>, needs| {
        let guard = RouteGuard { access: access.clone(), needs };
        routes
            .route_layer(middleware::from_fn(audited))
            .route_layer(middleware::from_fn_with_state(guard, authorize))
    };
    let pushes = Router::new()
        .route("/v1/plugins", put(push_several))
        .route("/v1/plugins/{name}", put(push_one))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    let operations = Router::new()
        .route("/v1/plugins/{name}/rollback", post(roll_back))
        .route("/v1/plugins/{name}/release", post(release))
        .route("/v1/plugins/{name}/promote", post(promote))
        .route("/v1/plugins/{name}/abandon", post(abandon));
    guarded(pushes, Permission::Push).merge(guarded(operations, Permission::Operate)).with_state(WriteApi {
        gateway,
        uploading: Arc::new(Semaphore::new(1)),
        metrics,
    })
}

/// Logs who changed what.
async fn audited(
    Extension(from): Extension<Peer>,
    Extension(certificate): Extension<ClientName>,
    Extension(Caller(token)): Extension<Caller>,
    Extension(activity): Extension<Arc<Activity>>,
    request: Request,
    next: Next,
) -> Response {
    activity.writes();
    let (method, path) = (request.method().clone(), shown(request.uri().path()).into_owned());
    let mut response = next.run(request).await;
    let audit = response.extensions_mut().remove::<AuditOutcome>();
    let (outcome, before, after) = match audit {
        Some(AuditOutcome { words, before, after }) => (Some(words), Some(before), Some(after)),
        None => (None, None, None),
    };
    info!(%from, certificate = certificate.as_deref(), token = token.as_deref(), %method, path, status = response.status().as_u16(), before, after, outcome, "audit: a write");
    response
}

/// The versions of these plugins, as `plugin:hash`.
fn versions(gateway: &Handle, names: &[String]) -> String {
    let status = gateway.policies().status();
    let version = |name: &String| {
        let active = status.plugins.iter().find(|plugin| plugin.name == *name)?;
        Some(format!("{name}:{}", active.hash.short()))
    };
    names.iter().filter_map(version).collect::<Vec<_>>().join(" ")
}

/// Carries out a change of these plugins.
async fn change<F>(
    writes: &WriteApi,
    operation: WriteOperation,
    names: &[String],
    change: impl FnOnce(Arc<Policies>) -> F,
) -> Response
where
    F: Future<Output = OperatorResult> + Send + 'static,
{
    let before = versions(&writes.gateway, names);
    let done = writes.gateway.apply(change).await;
    let outcome = if done.is_ok() { WriteOutcome::Applied } else { WriteOutcome::Refused };
    writes.metrics.writes.get_or_create(&(operation, outcome)).inc();
    response(writes, names, before, done)
}

async fn push_one(State(writes): State<WriteApi>, Path(name): Path<String>, request: Request) -> Response {
    let Ok(_exclusive) = writes.uploading.try_acquire() else { return busy(request).await };
    if request.body().size_hint().lower() > MAX_PLUGIN as u64 {
        return too_large();
    }
    let signature = signature(request.headers());
    let bytes = match tokio::time::timeout(SENDING, to_bytes(request.into_body(), MAX_PLUGIN)).await {
        Ok(Ok(bytes)) => bytes.to_vec(),
        Ok(Err(_)) => return too_large(),
        Err(_) => return too_slow(),
    };
    push(&writes, vec![Upload { name, bytes, signature }]).await
}

async fn push_several(State(writes): State<WriteApi>, request: Request) -> Response {
    let Ok(_exclusive) = writes.uploading.try_acquire() else { return busy(request).await };
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return too_large();
    }
    match tokio::time::timeout(SENDING, parts(request)).await {
        Ok(Ok(uploads)) => push(&writes, uploads).await,
        Ok(Err(response)) => response,
        Err(_) => too_slow(),
    }
}

/// One part for each plugin, under its name.
async fn parts(request: Request<Body>) -> Result<Vec<Upload>, Response> {
    let wrong = |why: String| error_response(StatusCode::BAD_REQUEST, &why);
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|e| wrong(format!("{e}; send multipart/form-data, one part per plugin")))?;
    let mut uploads = Vec::new();
    while let Some(part) = parts.next_field().await.map_err(|e| wrong(e.body_text()))? {
        let Some(name) = part.name().map(str::to_owned) else {
            return Err(wrong("a part has no name; parts are named after the plugins".to_owned()));
        };
        let signature = signature(part.headers());
        let bytes = part.bytes().await.map_err(|e| error_response(e.status(), &e.body_text()))?.to_vec();
        if uploads.len() >= MAX_PLUGINS || uploads.iter().any(|upload: &Upload| upload.name == name) {
            return Err(wrong(format!("more than {MAX_PLUGINS} parts, or two for `{name}`")));
        }
        uploads.push(Upload { name, bytes, signature });
    }
    if uploads.is_empty() {
        return Err(wrong("the request has no parts; parts are named after the plugins".to_owned()));
    }
    Ok(uploads)
}

fn signature(headers: &HeaderMap) -> Option<Vec<u8>> {
    headers.get(SIGNATURE).map(|value| value.as_bytes().to_vec())
}

async fn push(writes: &WriteApi, uploads: Vec<Upload>) -> Response {
    let names: Vec<String> = uploads.iter().map(|upload| upload.name.clone()).collect();
    let push = |policies: Arc<Policies>| async move { policies.push(uploads).await };
    change(writes, WriteOperation::Push, &names, push).await
}

#[derive(serde::Deserialize)]
struct RollbackQuery {
    to: Option<String>,
}

async fn roll_back(
    State(writes): State<WriteApi>,
    Path(name): Path<String>,
    Query(target): Query<RollbackQuery>,
) -> Response {
    let plugin = name.clone();
    let roll_back =
        |policies: Arc<Policies>| async move { policies.rollback(&plugin, target.to.as_deref()).await };
    change(&writes, WriteOperation::Rollback, &[name], roll_back).await
}

async fn release(State(writes): State<WriteApi>, Path(name): Path<String>) -> Response {
    let plugin = name.clone();
    let release = |policies: Arc<Policies>| async move { policies.release(&plugin).await };
    change(&writes, WriteOperation::Release, &[name], release).await
}

async fn promote(State(writes): State<WriteApi>, Path(name): Path<String>) -> Response {
    let plugin = name.clone();
    let promote = |policies: Arc<Policies>| async move { policies.promote(&plugin).await };
    change(&writes, WriteOperation::Promote, &[name], promote).await
}

async fn abandon(State(writes): State<WriteApi>, Path(name): Path<String>) -> Response {
    let plugin = name.clone();
    let abandon = |policies: Arc<Policies>| async move { policies.abandon(&plugin).await };
    change(&writes, WriteOperation::Abandon, &[name], abandon).await
}

/// The active versions of these plugins, or why nothing changed.
fn response(writes: &WriteApi, names: &[String], before: String, done: OperatorResult) -> Response {
    let after = versions(&writes.gateway, names);
    match done {
        Ok(generation) => {
            let plugins: serde_json::Map<_, _> = names
                .iter()
                .filter_map(|name| Some((name.clone(), plugin_status(&writes.gateway, name)?)))
                .collect();
            let words = format!("generation {generation}: {}", names.join(", "));
            (
                Extension(AuditOutcome { words, before, after }),
                Json(json!({ "generation": generation, "plugins": plugins })),
            )
                .into_response()
        }
        Err(refused) => {
            let problems: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
            let known = |name: &String| plugin_status(&writes.gateway, name).is_some();
            let status = if names.iter().all(known) {
                StatusCode::UNPROCESSABLE_ENTITY
            } else {
                StatusCode::NOT_FOUND
            };
            let body = json!({ "error": "refused; the active versions are unchanged", "problems": problems });
            let words = refused.to_string();
            (status, Extension(AuditOutcome { words, before, after }), Json(body)).into_response()
        }
    }
}

async fn busy(request: Request) -> Response {
    discard(request.into_body()).await;
    let error = "another upload is in progress; retry later";
    retry_later_response(StatusCode::SERVICE_UNAVAILABLE, error, Duration::from_secs(1))
}

fn too_large() -> Response {
    error_response(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("a plugin has at most {MAX_PLUGIN} bytes, a request {MAX_BODY}"),
    )
}

fn too_slow() -> Response {
    error_response(
        StatusCode::REQUEST_TIMEOUT,
        &format!("the upload took longer than {} s", SENDING.as_secs()),
    )
}
