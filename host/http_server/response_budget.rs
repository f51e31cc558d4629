//! Bounds the memory of responses that clients have not read.
//!
//! A response is rendered as a whole and may take megabytes. A client that does not read it makes the
//! gateway keep it. So all responses share a budget; when it is exhausted, the slowest readers are
//! disconnected.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::http::StatusCode;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http_server::connections::Connections;
use crate::http_server::refusals::{RefusalReason, Refusals};
use crate::http_server::response::retry_later_response;

/// The budget, in KiB.
const MOST: u32 = 64 * 1024;
/// Responses up to this size are not counted, in bytes.
const SMALL: u64 = 16 * 1024;
/// A client that leaves a response unread for this long is slow.
const SLOW: Duration = Duration::from_secs(1);
/// How often a slow reader is disconnected and the budget is tried again.
const TRIES: usize = 10;
const EACH_TRY: Duration = Duration::from_millis(100);

/// The budget. Clones share it.
#[derive(Clone)]
pub(crate) struct ResponseBudget {
    free: Arc<Semaphore>,
    connections: Connections,
    refusals: Refusals,
}

/// Bytes that hold a part of the budget until the last of them is sent.
struct BudgetedBytes {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for BudgetedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ResponseBudget {
    pub(crate) fn new(connections: Connections, refusals: Refusals) -> Self {
        Self { free: Arc::new(Semaphore::new(MOST as usize)), connections, refusals }
    }

    /// The response, whose bytes are counted until they are sent; or an error if the budget is
    /// exhausted.
    pub(crate) async fn count(&self, response: Response) -> Response {
        // A body without a size is a stream, which produces what its client takes.
        let Some(size) = response.body().size_hint().exact() else { return response };
        if size <= SMALL {
            return response;
        }
        let kib = u32::try_from(size / 1024 + 1).unwrap_or(MOST).min(MOST);
        let Some(permit) = self.permit(kib).await else {
            let error = "too many unread responses; retry later";
            self.refusals
                .count(RefusalReason::ResponseBudget, None, || format!("a request was refused: {error}"));
            return retry_later_response(StatusCode::SERVICE_UNAVAILABLE, error, EACH_TRY);
        };
        let (head, body) = response.into_parts();
        // Bodies are in memory here, and reading them does not fail.
        let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
        Response::from_parts(head, Body::from(Bytes::from_owner(BudgetedBytes { bytes, _permit: permit })))
    }

    async fn permit(&self, kib: u32) -> Option<OwnedSemaphorePermit> {
        let acquire = || Arc::clone(&self.free).acquire_many_owned(kib);
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_many_owned(kib) {
            return Some(permit);
        }
        for _ in 0..TRIES {
            self.connections.close_slowest_reader(SLOW);
            if let Ok(permit) = tokio::time::timeout(EACH_TRY, acquire()).await {
                return permit.ok();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::http_server::activity::{Activity, TIMEOUTS};
    use crate::http_server::peer::Peer;

    #[tokio::test]
    async fn unread_bytes_are_bounded_and_released_with_the_last() {
        let refusals = Refusals::register(&mut Registry::default(), "halley_admin_refused", "admin");
        let connections = Connections::new(8, refusals.clone());
        let response_budget = ResponseBudget { free: Arc::new(Semaphore::new(100)), connections, refusals };
        let small = response_budget.count("x".repeat(100).into_response()).await;
        assert_eq!(response_budget.free.available_permits(), 100, "small answers are not counted");
        let large = || async { response_budget.count("x".repeat(80_000).into_response()).await };
        let first = large().await;
        assert_eq!(large().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        let bytes = to_bytes(first.into_body(), usize::MAX).await.unwrap();
        assert!(response_budget.free.available_permits() < 100, "the connection still holds them");
        drop((bytes, small));
        assert_eq!(large().await.status(), StatusCode::OK);
        assert_eq!(response_budget.free.available_permits(), 100);
    }

    #[tokio::test]
    async fn a_slow_reader_is_evicted() {
        let refusals = Refusals::register(&mut Registry::default(), "halley_admin_refused", "admin");
        let connections = Connections::new(8, refusals.clone());
        let free = Arc::new(Semaphore::new(100));
        let response_budget = ResponseBudget { free, connections: connections.clone(), refusals };
        let activity = Arc::new(Activity::new(TIMEOUTS));
        let slot = connections.open(Peer::Unix(None), &activity).unwrap();
        let kept = response_budget.count("x".repeat(80_000).into_response()).await;
        activity.response_ready();
        activity.age(SLOW);
        let closing = async {
            slot.close.cancelled().await;
            drop(kept);
        };
        let (response, ()) = tokio::join!(response_budget.count("x".repeat(80_000).into_response()), closing);
        assert_eq!(response.status(), StatusCode::OK);
    }
}
