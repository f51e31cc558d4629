//! Access control: which requests are allowed.
//!
//! | | over the Unix socket, own user or root | over TCP |
//! |---|---|---|
//! | `/healthz` | yes | yes |
//! | `/readyz`, `/metrics` | yes | for an allowed host; `/metrics` needs a token if `protect_metrics`
//! is set |
//! | reads below `/v1/` | yes | for an allowed host, with a token; on loopback without one if none is
//! configured |
//! | writes | yes | for an allowed host, not from a browser, with the write token |
//!
//! No part of a request body is read before this is decided.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;

use crate::admin::answer::{discard, failed, failed_for_now};
use crate::admin::guesses::Guesses;
use crate::admin::host::Hosts;
use crate::admin::peer::Peer;
use crate::admin::refusals::{Reason, Refusals, shown};
use crate::admin::tokens::{Current, Tokens};
use crate::config::admin::{Config, host_of};

/// The permission that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// A request for an allowed host.
    Host,
    /// Permission to read.
    Read,
    /// Permission to write.
    Write,
}

/// Decides about requests. Clones share state.
#[derive(Clone)]
pub(super) struct Access(Arc<Inner>);

struct Inner {
    /// Whether the TCP listener is reachable from this machine only.
    loopback: bool,
    hosts: Hosts,
    tokens: Tokens,
    guesses: Mutex<Guesses>,
    refusals: Refusals,
    protect_metrics: bool,
}

/// Why a request is denied.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied {
    reason: Reason,
    status: StatusCode,
    pub(super) why: String,
    retry_after: Option<Duration>,
}

/// The permission that a route needs, and the access control that checks it.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) access: Access,
    pub(super) needs: Needs,
}

/// Middleware in front of a route.
pub(super) async fn gate(
    State(Gate { access, needs }): State<Gate>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match access.check(peer, needs, request.uri(), request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(denied) => {
            let what =
                || format!("{} {} denied: {}", request.method(), shown(request.uri().path()), denied.why);
            access.0.refusals.count(denied.reason, Some(peer), what);
            discard(request.into_body()).await;
            denied.into_response()
        }
    }
}

impl Access {
    pub(super) fn new(config: &Config, listens_on: SocketAddr, refusals: Refusals) -> Self {
        let listeners = [Some(config.listen.as_str()), config.probes.as_deref()];
        let own = listeners.into_iter().flatten().filter_map(host_of);
        Self(Arc::new(Inner {
            loopback: listens_on.ip().is_loopback(),
            hosts: Hosts::new(config.hosts.iter().map(String::as_str).chain(own)),
            tokens: Tokens { write: config.token_file.clone(), read: config.read_token_file.clone() },
            guesses: Mutex::new(Guesses::new(Instant::now())),
            refusals,
            protect_metrics: config.protect_metrics,
        }))
    }

    /// The permission that `/metrics` needs.
    pub(super) fn metrics_need(&self) -> Needs {
        if self.0.protect_metrics { Needs::Read } else { Needs::Host }
    }

    async fn check(&self, peer: Peer, needs: Needs, uri: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
        if self.is_admitted_already(peer, needs, uri, headers)? {
            return Ok(());
        }
        let tokens = self.0.tokens.current().await;
        let tokens = tokens.map_err(|why| denied(Reason::Forbidden, StatusCode::FORBIDDEN, why))?;
        self.check_token(peer, needs, headers, &tokens)
    }

    /// Whether a request is allowed without a token. Fails if no token would help.
    pub(super) fn is_admitted_already(
        &self,
        peer: Peer,
        needs: Needs,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<bool, Denied> {
        if needs == Needs::Write && headers.contains_key(header::ORIGIN) {
            let why = "writes from browsers are refused; use `halley plugin`";
            return Err(denied(Reason::Origin, StatusCode::FORBIDDEN, why));
        }
        if peer.is_operator() {
            return Ok(true);
        }
        if let Peer::Tcp(_) = peer {
            self.0
                .hosts
                .check(uri, headers)
                .map_err(|wrong| denied(Reason::Host, StatusCode::MISDIRECTED_REQUEST, wrong.to_string()))?;
        }
        Ok(needs == Needs::Host)
    }

    /// Whether the token of a request grants the permission.
    pub(super) fn check_token(
        &self,
        peer: Peer,
        needs: Needs,
        headers: &HeaderMap,
        tokens: &Current,
    ) -> Result<(), Denied> {
        if !self.needs_token(peer, needs, tokens)? {
            return Ok(());
        }
        let given = bearer(headers).ok_or_else(|| {
            let what = if needs == Needs::Write { "writes" } else { "reads" };
            unauthorized(Reason::NoToken, &format!("{what} require a token"))
        })?;
        self.try_token(peer, needs, tokens, given)
    }

    /// Whether a token is required. Fails if no token would help.
    fn needs_token(&self, peer: Peer, needs: Needs, tokens: &Current) -> Result<bool, Denied> {
        let forbidden = |why: &str| Err(denied(Reason::Forbidden, StatusCode::FORBIDDEN, why));
        match needs {
            Needs::Write if tokens.write.is_none() => forbidden(
                "writes require a token, or the Unix socket and the gateway's own user; \
                 set `[admin] token_file` or HALLEY_ADMIN_TOKEN for the gateway, or use `--gateway unix:PATH`",
            ),
            Needs::Read if tokens.write.is_none() && tokens.read.is_none() => {
                if self.0.loopback && matches!(peer, Peer::Tcp(_)) {
                    return Ok(false);
                }
                forbidden(
                    "reads below /v1/ and protected metrics require a token if the listener is not on loopback; \
                     set `[admin] read_token_file` or `token_file` for the gateway, or use its Unix socket",
                )
            }
            Needs::Host | Needs::Read | Needs::Write => Ok(true),
        }
    }

    fn try_token(&self, peer: Peer, needs: Needs, tokens: &Current, given: &[u8]) -> Result<(), Denied> {
        let guesses = || self.0.guesses.lock();
        guesses().take(peer.key(), Instant::now()).map_err(|wait| Denied {
            retry_after: Some(wait),
            ..denied(
                Reason::Guessing,
                StatusCode::TOO_MANY_REQUESTS,
                "too many failed token attempts; retry later, or use the Unix socket",
            )
        })?;
        let (is_write, is_read) = (
            tokens.write.as_ref().is_some_and(|token| token.is(given)),
            tokens.read.as_ref().is_some_and(|token| token.is(given)),
        );
        if !is_write && !is_read {
            return Err(unauthorized(Reason::WrongToken, "token does not match"));
        }
        guesses().right(peer.key());
        if needs == Needs::Write && !is_write {
            let why = "this token is read-only; writes require the token in `[admin] token_file`";
            return Err(denied(Reason::Forbidden, StatusCode::FORBIDDEN, why));
        }
        Ok(())
    }
}

impl Denied {
    pub(super) fn into_response(self) -> Response {
        let mut response = match self.retry_after {
            Some(wait) => failed_for_now(self.status, &self.why, wait),
            None => failed(self.status, &self.why),
        };
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The token of a request, if it carries exactly one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let only = given.next().filter(|_| given.next().is_none())?;
    only.as_bytes().strip_prefix(b"Bearer ").map(<[u8]>::trim_ascii)
}

fn unauthorized(reason: Reason, why: &str) -> Denied {
    let remedy = "pass `--token-file` or set HALLEY_ADMIN_TOKEN (`Authorization: Bearer ...`)";
    denied(reason, StatusCode::UNAUTHORIZED, format!("{why}; {remedy}"))
}

fn denied(reason: Reason, status: StatusCode, why: impl Into<String>) -> Denied {
    Denied { reason, status, why: why.into(), retry_after: None }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::admin::peer::own_user;
    use crate::admin::tests::write_secret;

    const WRITE: &str = "Bearer 0123456789abcdef";
    const READ: &str = "Bearer fedcba9876543210";

    struct Gateway {
        access: Access,
        _folder: tempfile::TempDir,
    }

    /// A gateway that listens here, with these tokens.
    fn gateway(listen: &str, write: Option<&str>, read: Option<&str>) -> Gateway {
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
        let refusals = Refusals::register(&mut Registry::default());
        Gateway { access: Access::new(&config, listen.parse().unwrap(), refusals), _folder: folder }
    }

    impl Gateway {
        async fn status(&self, peer: Peer, needs: Needs, headers: &[(&'static str, &str)]) -> u16 {
            let mut map = HeaderMap::new();
            if !headers.iter().any(|(name, _)| *name == "host") {
                map.insert("host", "127.0.0.1:9093".parse().unwrap());
            }
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let checked = self.access.check(peer, needs, &"/".parse().unwrap(), &map).await;
            checked.map_or_else(|denied| denied.status.as_u16(), |()| 200)
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
            [(Needs::Host, 200, 200), (Needs::Read, 200, 403), (Needs::Write, 403, 403)]
        {
            assert_eq!(local.status(tcp(), needs, &[]).await, on_loopback, "{needs:?}");
            assert_eq!(open.status(tcp(), needs, &[]).await, elsewhere, "{needs:?}");
            for operator in [Peer::Unix(Some(0)), Peer::Unix(Some(own_user()))] {
                assert_eq!(open.status(operator, needs, &[("host", "any")]).await, 200, "{needs:?}");
            }
        }
        for stranger in [Peer::Unix(Some(own_user() + 1)), Peer::Unix(None)] {
            assert_eq!(local.status(stranger, Needs::Read, &[]).await, 403);
            assert_eq!(local.status(stranger, Needs::Write, &[]).await, 403);
        }
    }

    #[tokio::test]
    async fn each_token_is_good_for_what_it_is_for() {
        for listen in ["127.0.0.1:9093", "0.0.0.0:9093"] {
            let both = gateway(listen, Some(WRITE), Some(READ));
            for (needs, token, expected) in [
                (Needs::Read, READ, 200),
                (Needs::Read, WRITE, 200),
                (Needs::Write, WRITE, 200),
                (Needs::Write, READ, 403),
                (Needs::Write, "Bearer x", 401),
                (Needs::Read, "Basic eDp5", 401),
            ] {
                assert_eq!(
                    both.status(tcp(), needs, &[("authorization", token)]).await,
                    expected,
                    "{needs:?} {token}"
                );
            }
            assert_eq!(both.status(tcp(), Needs::Read, &[]).await, 401);
            let two = [("authorization", WRITE), ("authorization", "Bearer x")];
            assert_eq!(both.status(tcp(), Needs::Write, &two).await, 401, "which of them?");
            let reads = gateway(listen, None, Some(READ));
            assert_eq!(reads.status(tcp(), Needs::Write, &[("authorization", READ)]).await, 403);
            assert_eq!(reads.status(tcp(), Needs::Host, &[]).await, 200);
        }
    }

    #[tokio::test]
    async fn a_browser_and_a_foreign_host_may_not_even_with_the_token() {
        let gateway = gateway("127.0.0.1:9093", Some(WRITE), None);
        let from = |name, value| [("authorization", WRITE), (name, value)];
        assert_eq!(gateway.status(tcp(), Needs::Write, &from("origin", "http://localhost")).await, 403);
        assert_eq!(gateway.status(Peer::Unix(Some(0)), Needs::Write, &[("origin", "null")]).await, 403);
        for needs in [Needs::Host, Needs::Read, Needs::Write] {
            assert_eq!(gateway.status(tcp(), needs, &from("host", "evil.example")).await, 421, "{needs:?}");
        }
        let forwarded = [("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1;host=localhost")];
        assert_eq!(gateway.status(tcp(), Needs::Write, &forwarded).await, 401);
    }

    #[tokio::test]
    async fn guesses_run_out_and_the_others_token_stays_good() {
        let gateway = gateway("0.0.0.0:9093", Some(WRITE), None);
        let mut seen = Vec::new();
        for _ in 0..12 {
            seen.push(
                gateway.status(tcp(), Needs::Write, &[("authorization", "Bearer nonsense-of-16")]).await,
            );
        }
        assert_eq!(seen, [[401; 10].as_slice(), &[429; 2]].concat());
        let other = Peer::Tcp("10.0.0.9:40000".parse().unwrap());
        for _ in 0..50 {
            assert_eq!(gateway.status(other, Needs::Write, &[("authorization", WRITE)]).await, 200);
        }
    }
}
