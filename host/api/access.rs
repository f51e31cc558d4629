//! Access control: which requests reach the API, and what their token grants.
//!
//! Each request needs a token, except on loopback where none is configured. Requests for other hosts
//! (DNS rebinding) and from browsers are refused in any case. What a token grants is checked by the
//! operations, which know the user: [`Caller`].

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use tonic::Status;

use crate::api::error::ApiError;
use crate::api::tokens::{Grant, TokenFile};
use crate::config::api::Config;
use crate::config::listen::host_of;
use crate::http_server::denied::{AccessDenied, TokenAttempts};
use crate::http_server::host::AllowedHosts;
use crate::http_server::peer::{ClientName, Peer};
use crate::http_server::refusals::{RefusalReason, Refusals, shown};
use crate::http_server::response::discard;
use crate::http_server::token::bearer;
use crate::inbox::Owner;
use crate::message::{RoomId, UserId};

/// Who sent a request, and what its token grants. An extension of every request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) grant: Grant,
    pub(super) peer: Peer,
    /// Its certificate, if it had to show one.
    pub(super) certificate: ClientName,
    refusals: Refusals,
}

impl Caller {
    /// Checks that the caller may read this user's inbox.
    pub(super) fn may_read(&self, user: &UserId) -> Result<(), ApiError> {
        if self.grant.covers(user.as_str()) {
            return Ok(());
        }
        Err(self.denied("is limited to other users; see `[api] token_file`"))
    }

    /// Checks that the caller may read the history of this room.
    pub(super) fn may_read_room(&self, room: &RoomId) -> Result<(), ApiError> {
        if self.grant.covers_room(room.as_str()) {
            return Ok(());
        }
        Err(self.denied("may not read this room; see `rooms` in `[api] token_file`"))
    }

    /// Checks that the caller may read what is kept for this owner.
    pub(super) fn may_read_owner(&self, owner: Owner<'_>) -> Result<(), ApiError> {
        match owner {
            Owner::User(user) => self.may_read(user),
            Owner::Room(room) => self.may_read_room(room),
        }
    }

    /// Checks that the caller may change this user's inbox.
    pub(super) fn may_write(&self, user: &UserId) -> Result<(), ApiError> {
        self.may_read(user)?;
        if !self.grant.read_only {
            return Ok(());
        }
        Err(self.denied("is read-only; see `[api] token_file`"))
    }

    /// Counts and logs that the token does not cover what it was used for.
    fn denied(&self, why: &str) -> ApiError {
        let why = format!("token `{}` {why}", self.grant.name);
        self.refusals
            .count(RefusalReason::Forbidden, Some(self.peer), || format!("a request was denied: {why}"));
        ApiError::Forbidden(why)
    }
}

/// Decides about requests. Clones share state.
#[derive(Clone)]
pub(super) struct AccessControl(Arc<AccessInner>);

struct AccessInner {
    loopback: bool,
    hosts: AllowedHosts,
    tokens: TokenFile,
    attempts: TokenAttempts,
    refusals: Refusals,
}

impl AccessControl {
    pub(super) fn new(
        config: &Config,
        listens_on: SocketAddr,
        tokens: TokenFile,
        refusals: Refusals,
    ) -> Self {
        let own = config.listen.as_deref().and_then(host_of);
        let names = config.allowed_hosts.iter().map(String::as_str).chain(own);
        Self(Arc::new(AccessInner {
            loopback: listens_on.ip().is_loopback(),
            hosts: AllowedHosts::new("[api] allowed_hosts", names),
            tokens,
            attempts: TokenAttempts::new(),
            refusals,
        }))
    }

    /// The routes behind access control.
    pub(super) fn protect(&self, routes: Router) -> Router {
        routes.layer(middleware::from_fn_with_state(self.clone(), authorize))
    }

    async fn check(&self, peer: Peer, uri: &Uri, headers: &HeaderMap) -> Result<Grant, AccessDenied> {
        if headers.contains_key(header::ORIGIN) {
            let why = "requests from browsers are refused; let your backend ask";
            return Err(AccessDenied::forbidden(RefusalReason::Origin, why));
        }
        self.0.hosts.check(uri, headers)?;
        let Some(tokens) = self.0.tokens.current().await else {
            // The configuration requires tokens elsewhere.
            return if self.0.loopback {
                Ok(Grant::everything())
            } else {
                let why = "no token is configured; set `[api] token_file`";
                Err(AccessDenied::forbidden(RefusalReason::Forbidden, why))
            };
        };
        let unauthorized = |reason, why: &str| AccessDenied::new(reason, StatusCode::UNAUTHORIZED, why);
        let given = bearer(headers).ok_or_else(|| {
            unauthorized(RefusalReason::NoToken, "a token is required: `authorization: Bearer ...`")
        })?;
        self.0.attempts.attempt(peer, "retry later", || {
            let wrong =
                || unauthorized(RefusalReason::WrongToken, "token does not match any in `[api] token_file`");
            tokens.grant(given).ok_or_else(wrong)
        })
    }
}

async fn authorize(
    State(access): State<AccessControl>,
    Extension(peer): Extension<Peer>,
    Extension(certificate): Extension<ClientName>,
    mut request: Request,
    next: Next,
) -> Response {
    match access.check(peer, request.uri(), request.headers()).await {
        Ok(grant) => {
            let refusals = access.0.refusals.clone();
            request.extensions_mut().insert(Caller { grant, peer, certificate, refusals });
            next.run(request).await
        }
        Err(denied) => {
            let path = shown(request.uri().path()).into_owned();
            let what = || format!("{} {path} denied: {}", request.method(), denied.why);
            access.0.refusals.count(denied.reason, Some(peer), what);
            let is_grpc = is_grpc(&request);
            if !is_grpc {
                discard(request.into_body()).await;
            }
            response_of(denied, is_grpc)
        }
    }
}

fn is_grpc(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// As HTTP or, for gRPC, as a status.
fn response_of(denied: AccessDenied, is_grpc: bool) -> Response {
    if !is_grpc {
        return denied.into_response();
    }
    let status = match denied.status {
        StatusCode::UNAUTHORIZED => Status::unauthenticated(denied.why),
        StatusCode::TOO_MANY_REQUESTS => Status::resource_exhausted(denied.why),
        _ => Status::permission_denied(denied.why),
    };
    status.into_http()
}
