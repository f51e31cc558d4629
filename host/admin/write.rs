//! The writes: versions of policies pushed, gone back from, released.
//!
//! Whatever is sent is bounded in size, number and time, takes effect as a whole between two
//! batches or not at all, and is told of in the log.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{post, put};
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::admin::auth::Auth;
use crate::admin::{failed, one_plugin};
use crate::gateway::{Handle, Steered};
use crate::policy::Upload;

/// The largest plugin, in bytes.
const MAX_PLUGIN: usize = 64 * 1024 * 1024;
/// The most that one request may send, in bytes.
const MAX_BODY: usize = 2 * MAX_PLUGIN;
/// The most plugins that one request may send.
const MAX_PLUGINS: usize = 64;
/// How long sending may take.
const SENDING: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Writes {
    gateway: Handle,
    /// One upload at a time is held in memory.
    uploading: Arc<Semaphore>,
}

/// The routes that write.
pub(super) fn router(gateway: Handle, auth: Auth) -> Router {
    Router::new()
        .route("/v1/plugins", put(push_several))
        .route("/v1/plugins/{name}", put(push_one))
        .route("/v1/plugins/{name}/rollback", post(roll_back))
        .route("/v1/plugins/{name}/release", post(release))
        .route("/v1/plugins/{name}/promote", post(promote))
        .route("/v1/plugins/{name}/abandon", post(abandon))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .route_layer(middleware::from_fn_with_state(auth, authorized))
        .with_state(Writes { gateway, uploading: Arc::new(Semaphore::new(1)) })
}

/// Nothing of a body is read before it is clear that its sender may write.
async fn authorized(State(auth): State<Auth>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if let Err(denied) = auth.check(request.headers()).await {
        warn!(%method, path, status = denied.status.as_u16(), why = denied.why, "a write was denied");
        let mut response = failed(denied.status, &denied.why);
        if denied.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        return response;
    }
    let response = next.run(request).await;
    info!(%method, path, status = response.status().as_u16(), "a write");
    response
}

async fn push_one(State(writes): State<Writes>, Path(name): Path<String>, request: Request) -> Response {
    let Ok(_alone) = writes.uploading.try_acquire() else { return busy() };
    if request.body().size_hint().lower() > MAX_PLUGIN as u64 {
        return too_large();
    }
    let bytes = match tokio::time::timeout(SENDING, to_bytes(request.into_body(), MAX_PLUGIN)).await {
        Ok(Ok(bytes)) => bytes.to_vec(),
        Ok(Err(_)) => return too_large(),
        Err(_) => return too_slow(),
    };
    push(&writes, vec![Upload { name, bytes }]).await
}

async fn push_several(State(writes): State<Writes>, request: Request) -> Response {
    let Ok(_alone) = writes.uploading.try_acquire() else { return busy() };
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
    let wrong = |why: String| failed(StatusCode::BAD_REQUEST, &why);
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|e| wrong(format!("{e}; send multipart/form-data, one part for each plugin")))?;
    let mut uploads = Vec::new();
    while let Some(part) = parts.next_field().await.map_err(|e| wrong(e.body_text()))? {
        let Some(name) = part.name().map(str::to_owned) else {
            return Err(wrong("a part has no name; parts are named after the plugins".to_owned()));
        };
        let bytes = part.bytes().await.map_err(|e| failed(e.status(), &e.body_text()))?.to_vec();
        if uploads.len() >= MAX_PLUGINS || uploads.iter().any(|upload: &Upload| upload.name == name) {
            return Err(wrong(format!("more than {MAX_PLUGINS} parts, or two for `{name}`")));
        }
        uploads.push(Upload { name, bytes });
    }
    if uploads.is_empty() {
        return Err(wrong("there is no part; parts are named after the plugins".to_owned()));
    }
    Ok(uploads)
}

async fn push(writes: &Writes, uploads: Vec<Upload>) -> Response {
    let names: Vec<String> = uploads.iter().map(|upload| upload.name.clone()).collect();
    answer(writes, &names, writes.gateway.push(uploads).await)
}

#[derive(serde::Deserialize)]
struct Target {
    to: Option<String>,
}

async fn roll_back(
    State(writes): State<Writes>,
    Path(name): Path<String>,
    Query(target): Query<Target>,
) -> Response {
    let done = writes.gateway.roll_back(name.clone(), target.to).await;
    answer(&writes, &[name], done)
}

async fn release(State(writes): State<Writes>, Path(name): Path<String>) -> Response {
    let done = writes.gateway.release(name.clone()).await;
    answer(&writes, &[name], done)
}

async fn promote(State(writes): State<Writes>, Path(name): Path<String>) -> Response {
    let done = writes.gateway.promote(name.clone()).await;
    answer(&writes, &[name], done)
}

async fn abandon(State(writes): State<Writes>, Path(name): Path<String>) -> Response {
    let done = writes.gateway.abandon(name.clone()).await;
    answer(&writes, &[name], done)
}

/// What is in force of these plugins now, or why nothing changed.
fn answer(writes: &Writes, names: &[String], done: Steered) -> Response {
    match done {
        Ok(generation) => {
            let plugins: serde_json::Map<_, _> = names
                .iter()
                .filter_map(|name| Some((name.clone(), one_plugin(&writes.gateway, name)?)))
                .collect();
            Json(json!({ "generation": generation, "plugins": plugins })).into_response()
        }
        Err(refused) => {
            let problems: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
            let known = |name: &String| one_plugin(&writes.gateway, name).is_some();
            let status = if names.iter().all(known) {
                StatusCode::UNPROCESSABLE_ENTITY
            } else {
                StatusCode::NOT_FOUND
            };
            let body = json!({ "error": "refused; what was in force stays", "problems": problems });
            (status, Json(body)).into_response()
        }
    }
}

fn busy() -> Response {
    failed(StatusCode::SERVICE_UNAVAILABLE, "another upload is on its way; try again in a moment")
}

fn too_large() -> Response {
    failed(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("a plugin has at most {MAX_PLUGIN} bytes, a request {MAX_BODY}"),
    )
}

fn too_slow() -> Response {
    failed(StatusCode::REQUEST_TIMEOUT, &format!("the upload took longer than {} s", SENDING.as_secs()))
}
