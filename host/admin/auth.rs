//! Who may change policies: tokens, and requests that browsers were talked into.
//!
//! Tokens are read again for every write and compared by their hashes, which takes the same
//! time whatever is wrong. They stand in no log and no error.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest as _, Sha256};
use tracing::info;

use crate::admin::listener::Peer;
use crate::admin::{App, failed};

/// The environment variable with the token, where there is no file.
const VARIABLE: &str = "HALLEY_ADMIN_TOKEN";
/// Shorter tokens can be guessed.
const SHORTEST: usize = 16;

type Hash = [u8; 32];

/// Decides who may write.
#[derive(Debug)]
pub(super) struct Gate {
    on_loopback: bool,
    tokens: Tokens,
}

#[derive(Debug)]
enum Tokens {
    None,
    Fixed(Vec<Hash>),
    File(PathBuf),
}

/// Why a request is turned away.
#[derive(Debug, PartialEq, Eq)]
struct TurnedAway {
    status: StatusCode,
    why: String,
}

impl Gate {
    /// From the configured file, or else the environment.
    ///
    /// # Errors
    /// When a token is configured that cannot be read, or is too short.
    pub(super) fn new(file: Option<PathBuf>, address: SocketAddr) -> anyhow::Result<Self> {
        let tokens = match (file, std::env::var(VARIABLE)) {
            (Some(file), _) => {
                read(&file).map_err(anyhow::Error::msg)?;
                Tokens::File(file)
            }
            (None, Ok(token)) => Tokens::Fixed(hashes(&token, VARIABLE).map_err(anyhow::Error::msg)?),
            (None, Err(_)) => Tokens::None,
        };
        Ok(Self { on_loopback: address.ip().is_loopback(), tokens })
    }

    /// Who may write, in a few words for the log.
    pub(super) fn describe(&self) -> &'static str {
        match (&self.tokens, self.on_loopback) {
            (Tokens::None, true) => "from this machine",
            (Tokens::None, false) => "none: no token is configured",
            _ => "with a token",
        }
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(), TurnedAway> {
        let forbidden = |why: &str| TurnedAway { status: StatusCode::FORBIDDEN, why: why.to_owned() };
        if headers.contains_key(header::ORIGIN) {
            return Err(forbidden("web pages may not change policies; use `halley plugin` or curl"));
        }
        if self.on_loopback && !names_this_machine(headers) {
            return Err(forbidden(
                "the Host is not this machine; ask for 127.0.0.1, [::1] or localhost and the port",
            ));
        }
        let known = match &self.tokens {
            Tokens::None if self.on_loopback => return Ok(()),
            Tokens::None => {
                return Err(forbidden(
                    "changes over the network need a token; set `[admin] token_file` or HALLEY_ADMIN_TOKEN for the gateway, or listen on loopback",
                ));
            }
            Tokens::Fixed(known) => known.clone(),
            Tokens::File(file) => {
                read(file).map_err(|why| TurnedAway { status: StatusCode::FORBIDDEN, why })?
            }
        };
        if bearer(headers).is_some_and(|token| is_known(&known, token)) {
            return Ok(());
        }
        let why = "a token is needed: `--token-file FILE` or HALLEY_ADMIN_TOKEN (authorization: Bearer TOKEN), the one of the gateway's `[admin] token_file` or HALLEY_ADMIN_TOKEN";
        Err(TurnedAway { status: StatusCode::UNAUTHORIZED, why: why.to_owned() })
    }
}

/// What came of a write, for the log. Handlers leave it with their answer.
#[derive(Clone, Debug)]
pub(super) struct Outcome(pub(super) String);

/// Stands before every write: turns away who may not, and logs who did what.
pub(super) async fn guard(
    State(app): State<App>,
    ConnectInfo(Peer(from)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match app.gate.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(turned_away) => turned_away.answer(),
    };
    let outcome = response.extensions_mut().remove::<Outcome>().map(|Outcome(text)| text);
    let status = response.status().as_u16();
    info!(%from, %method, path, status, outcome, "admin write");
    response
}

impl TurnedAway {
    fn answer(self) -> Response {
        let mut response = failed(self.status, &self.why);
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Outcome(self.why));
        response
    }
}

/// The tokens of a file. Small and on a local disk: it is read where it is needed.
fn read(file: &Path) -> Result<Vec<Hash>, String> {
    let place = format!("`[admin] token_file` {}", file.display());
    let text = std::fs::read_to_string(file).map_err(|e| format!("{place} cannot be read: {e}"))?;
    hashes(&text, &place)
}

/// One token a line.
fn hashes(text: &str, place: &str) -> Result<Vec<Hash>, String> {
    let tokens: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if tokens.is_empty() || tokens.iter().any(|token| token.len() < SHORTEST) {
        return Err(format!(
            "{place} must have tokens of at least {SHORTEST} characters, one a line; make one with: openssl rand -hex 32"
        ));
    }
    Ok(tokens.into_iter().map(hash).collect())
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

fn is_known(known: &[Hash], token: &str) -> bool {
    let given = hash(token.trim());
    // Every byte of every token: how long it takes tells nothing.
    let mut found = false;
    for token in known {
        let different = token.iter().zip(&given).fold(0, |different, (a, b)| different | (a ^ b));
        found |= std::hint::black_box(different) == 0;
    }
    found
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// Whether the Host is a name of this machine that nobody else can give to another address.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let name = authority.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn gate(on_loopback: bool, token: Option<&str>) -> Gate {
        let tokens = token.map_or(Tokens::None, |token| Tokens::Fixed(hashes(token, "here").unwrap()));
        Gate { on_loopback, tokens }
    }

    fn admitted(gate: &Gate, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        gate.admit(&map).err().map_or(200, |turned_away| turned_away.status.as_u16())
    }

    #[test]
    fn loopback_is_open_to_programs_of_this_machine_only() {
        let open = gate(true, None);
        for host in ["127.0.0.1:9093", "localhost", "[::1]:9093", "LOCALHOST:1"] {
            assert_eq!(admitted(&open, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example:9093", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"] {
            assert_eq!(admitted(&open, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(admitted(&open, &[]), 403, "no host");
        assert_eq!(admitted(&open, &[("host", "localhost"), ("origin", "http://localhost")]), 403);
    }

    #[test]
    fn a_token_is_needed_where_there_is_one_and_everywhere_else_but_on_loopback() {
        assert_eq!(admitted(&gate(false, None), &[("host", "gateway:9093")]), 403);
        for on_loopback in [false, true] {
            let gate = gate(on_loopback, Some(TOKEN));
            let with = |value: &str| admitted(&gate, &[("host", "127.0.0.1"), ("authorization", value)]);
            assert_eq!(admitted(&gate, &[("host", "127.0.0.1")]), 401);
            assert_eq!(with(&format!("Bearer {TOKEN}")), 200);
            assert_eq!(with(&format!("bearer {TOKEN} ")), 200);
            assert_eq!(with(&format!("Basic {TOKEN}")), 401);
            assert_eq!(with(&format!("Bearer {TOKEN}x")), 401);
            assert_eq!(with("Bearer "), 401);
        }
    }

    #[test]
    fn tokens_of_a_file_are_read_again_and_a_broken_file_closes_the_gate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let address = "127.0.0.1:1".parse().unwrap();
        assert!(Gate::new(Some(file.clone()), address).is_err(), "no such file");
        std::fs::write(&file, format!("  {TOKEN}\n\n")).unwrap();
        let gate = Gate::new(Some(file.clone()), address).unwrap();
        let with = |token: &str| {
            admitted(&gate, &[("host", "127.0.0.1"), ("authorization", &format!("Bearer {token}"))])
        };
        assert_eq!(with(TOKEN), 200);
        std::fs::write(&file, format!("{TOKEN}\nfedcba9876543210")).unwrap();
        assert_eq!((with(TOKEN), with("fedcba9876543210")), (200, 200), "two while they change");
        std::fs::write(&file, "fedcba9876543210").unwrap();
        assert_eq!((with(TOKEN), with("fedcba9876543210")), (401, 200));
        std::fs::write(&file, "short").unwrap();
        assert_eq!((with("short"), with("fedcba9876543210")), (403, 403));
    }
}
