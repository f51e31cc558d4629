//! Versions that are sent to the gateway: one as the body of a request, or several as the parts
//! of one. Bounded in size, in number at once and in time.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest as _, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;

use crate::admin::{App, failed};
use crate::policy::Upload;

/// The largest plugin, in bytes.
pub(super) const MAX_PLUGIN: usize = 64 * 1024 * 1024;
/// The most that one request may bring, in bytes.
pub(super) const MAX_TOGETHER: usize = 2 * MAX_PLUGIN;
/// How many plugins may come together.
const MAX_PARTS: usize = 64;
/// How long sending may take.
const SENDING: Duration = Duration::from_secs(60);
/// The header with a version's signature, for a request or one of its parts.
const SIGNATURE: &str = "halley-signature";

/// What was sent. Holds the place of an upload until it is dealt with.
pub(super) struct Received {
    pub(super) uploads: Vec<Upload>,
    pub(super) place: OwnedSemaphorePermit,
}

/// Takes in the version of one plugin: the whole body.
pub(super) async fn one(app: &App, name: String, request: Request) -> Result<Received, Response> {
    let place = begin(app, &request, MAX_PLUGIN)?;
    let signature = signature(request.headers());
    let body = in_time(Bytes::from_request(request, &())).await?;
    let bytes = body.map_err(|rejected| refused(rejected.status(), &rejected.body_text()))?;
    Ok(Received { uploads: vec![Upload { name, bytes: bytes.to_vec(), signature }], place })
}

/// Takes in versions of several plugins: a part for each, named after it.
pub(super) async fn several(app: &App, request: Request) -> Result<Received, Response> {
    let place = begin(app, &request, MAX_TOGETHER)?;
    let uploads = in_time(parts(request)).await??;
    Ok(Received { uploads, place })
}

async fn parts(request: Request) -> Result<Vec<Upload>, Response> {
    let parts = Multipart::from_request(request, &()).await;
    let mut parts = parts.map_err(|rejected| refused(rejected.status(), &rejected.body_text()))?;
    let mut uploads: Vec<Upload> = Vec::new();
    loop {
        let field = parts.next_field().await.map_err(|e| refused(e.status(), &e.body_text()))?;
        let Some(field) = field else { break };
        let upload = part(field).await?;
        if uploads.len() == MAX_PARTS || uploads.iter().any(|earlier| earlier.name == upload.name) {
            let error = format!(
                "plugin `{}` comes twice, or there are more than {MAX_PARTS} parts; send one for each plugin",
                upload.name
            );
            return Err(failed(StatusCode::BAD_REQUEST, &error));
        }
        uploads.push(upload);
    }
    if uploads.is_empty() {
        let error = "nothing was sent; send one part for each plugin, named after it";
        return Err(failed(StatusCode::BAD_REQUEST, error));
    }
    Ok(uploads)
}

async fn part(mut field: Field<'_>) -> Result<Upload, Response> {
    let Some(name) = field.name().map(str::to_owned) else {
        return Err(failed(StatusCode::BAD_REQUEST, "a part has no name; name each after its plugin"));
    };
    let signature = signature(field.headers());
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|e| refused(e.status(), &e.body_text()))? {
        if bytes.len() + chunk.len() > MAX_PLUGIN {
            return Err(too_large(MAX_PLUGIN));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Upload { name, bytes, signature })
}

/// Refuses at once what is known to be too much.
fn begin(app: &App, request: &Request, limit: usize) -> Result<OwnedSemaphorePermit, Response> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    app.uploads.clone().try_acquire_owned().map_err(|_| {
        let error = "other uploads are under way; try again in a moment";
        failed(StatusCode::SERVICE_UNAVAILABLE, error)
    })
}

async fn in_time<T>(sending: impl Future<Output = T>) -> Result<T, Response> {
    tokio::time::timeout(SENDING, sending).await.map_err(|_| {
        let error = format!("the upload took longer than {SENDING:?}; nothing was changed");
        failed(StatusCode::REQUEST_TIMEOUT, &error)
    })
}

fn signature(headers: &HeaderMap) -> Option<Vec<u8>> {
    headers.get(SIGNATURE).map(|value| value.as_bytes().to_vec())
}

fn refused(status: StatusCode, text: &str) -> Response {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(MAX_PLUGIN),
        status => failed(status, &format!("the upload cannot be read: {text}; nothing was changed")),
    }
}

fn too_large(limit: usize) -> Response {
    let error =
        format!("the upload is too large; at most {limit} bytes are taken, {MAX_PLUGIN} for each plugin");
    failed(StatusCode::PAYLOAD_TOO_LARGE, &error)
}
