//! Why an operation fails, as both forms of the API tell it.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use tonic::Status;

use crate::gateway::EraseError;
use crate::http_server::response::{error_response, retry_later_response};

/// When a client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why an operation fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// A field of the request is not valid.
    #[error("`{field}`: {why}")]
    Invalid { field: &'static str, why: String },
    /// The token does not allow it.
    #[error("{0}")]
    Forbidden(String),
    /// The user has no connection to push to.
    #[error("{0}")]
    NotConnected(String),
    /// Too many requests of this kind at a time.
    #[error("{0}; retry later")]
    Busy(&'static str),
    /// Redis cannot be used now.
    #[error("{0}")]
    Unavailable(String),
    /// It is not offered.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl ApiError {
    /// This field of the request is not valid.
    pub(super) fn invalid(field: &'static str, why: impl ToString) -> Self {
        Self::Invalid { field, why: why.to_string() }
    }
}

impl From<EraseError> for ApiError {
    fn from(error: EraseError) -> Self {
        match error {
            EraseError::Inbox(_) | EraseError::Archive(_) => Self::Unavailable(error.to_string()),
            EraseError::NoArchive => Self::Unsupported(
                "this gateway has no `[archive] url`, so it cannot delete what is archived; nothing was deleted",
            ),
        }
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Self {
        let text = error.to_string();
        match error {
            ApiError::Invalid { .. } => error_response(StatusCode::BAD_REQUEST, &text),
            ApiError::Forbidden(_) => error_response(StatusCode::FORBIDDEN, &text),
            ApiError::NotConnected(_) => error_response(StatusCode::CONFLICT, &text),
            ApiError::Busy(_) => retry_later_response(StatusCode::TOO_MANY_REQUESTS, &text, RETRY_AFTER),
            ApiError::Unavailable(_) => {
                retry_later_response(StatusCode::SERVICE_UNAVAILABLE, &text, RETRY_AFTER)
            }
            ApiError::Unsupported(_) => error_response(StatusCode::NOT_IMPLEMENTED, &text),
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let text = error.to_string();
        match error {
            ApiError::Invalid { .. } => Self::invalid_argument(text),
            ApiError::Forbidden(_) => Self::permission_denied(text),
            ApiError::NotConnected(_) => Self::failed_precondition(text),
            ApiError::Busy(_) => Self::resource_exhausted(text),
            ApiError::Unavailable(_) => Self::unavailable(text),
            ApiError::Unsupported(_) => Self::unimplemented(text),
        }
    }
}
