//! Malicious registries: endless responses, and redirects to other sites.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;

use crate::plugin_sources::{sha256, variant};
use crate::steering::text;
use crate::support::folder;

const MIB: usize = 1024 * 1024;
/// What may be buffered in sockets.
const SLACK: usize = 24 * MIB;
const CREDENTIALS: &str = "Basic c3Rvcnk6c2VjcmV0";

/// A server with scripted responses.
pub(super) struct FakeSite {
    port: u16,
    /// Every request: its path and its credentials.
    seen: Arc<Mutex<SeenRequests>>,
    /// Stops with this.
    _server: JoinSet<()>,
}

pub(super) type SeenRequests = Vec<(String, Option<String>)>;

impl FakeSite {
    /// `answer` gets the server's own URL and the requested path.
    pub(super) async fn new(answer: impl Fn(&str, &str) -> Response + Clone + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let app = Router::new().fallback(move |request: Request| {
            let given = request.headers().get(header::AUTHORIZATION);
            let given = given.map(|value| value.to_str().expect("text").to_owned());
            let path = request.uri().to_string();
            let answered = answer(&format!("http://127.0.0.1:{port}"), &path);
            log.lock().push((path, given));
            async move {
                // A client that uploads would fail to write otherwise.
                drop(axum::body::to_bytes(request.into_body(), 64 * MIB).await);
                answered
            }
        });
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { port, seen, _server: server }
    }

    pub(super) fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn seen(&self) -> SeenRequests {
        std::mem::take(&mut *self.seen.lock())
    }
}

/// Runs `halley check` on this plugin, with credentials for its registry.
async fn check(reference: String, also: &str) -> (Option<i32>, String) {
    let also = also.to_owned();
    let checked = tokio::task::spawn_blocking(move || {
        let files = folder("hostile");
        let config = files.path().join("halley.toml");
        let plugin = format!(
            "[policies.registry]\ntrusted_hosts = [{also}]\n[[plugin]]\nname = \"p\"\npath = \"{reference}\"\nconfig = {{ words = [\"x\"] }}\n"
        );
        std::fs::write(&config, plugin).expect("writable folder");
        let registry = reference.split('/').nth(2).unwrap_or_default();
        let login = json!({ "auths": { registry: { "username": "story", "password": "secret" } } });
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
        let command = command.args(["check", "--config", &text(&config)]);
        command.env("DOCKER_AUTH_CONFIG", login.to_string()).output().expect("the binary runs")
    });
    let output = checked.await.expect("no panic");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A manifest of the keyword filter, and its digest.
fn manifest() -> (Vec<u8>, String) {
    let layer = json!({
        "mediaType": "application/wasm", "digest": format!("sha256:{}", sha256(&variant(0))),
        "size": variant(0).len(),
    });
    let config =
        json!({ "mediaType": "application/vnd.wasm.config.v0+json", "digest": layer["digest"], "size": 2 });
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let manifest = serde_json::to_vec(&manifest).expect("JSON");
    let digest = format!("sha256:{}", sha256(&manifest));
    (manifest, digest)
}

fn reference(site: &FakeSite) -> String {
    format!("oci://{}/team/policy@{}", site.name(), manifest().1)
}

fn wants_token(realm: &str) -> Response {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"story\"");
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
}

fn to(place: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, place.to_owned())]).into_response()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_registry_responses_are_cut() {
    let sent = Arc::new(AtomicUsize::new(0));
    let endless = {
        let sent = Arc::clone(&sent);
        move |status: StatusCode| {
            let (sent, chunk) = (Arc::clone(&sent), Bytes::from(vec![b'x'; 64 * 1024]));
            let next = move || {
                sent.fetch_add(chunk.len(), Relaxed);
                Ok::<_, Infallible>(chunk.clone())
            };
            (status, Body::from_stream(stream::repeat_with(next))).into_response()
        }
    };
    let cases = [
        ("manifest", "more than 4194304 bytes", 4 * MIB),
        ("error", "500 Internal Server Error: xxx", 0),
        ("token", "no token: the answer has more than 65536 bytes", 0),
        ("refusal", "no token: the registry answered 403", 0),
        ("blob", "more than 67108864 bytes", 64 * MIB),
    ];
    for (case, said, most) in cases {
        let endless = endless.clone();
        let answer = move |own: &str, path: &str| match (case, path) {
            ("manifest", _) => endless(StatusCode::OK),
            ("error", _) => endless(StatusCode::INTERNAL_SERVER_ERROR),
            ("blob", path) if path.contains("/blobs/") => endless(StatusCode::OK),
            ("blob", _) => manifest().0.into_response(),
            (_, path) if !path.starts_with("/token") => wants_token(&format!("{own}/token")),
            ("token", _) => endless(StatusCode::OK),
            _ => endless(StatusCode::FORBIDDEN),
        };
        let site = FakeSite::new(answer).await;
        sent.store(0, Relaxed);
        let (code, why) = check(reference(&site), "").await;
        assert!(code == Some(2) && why.contains(said), "{case}: {why}");
        let sent = sent.load(Relaxed);
        assert!(sent <= most + SLACK, "{case}: {sent} bytes were read");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_redirect_to_trusted_hosts_only() {
    // Another site on the same machine: another port.
    let other = FakeSite::new(|_, path| match path {
        path if path.starts_with("/token") => r#"{"token":"t"}"#.into_response(),
        path if path.contains("/blobs/") => variant(0).into_response(),
        _ => manifest().0.into_response(),
    })
    .await;
    let (name, url) = (other.name(), format!("http://{}", other.name()));
    let listed = format!("\"{name}\"");

    // Redirects of the manifest, and of the plugin.
    for part in ["/manifests/", "/blobs/"] {
        let url = url.clone();
        let site = FakeSite::new(move |_, path| match path {
            path if path.contains(part) => to(&format!("{url}{path}")),
            _ => manifest().0.into_response(),
        })
        .await;
        let (code, why) = check(reference(&site), "").await;
        assert!(
            code == Some(2) && why.contains("redirects to another site") && why.contains(&listed),
            "{why}"
        );
        assert_eq!(other.seen(), [], "it was not contacted");
        let (code, why) = check(reference(&site), &listed).await;
        if part == "/blobs/" {
            assert_eq!(code, Some(0), "{why}");
        }
        let seen = other.seen();
        assert!(
            !seen.is_empty() && seen.iter().all(|(_, given)| given.is_none()),
            "no credentials: {seen:?}"
        );
    }

    // Tokens: credentials only go to a listed realm.
    let realm = format!("{url}/token");
    let site = FakeSite::new(move |_, _| wants_token(&realm)).await;
    let (code, why) = check(reference(&site), "").await;
    assert!(code == Some(2) && why.contains("tokens come from another site"), "{why}");
    assert_eq!(other.seen(), [], "it was not contacted");
    assert!(site.seen().iter().all(|(_, given)| given.is_none()), "the registry got no credentials either");
    let (code, _) = check(reference(&site), &listed).await;
    assert_eq!(code, Some(2), "it refuses the token as well");
    let seen = other.seen();
    let given = Some(CREDENTIALS.to_owned());
    assert!(seen.len() == 1 && seen[0].1 == given, "{seen:?}");
    assert!(seen[0].0.contains("scope=repository%3Ateam%2Fpolicy%3Apull"), "{seen:?}");

    // A registry may redirect within its own site, but not endlessly.
    let site = FakeSite::new(|own, path| match path {
        path if path.starts_with("/v2/") => to(&format!("/elsewhere{path}")),
        path if path.contains("/blobs/") => variant(0).into_response(),
        path if path.contains("/manifests/") => manifest().0.into_response(),
        _ => wants_token(own),
    })
    .await;
    assert_eq!(check(reference(&site), "").await.0, Some(0));
    let site = FakeSite::new(|_, path| to(path)).await;
    let (code, why) = check(reference(&site), "").await;
    assert!(code == Some(2) && why.contains("redirects more than"), "{why}");
}
