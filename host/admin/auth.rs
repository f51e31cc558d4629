//! Who may write: on loopback whoever is on the machine, elsewhere who has the token.
//!
//! Browsers may not, wherever they are: a page from anywhere could reach a loopback listener
//! through them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::files;

/// Where the token may stand in the environment.
pub(super) const TOKEN_VARIABLE: &str = "HALLEY_ADMIN_TOKEN";
/// The largest file with a token, in bytes.
const LONGEST_FILE: u64 = 64 * 1024;
/// A token shorter than that is guessed too soon.
const SHORTEST_TOKEN: usize = 16;

/// Decides who may write.
#[derive(Debug, Clone)]
pub(super) struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    loopback: bool,
    token_file: Option<PathBuf>,
}

/// Why somebody may not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

impl Auth {
    pub(super) fn new(listens_on: SocketAddr, token_file: Option<PathBuf>) -> Self {
        Self(Arc::new(Inner { loopback: listens_on.ip().is_loopback(), token_file }))
    }

    /// Whether the sender of these headers may write.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let token = self.token().await.map_err(|why| denied(StatusCode::FORBIDDEN, why))?;
        decide(self.0.loopback, token.as_deref(), headers)
    }

    async fn token(&self) -> Result<Option<String>, String> {
        let file = self.0.token_file.clone();
        let read = tokio::task::spawn_blocking(move || read(file.as_deref()));
        read.await.unwrap_or_else(|error| Err(format!("the token cannot be read: {error}; nobody can write")))
    }
}

/// The token that is wanted; none when none is configured. Read anew each time, so that it can be
/// changed while the gateway runs.
///
/// # Errors
/// Why there is none though one is configured.
pub(super) fn read(file: Option<&Path>) -> Result<Option<String>, String> {
    let (token, place) = match (std::env::var(TOKEN_VARIABLE), file) {
        (Ok(token), _) => (token, TOKEN_VARIABLE.to_owned()),
        (Err(_), None) => return Ok(None),
        (Err(_), Some(file)) => {
            let place = format!("`admin.token_file` {}", file.display());
            let read = files::read_secret(file, LONGEST_FILE);
            (read.map_err(|why| format!("{place} {why}; nobody can write"))?, place)
        }
    };
    let token = token.trim();
    if token.len() < SHORTEST_TOKEN {
        return Err(format!("{place} has fewer than {SHORTEST_TOKEN} characters; nobody can write"));
    }
    Ok(Some(token.to_owned()))
}

fn decide(loopback: bool, token: Option<&str>, headers: &HeaderMap) -> Result<(), Denied> {
    if headers.contains_key(header::ORIGIN) {
        return Err(denied(StatusCode::FORBIDDEN, "browsers cannot write; use `halley plugin`"));
    }
    let Some(token) = token else {
        if !loopback {
            let why = "writes need a token where the listener is not on loopback; \
                       set `[admin] token_file` or HALLEY_ADMIN_TOKEN for the gateway";
            return Err(denied(StatusCode::FORBIDDEN, why));
        }
        // A name that only resolves to loopback is how a foreign page gets here.
        let local = headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_none_or(is_local);
        let why = "the Host of the request is not this machine; without a token, writes are local";
        return if local { Ok(()) } else { Err(denied(StatusCode::FORBIDDEN, why)) };
    };
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).map(<[u8]>::trim_ascii);
    // Digests, so that the time of comparing tells nothing of the token.
    if given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(token)) {
        return Ok(());
    }
    let why = if given.is_some() { "the token is another one" } else { "writes need a token" };
    let remedy = "give `--token-file` or HALLEY_ADMIN_TOKEN (`Authorization: Bearer ...`)";
    Err(denied(StatusCode::UNAUTHORIZED, format!("{why}; {remedy}")))
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn denied(status: StatusCode, why: impl Into<String>) -> Denied {
    Denied { status, why: why.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn status(loopback: bool, token: Option<&str>, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        decide(loopback, token, &map).map_or_else(|denied| denied.status.as_u16(), |()| 200)
    }

    #[test]
    fn loopback_may_without_a_token_and_nobody_else() {
        assert_eq!(status(true, None, &[]), 200);
        for host in ["127.0.0.1:9093", "localhost", "[::1]:9093"] {
            assert_eq!(status(true, None, &[("host", host)]), 200, "{host}");
        }
        assert_eq!(status(true, None, &[("host", "evil.example:9093")]), 403);
        assert_eq!(status(false, None, &[]), 403);
    }

    #[test]
    fn who_has_the_token_may_from_everywhere() {
        let good = format!("Bearer {TOKEN}");
        assert_eq!(status(false, Some(TOKEN), &[("authorization", &good)]), 200);
        assert_eq!(status(false, Some(TOKEN), &[("authorization", &good), ("host", "gw:9093")]), 200);
        assert_eq!(status(true, Some(TOKEN), &[]), 401);
        for bad in ["Bearer x", "Bearer ", "Basic eDp5", TOKEN] {
            assert_eq!(status(false, Some(TOKEN), &[("authorization", bad)]), 401, "{bad}");
        }
    }

    #[test]
    fn a_browser_may_not_even_with_the_token() {
        let good = format!("Bearer {TOKEN}");
        let headers = [("authorization", good.as_str()), ("origin", "http://localhost")];
        assert_eq!(status(true, Some(TOKEN), &headers), 403);
    }

    #[tokio::test]
    async fn the_file_is_read_each_time_and_has_to_be_good() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let auth = Auth::new("127.0.0.1:1".parse().unwrap(), Some(file.clone()));
        assert!(auth.token().await.unwrap_err().contains("cannot be read"));
        std::fs::write(&file, "short\n").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(auth.token().await.unwrap_err().contains("fewer than 16"));
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o666);
        let why = auth.token().await.unwrap_err();
        assert!(why.contains("can be written by others (mode 0666)") && why.contains("chmod 600"), "{why}");
        mode(0o600);
        assert_eq!(auth.token().await.unwrap().as_deref(), Some(TOKEN));
    }
}
