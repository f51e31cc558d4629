//! Write routes: push, roll back and release versions of policies.
//!
//! Requests are bounded in size, number and time. A change is applied as a whole between two batches,
//! or not at all, and is logged.

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

use crate::admin::access::{AccessControl, Permission, RouteGuard, authorize};
use crate::admin::read::plugin_status;
use crate::gateway::{Handle, OperatorResult};
use crate::http_server::activity::Activity;
use crate::http_server::peer::Peer;
use crate::http_server::refusals::shown;
use crate::http_server::response::{discard, error_response, retry_later_response};
use crate::policy::{Policies, Upload};

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
}

/// The outcome of a write, for the log.
#[derive(Clone)]
struct AuditOutcome(String);

/// The write routes.
pub(super) fn router(gateway: Handle, access: AccessControl) -> Router {
    Router::new()
        .route("/v1/plugins", put(push_several))
        .route("/v1/plugins/{name}", put(push_one))
        .route("/v1/plugins/{name}/rollback", post(roll_back))
        .route("/v1/plugins/{name}/release", post(release))
        .route("/v1/plugins/{name}/promote", post(promote))
        .route("/v1/plugins/{name}/abandon", post(abandon))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .route_layer(middleware::from_fn(logged))
        .route_layer(middleware::from_fn_with_state(
            RouteGuard { access, needs: Permission::Write },
            authorize,
        ))
        .with_state(WriteApi { gateway, uploading: Arc::new(Semaphore::new(1)) })
}

/// Logs who changed what.
async fn logged(
    Extension(from): Extension<Peer>,
    Extension(activity): Extension<Arc<Activity>>,
    request: Request,
    next: Next,
) -> Response {
    activity.writes();
    let (method, path) = (request.method().clone(), shown(request.uri().path()).into_owned());
    let mut response = next.run(request).await;
    let outcome = response.extensions_mut().remove::<AuditOutcome>().map(|AuditOutcome(words)| words);
    info!(%from, %method, path, status = response.status().as_u16(), outcome, "a write");
    response
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
    response(
        writes,
        &names,
        writes.gateway.apply(|policies| async move { policies.push(uploads).await }).await,
    )
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
    let change =
        |policies: Arc<Policies>| async move { policies.rollback(&plugin, target.to.as_deref()).await };
    let done = writes.gateway.apply(change).await;
    response(&writes, &[name], done)
}

async fn release(State(writes): State<WriteApi>, Path(name): Path<String>) -> Response {
    let plugin = name.clone();
    let done = writes.gateway.apply(|policies| async move { policies.release(&plugin).await }).await;
    response(&writes, &[name], done)
}

async fn promote(State(writes): State<WriteApi>, Path(name): Path<String>) -> Response {
    let plugin = name.clone();
    let done = writes.gateway.apply(|policies| async move { policies.promote(&plugin).await }).await;
    response(&writes, &[name], done)
}

async fn abandon(State(writes): State<WriteApi>, Path(name): Path<String>) -> Response {
    let plugin = name.clone();
    let done = writes.gateway.apply(|policies| async move { policies.abandon(&plugin).await }).await;
    response(&writes, &[name], done)
}

/// The active versions of these plugins, or why nothing changed.
fn response(writes: &WriteApi, names: &[String], done: OperatorResult) -> Response {
    match done {
        Ok(generation) => {
            let plugins: serde_json::Map<_, _> = names
                .iter()
                .filter_map(|name| Some((name.clone(), plugin_status(&writes.gateway, name)?)))
                .collect();
            let outcome = AuditOutcome(format!("generation {generation}: {}", names.join(", ")));
            (Extension(outcome), Json(json!({ "generation": generation, "plugins": plugins })))
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
            (status, Extension(AuditOutcome(refused.to_string())), Json(body)).into_response()
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
