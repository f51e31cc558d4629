//! Access control: which requests are allowed.
//!
//! | | over the Unix socket, own user or root | over TCP |
//! |---|---|---|
//! | `/healthz` | yes | yes |
//! | `/readyz`, `/metrics` | yes | for an allowed host; `/metrics` needs a token if `protect_metrics`
//! is set |
//! | reads below `/v1/` | yes | for an allowed host, with a token; on loopback without one if none is
//! configured |
//! | writes | yes | for an allowed host, not from a browser, with a token that has the role |
//!
//! No part of a request body is read before this is decided.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::info;

use crate::admin::tokens::{Grant, Role, TokenError, TokenFiles};
use crate::config::admin::Config;
use crate::config::listen::host_of;
use crate::http_server::denied::{AccessDenied, TokenAttempts};
use crate::http_server::host::AllowedHosts;
use crate::http_server::peer::{ClientName, Peer};
use crate::http_server::refusals::{RefusalReason, Refusals, shown};
use crate::http_server::response::discard;
use crate::http_server::token::{Tokens, bearer};
use crate::telemetry::LogThrottle;

/// The permission that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// A request for an allowed host.
    Host,
    /// Permission to read.
    Read,
    /// Permission to change which versions of policies are active.
    Operate,
    /// Permission to push versions of policies.
    Push,
}

impl Permission {
    /// The role that grants it.
    fn role(self) -> Role {
        match self {
            Self::Host | Self::Read => Role::Read,
            Self::Operate => Role::Operate,
            Self::Push => Role::PushPolicies,
        }
    }

    fn is_write(self) -> bool {
        matches!(self, Self::Operate | Self::Push)
    }
}

/// Who makes a request: the name of the token, if one was needed.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) Option<Arc<str>>);

/// How many denied writes are logged in ten seconds.
const MOST_DENIALS: u32 = 20;

/// Decides about requests. Clones share state.
#[derive(Clone)]
pub(super) struct AccessControl(Arc<AccessInner>);

struct AccessInner {
    /// Whether the TCP listener is reachable from this machine only.
    loopback: bool,
    hosts: AllowedHosts,
    tokens: TokenFiles,
    attempts: TokenAttempts,
    refusals: Refusals,
    /// Of writes that are denied to valid tokens, which nothing else limits.
    denials: LogThrottle,
    protect_metrics: bool,
}

/// The permission that a route needs, and the access control that checks it.
#[derive(Clone)]
pub(super) struct RouteGuard {
    pub(super) access: AccessControl,
    pub(super) needs: Permission,
}

/// Middleware in front of a route.
pub(super) async fn authorize(
    State(RouteGuard { access, needs }): State<RouteGuard>,
    Extension(peer): Extension<Peer>,
    Extension(certificate): Extension<ClientName>,
    mut request: Request,
    next: Next,
) -> Response {
    match access.check(peer, needs, request.uri(), request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => {
            let what =
                || format!("{} {} denied: {}", request.method(), shown(request.uri().path()), denied.why);
            access.0.refusals.count(denied.reason, Some(peer), what);
            if let Some(token) = &denied.token
                && let Some(held_back) = access.0.denials.admit()
            {
                let (method, path) = (request.method(), shown(request.uri().path()));
                let (certificate, why) = (certificate.as_deref(), &denied.why);
                info!(from = %peer, certificate, %token, %method, %path, status = 403, outcome = why, held_back, "audit: denied");
            }
            discard(request.into_body()).await;
            denied.into_response()
        }
    }
}

impl AccessControl {
    pub(super) fn new(config: &Config, listens_on: SocketAddr, refusals: Refusals) -> Self {
        let listeners = [Some(config.listen.as_str()), config.probe_listen.as_deref()];
        let own = listeners.into_iter().flatten().filter_map(host_of);
        Self(Arc::new(AccessInner {
            loopback: listens_on.ip().is_loopback(),
            hosts: AllowedHosts::new(
                "[admin] allowed_hosts",
                config.allowed_hosts.iter().map(String::as_str).chain(own),
            ),
            tokens: TokenFiles { write: config.token_file.clone(), read: config.read_token_file.clone() },
            attempts: TokenAttempts::new(),
            refusals,
            denials: LogThrottle::new(MOST_DENIALS, Duration::from_secs(10)),
            protect_metrics: config.protect_metrics,
        }))
    }

    /// The permission that `/metrics` needs.
    pub(super) fn metrics_permission(&self) -> Permission {
        if self.0.protect_metrics { Permission::Read } else { Permission::Host }
    }

    async fn check(
        &self,
        peer: Peer,
        needs: Permission,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Caller, AccessDenied> {
        if self.is_admitted_without_token(peer, needs, uri, headers)? {
            return Ok(Caller(None));
        }
        let tokens = self.0.tokens.current().await;
        let denied = |why: TokenError| AccessDenied::forbidden(RefusalReason::Forbidden, why.to_string());
        let tokens = tokens.map_err(denied)?;
        self.check_token(peer, needs, headers, &tokens)
    }

    /// Whether a request is allowed without a token. Fails if no token would help.
    pub(super) fn is_admitted_without_token(
        &self,
        peer: Peer,
        needs: Permission,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<bool, AccessDenied> {
        if needs.is_write() && headers.contains_key(header::ORIGIN) {
            let why = "writes from browsers are refused; use `halley plugin`";
            return Err(AccessDenied::forbidden(RefusalReason::Origin, why));
        }
        if peer.is_operator() {
            return Ok(true);
        }
        if let Peer::Tcp(_) = peer {
            self.0.hosts.check(uri, headers)?;
        }
        Ok(needs == Permission::Host)
    }

    /// Whether the token of a request grants the permission.
    pub(super) fn check_token(
        &self,
        peer: Peer,
        needs: Permission,
        headers: &HeaderMap,
        tokens: &Tokens<Grant>,
    ) -> Result<Caller, AccessDenied> {
        if !self.needs_token(peer, needs, tokens)? {
            return Ok(Caller(None));
        }
        let given = bearer(headers).ok_or_else(|| {
            let what = if needs.is_write() { "writes" } else { "reads" };
            unauthorized(RefusalReason::NoToken, &format!("{what} require a token"))
        })?;
        self.try_token(peer, needs, tokens, given).map(|grant| Caller(Some(grant.name)))
    }

    /// Whether a token is required. Fails if no token would help.
    fn needs_token(
        &self,
        peer: Peer,
        needs: Permission,
        tokens: &Tokens<Grant>,
    ) -> Result<bool, AccessDenied> {
        let forbidden = |why: &str| Err(AccessDenied::forbidden(RefusalReason::Forbidden, why));
        match needs {
            _ if needs.is_write() && !tokens.has(needs.role()) => forbidden(
                "writes require a token with the role, or the Unix socket and the gateway's own user; \
                 set `[admin] token_file` or HALLEY_ADMIN_TOKEN for the gateway, or use `--gateway unix:PATH`",
            ),
            Permission::Read if tokens.0.is_empty() => {
                if self.0.loopback && matches!(peer, Peer::Tcp(_)) {
                    return Ok(false);
                }
                forbidden(
                    "reads below /v1/ and protected metrics require a token if the listener is not on loopback; \
                     set `[admin] read_token_file` or `token_file` for the gateway, or use its Unix socket",
                )
            }
            _ => Ok(true),
        }
    }

    fn try_token(
        &self,
        peer: Peer,
        needs: Permission,
        tokens: &Tokens<Grant>,
        given: &[u8],
    ) -> Result<Grant, AccessDenied> {
        let grant = self.0.attempts.attempt(peer, "retry later, or use the Unix socket", || {
            let wrong = || unauthorized(RefusalReason::WrongToken, "token does not match");
            tokens.grant(given).ok_or_else(wrong)
        })?;
        if needs.is_write() && !grant.roles.contains(&needs.role()) {
            let why = match needs {
                Permission::Push => {
                    "the token lacks the role `push-policies`; use one with it in `[admin] token_file`"
                }
                _ => "the token lacks the role `operate`; use one with it in `[admin] token_file`",
            };
            return Err(AccessDenied::forbidden(RefusalReason::Forbidden, why).with_token(grant.name));
        }
        Ok(grant)
    }
}

fn unauthorized(reason: RefusalReason, why: &str) -> AccessDenied {
    let remedy = "pass `--token-file` or set HALLEY_ADMIN_TOKEN (`Authorization: Bearer ...`)";
    AccessDenied::new(reason, StatusCode::UNAUTHORIZED, format!("{why}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::admin::tests::write_secret;
    use crate::http_server::peer::current_uid;

    const WRITE: &str = "Bearer 0123456789abcdef";
    const READ: &str = "Bearer fedcba9876543210";

    struct TestGateway {
        access: AccessControl,
        _folder: tempfile::TempDir,
    }

    /// A gateway that listens here, with these tokens.
    fn gateway(listen: &str, write: Option<&str>, read: Option<&str>) -> TestGateway {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, token: Option<&str>| {
            let (path, token) = (folder.path().join(name), token?);
            write_secret(&path, token.strip_prefix("Bearer ").unwrap());
            Some(path)
        };
        let config = Config {
            listen: listen.into(),
            token_file: file("write", write),
            read_token_file: file("read", read),
            ..Config::default()
        };
        let refusals = Refusals::register(&mut Registry::default(), "halley_admin_refused", "admin");
        TestGateway {
            access: AccessControl::new(&config, listen.parse().unwrap(), refusals),
            _folder: folder,
        }
    }

    impl TestGateway {
        async fn status(&self, peer: Peer, needs: Permission, headers: &[(&'static str, &str)]) -> u16 {
            let mut map = HeaderMap::new();
            if !headers.iter().any(|(name, _)| *name == "host") {
                map.insert("host", "127.0.0.1:9093".parse().unwrap());
            }
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let checked = self.access.check(peer, needs, &"/".parse().unwrap(), &map).await;
            checked.map_or_else(|denied| denied.status.as_u16(), |_| 200)
        }
    }

    fn tcp() -> Peer {
        Peer::Tcp("127.0.0.1:40000".parse().unwrap())
    }

    #[tokio::test]
    async fn without_tokens_loopback_reads_and_only_the_socket_writes() {
        let local = gateway("127.0.0.1:9093", None, None);
        let open = gateway("0.0.0.0:9093", None, None);
        for (needs, on_loopback, elsewhere) in
            [(Permission::Host, 200, 200), (Permission::Read, 200, 403), (Permission::Push, 403, 403)]
        {
            assert_eq!(local.status(tcp(), needs, &[]).await, on_loopback, "{needs:?}");
            assert_eq!(open.status(tcp(), needs, &[]).await, elsewhere, "{needs:?}");
            for operator in [Peer::Unix(Some(0)), Peer::Unix(Some(current_uid()))] {
                assert_eq!(open.status(operator, needs, &[("host", "any")]).await, 200, "{needs:?}");
            }
        }
        for stranger in [Peer::Unix(Some(current_uid() + 1)), Peer::Unix(None)] {
            assert_eq!(local.status(stranger, Permission::Read, &[]).await, 403);
            assert_eq!(local.status(stranger, Permission::Push, &[]).await, 403);
        }
    }

    #[tokio::test]
    async fn each_token_grants_its_permissions() {
        for listen in ["127.0.0.1:9093", "0.0.0.0:9093"] {
            let both = gateway(listen, Some(WRITE), Some(READ));
            for (needs, token, expected) in [
                (Permission::Read, READ, 200),
                (Permission::Read, WRITE, 200),
                (Permission::Push, WRITE, 200),
                (Permission::Push, READ, 403),
                (Permission::Push, "Bearer x", 401),
                (Permission::Read, "Basic eDp5", 401),
            ] {
                assert_eq!(
                    both.status(tcp(), needs, &[("authorization", token)]).await,
                    expected,
                    "{needs:?} {token}"
                );
            }
            assert_eq!(both.status(tcp(), Permission::Read, &[]).await, 401);
            let two = [("authorization", WRITE), ("authorization", "Bearer x")];
            assert_eq!(both.status(tcp(), Permission::Push, &two).await, 401, "which of them?");
            let reads = gateway(listen, None, Some(READ));
            assert_eq!(reads.status(tcp(), Permission::Push, &[("authorization", READ)]).await, 403);
            assert_eq!(reads.status(tcp(), Permission::Host, &[]).await, 200);
        }
    }

    #[tokio::test]
    async fn a_role_grants_reading_and_nothing_else() {
        let table =
            |roles: &str| format!("[[token]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\nroles = [{roles}]");
        for (roles, operate, push) in [
            ("\"read\"", 403, 403),
            ("\"operate\"", 200, 403),
            ("\"push-policies\"", 403, 200),
            ("", 403, 403),
        ] {
            let gateway = gateway("0.0.0.0:9093", Some(&format!("Bearer {}", table(roles))), None);
            let with = [("authorization", WRITE)];
            let of = async |needs| gateway.status(tcp(), needs, &with).await;
            assert_eq!(of(Permission::Read).await, 200, "{roles}");
            assert_eq!(
                (of(Permission::Operate).await, of(Permission::Push).await),
                (operate, push),
                "{roles}"
            );
        }
    }

    #[tokio::test]
    async fn browsers_and_foreign_hosts_are_denied_even_with_a_token() {
        let gateway = gateway("127.0.0.1:9093", Some(WRITE), None);
        let from = |name, value| [("authorization", WRITE), (name, value)];
        assert_eq!(gateway.status(tcp(), Permission::Push, &from("origin", "http://localhost")).await, 403);
        assert_eq!(gateway.status(Peer::Unix(Some(0)), Permission::Push, &[("origin", "null")]).await, 403);
        for needs in [Permission::Host, Permission::Read, Permission::Push] {
            assert_eq!(gateway.status(tcp(), needs, &from("host", "evil.example")).await, 421, "{needs:?}");
        }
        let forwarded = [("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1;host=localhost")];
        assert_eq!(gateway.status(tcp(), Permission::Push, &forwarded).await, 401);
    }

    #[tokio::test]
    async fn failed_tokens_are_rate_limited_per_client() {
        let gateway = gateway("0.0.0.0:9093", Some(WRITE), None);
        let mut seen = Vec::new();
        for _ in 0..12 {
            seen.push(
                gateway.status(tcp(), Permission::Push, &[("authorization", "Bearer nonsense-of-16")]).await,
            );
        }
        assert_eq!(seen, [[401; 10].as_slice(), &[429; 2]].concat());
        let other = Peer::Tcp("10.0.0.9:40000".parse().unwrap());
        for _ in 0..50 {
            assert_eq!(gateway.status(other, Permission::Push, &[("authorization", WRITE)]).await, 200);
        }
    }
}
