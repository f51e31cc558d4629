//! Why a request is denied, as a response and for the log; and attempts with tokens, which are limited for
//! each client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use parking_lot::Mutex;

use crate::http_server::auth_rate_limit::AuthRateLimiter;
use crate::http_server::host::WrongHost;
use crate::http_server::peer::Peer;
use crate::http_server::refusals::RefusalReason;
use crate::http_server::response::{error_response, retry_later_response};

/// Why a request is denied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AccessDenied {
    pub(crate) reason: RefusalReason,
    pub(crate) status: StatusCode,
    pub(crate) why: String,
    /// The name of the client's token, if it has a valid one.
    pub(crate) token: Option<Arc<str>>,
    retry_after: Option<Duration>,
}

impl AccessDenied {
    pub(crate) fn new(reason: RefusalReason, status: StatusCode, why: impl Into<String>) -> Self {
        Self { reason, status, why: why.into(), token: None, retry_after: None }
    }

    /// What no client may do.
    pub(crate) fn forbidden(reason: RefusalReason, why: impl Into<String>) -> Self {
        Self::new(reason, StatusCode::FORBIDDEN, why)
    }

    /// To a client with the valid token of this name.
    pub(crate) fn with_token(self, name: Arc<str>) -> Self {
        Self { token: Some(name), ..self }
    }

    pub(crate) fn into_response(self) -> Response {
        let mut response = match self.retry_after {
            Some(wait) => retry_later_response(self.status, &self.why, wait),
            None => error_response(self.status, &self.why),
        };
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<WrongHost> for AccessDenied {
    fn from(wrong: WrongHost) -> Self {
        Self::new(RefusalReason::Host, StatusCode::MISDIRECTED_REQUEST, wrong.to_string())
    }
}

/// Attempts of clients to guess tokens.
pub(crate) struct TokenAttempts(Mutex<AuthRateLimiter>);

impl TokenAttempts {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(AuthRateLimiter::new(Instant::now())))
    }

    /// What a client's token grants. Failed attempts count against the client; `remedy` is for one that has
    /// made too many.
    ///
    /// # Errors
    /// If it has, or as `grant` says.
    pub(crate) fn attempt<G>(
        &self,
        peer: Peer,
        remedy: &str,
        grant: impl FnOnce() -> Result<G, AccessDenied>,
    ) -> Result<G, AccessDenied> {
        self.0.lock().take(peer.key(), Instant::now()).map_err(|wait| AccessDenied {
            reason: RefusalReason::RateLimited,
            status: StatusCode::TOO_MANY_REQUESTS,
            why: format!("too many failed token attempts; {remedy}"),
            token: None,
            retry_after: Some(wait),
        })?;
        let grant = grant()?;
        self.0.lock().refund(peer.key());
        Ok(grant)
    }
}
