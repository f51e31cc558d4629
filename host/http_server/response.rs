//! Error responses of the API.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use futures_util::future::poll_fn;
use serde_json::json;

/// An error as JSON.
pub(crate) fn error_response(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// An error as JSON, with `Retry-After`.
pub(crate) fn retry_later_response(status: StatusCode, error: &str, retry_after: Duration) -> Response {
    let mut response = error_response(status, error);
    let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// How much of a rejected body is read, in bytes, and for how long.
const MAX_DISCARDED: usize = 8 * 1024 * 1024;
const DISCARDING: Duration = Duration::from_millis(500);

/// Reads and discards the body of a rejected request, within limits. Closing a connection with unread
/// data resets it, and the client may lose the response.
pub(crate) async fn discard(mut body: Body) {
    let read_all = async {
        let mut discarded = 0;
        while discarded < MAX_DISCARDED
            && let Some(Ok(frame)) = poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
        {
            discarded += frame.data_ref().map_or(0, |data| data.len());
        }
    };
    // The rest is not read.
    let _ = tokio::time::timeout(DISCARDING, read_all).await;
}
