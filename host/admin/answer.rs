//! What the API says when it does not do what it was asked to.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use futures_util::future::poll_fn;
use serde_json::json;

/// An error as JSON.
pub(super) fn failed(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// The same, with when to try again.
pub(super) fn failed_for_now(status: StatusCode, error: &str, retry_after: Duration) -> Response {
    let mut response = failed(status, error);
    let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// The most of a body that is thrown away, in bytes, and how long that may take.
const MAX_DISCARDED: usize = 8 * 1024 * 1024;
const DISCARDING: Duration = Duration::from_millis(500);

/// Throws away the body of a request that is refused, within limits. A connection that is closed with
/// something unread in it is reset, and the client may lose the answer.
pub(super) async fn discard(mut body: Body) {
    let read_all = async {
        let mut discarded = 0;
        while discarded < MAX_DISCARDED
            && let Some(Ok(frame)) = poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
        {
            discarded += frame.data_ref().map_or(0, |data| data.len());
        }
    };
    // What comes later is not waited for.
    let _ = tokio::time::timeout(DISCARDING, read_all).await;
}
