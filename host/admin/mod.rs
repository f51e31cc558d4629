//! The admin listener: health, readiness, metrics, an API that looks at the gateway, and a few
//! writes that change its policies.
//!
//! Reading is open to whoever reaches the listener. Writing needs a token wherever the listener
//! is not on loopback (`auth`), and changes nothing but policies (`write`).

mod auth;
mod exposure;
mod listener;
mod write;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::listener::{Bounded, Peer};
use crate::gateway::Handle;
use crate::message::{CometAddr, RoomId};
use crate::router::{Part, Route};

/// `[admin]`: the admin listener.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on; port 0 takes a free one and logs it. Whoever reaches it can
    /// read: keep it on loopback or behind something that asks who is there.
    pub listen: String,
    /// A file with the token that writes need (pushing and rolling back policies), at least 16
    /// characters; it is read again for each of them. `HALLEY_ADMIN_TOKEN` in the environment
    /// does the same and wins. Without a token, writes are allowed on loopback and nowhere else.
    pub token_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9093".into(), token_file: None }
    }
}

impl Config {
    /// What is wrong with the values, one sentence for each mistake.
    pub fn problems(&self) -> Vec<String> {
        let port = self.listen.rsplit_once(':').and_then(|(host, port)| {
            let named = !host.is_empty();
            port.parse::<u16>().ok().filter(|_| named)
        });
        if port.is_some() {
            return Vec::new();
        }
        vec![format!("`admin.listen` is `{}`; expected host:port, such as 127.0.0.1:9093", self.listen)]
    }

    /// The TCP ports that are listened on.
    pub fn ports(&self) -> Vec<u16> {
        self.listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).into_iter().collect()
    }

    /// What is wrong with the token that writes need. Not a part of [`Config::problems`]: the token
    /// may come and change while the gateway runs, which only refuses writes meanwhile.
    pub fn token_problem(&self) -> Option<String> {
        auth::read(self.token_file.as_deref()).err()
    }
}

/// A bound admin listener.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    token_file: Option<PathBuf>,
}

/// Connections beyond this wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// A look-up for `/v1/routes/{room}` may take this long.
const ROUTE_DEADLINE: Duration = Duration::from_secs(5);

impl Admin {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the address is none, or taken.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await.with_context(|| {
            format!(
                "cannot listen on `{}`; check `[admin] listen`, or what else uses the port",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
        info!(%address, "admin is listening");
        Ok(Self { listener, address, token_file: config.token_file.clone() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the shutdown.
    ///
    /// # Errors
    /// When accepting fails for good.
    pub async fn serve(self, gateway: Handle, shutdown: CancellationToken) -> anyhow::Result<()> {
        let listener = Bounded::new(self.listener, MAX_CONNECTIONS);
        let writes = write::router(gateway.clone(), auth::Auth::new(self.address, self.token_file));
        let router = router(gateway).merge(writes).into_make_service_with_connect_info::<Peer>();
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        served.await.context("the admin listener failed")
    }
}

fn router(gateway: Handle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/plugins", get(plugins))
        .route("/v1/plugins/{name}", get(plugin))
        .route("/v1/plugins/{name}/versions", get(versions))
        .route("/v1/plugins/{name}/differences", get(differences))
        .route("/v1/comets", get(comets))
        .route("/v1/stalls", get(stalls))
        .route("/v1/routes/{room}", get(route))
        .with_state(gateway)
}

async fn ready(State(gateway): State<Handle>) -> Response {
    let problems = gateway.problems();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let warnings = gateway.warnings();
    let answer = json!({ "ready": problems.is_empty(), "reasons": problems, "warnings": warnings });
    (status, Json(answer)).into_response()
}

async fn metrics(State(gateway): State<Handle>) -> Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match gateway.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn plugins(State(gateway): State<Handle>) -> Response {
    Json(gateway.policies()).into_response()
}

async fn plugin(State(gateway): State<Handle>, Path(name): Path<String>) -> Response {
    match one_plugin(&gateway, &name) {
        Some(status) => Json(status).into_response(),
        None => unknown(&name),
    }
}

async fn versions(State(gateway): State<Handle>, Path(name): Path<String>) -> Response {
    match gateway.plugin_versions(&name) {
        Some(versions) => Json(json!({ "plugin": name, "versions": versions })).into_response(),
        None => unknown(&name),
    }
}

async fn differences(State(gateway): State<Handle>, Path(name): Path<String>) -> Response {
    match gateway.differences(&name) {
        Some(differences) => Json(differences).into_response(),
        None => failed(StatusCode::NOT_FOUND, &format!("no candidate looks on beside a plugin `{name}`")),
    }
}

/// A plugin's version in force, and what stands in for its file; `None` when there is neither.
fn one_plugin(gateway: &Handle, name: &str) -> Option<serde_json::Value> {
    let status = gateway.policies();
    let in_force = status.plugins.iter().find(|plugin| plugin.name == name);
    let instead = status.overrides.get(name);
    if in_force.is_none() && instead.is_none() {
        return None;
    }
    Some(json!({ "generation": status.generation, "in_force": in_force, "override": instead }))
}

fn unknown(name: &str) -> Response {
    failed(StatusCode::NOT_FOUND, &format!("no plugin `{name}`; GET /v1/plugins shows the names"))
}

async fn comets(State(gateway): State<Handle>) -> Response {
    Json(json!({ "comets": gateway.comets() })).into_response()
}

async fn stalls(State(gateway): State<Handle>) -> Response {
    Json(json!({ "stalls": gateway.stalls() })).into_response()
}

async fn route(State(gateway): State<Handle>, Path(room): Path<String>) -> Response {
    let room = RoomId::from(room);
    match tokio::time::timeout(ROUTE_DEADLINE, gateway.route(&room)).await {
        Ok(Ok(route)) => Json(RouteView::new(&room, &route)).into_response(),
        Ok(Err(error)) => failed(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")),
        Err(_) => failed(StatusCode::GATEWAY_TIMEOUT, "the directory did not answer in time"),
    }
}

fn failed(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// A route as the API shows it: counts, and the first connections of each share.
#[derive(Serialize)]
struct RouteView<'a> {
    room: &'a RoomId,
    connections: usize,
    stale: usize,
    skipped: usize,
    absent: usize,
    shares: Vec<ShareView<'a>>,
}

#[derive(Serialize)]
struct ShareView<'a> {
    comet: &'a CometAddr,
    call: &'static str,
    recipients: usize,
    first: Vec<&'a str>,
}

/// A room can have a hundred thousand connections; nobody reads them all here.
const CONNECTIONS_SHOWN: usize = 20;

impl<'a> RouteView<'a> {
    fn new(room: &'a RoomId, route: &'a Route) -> Self {
        let shares = route.shares.iter().map(|share| ShareView {
            comet: &share.comet,
            call: match share.part {
                Part::Whole => "BroadcastRoom",
                Part::Partial => "PushMsg",
            },
            recipients: share.recipients.len(),
            first: share.recipients.iter().take(CONNECTIONS_SHOWN).map(|r| r.connection.as_str()).collect(),
        });
        Self {
            room,
            connections: route.connections,
            stale: route.stale,
            skipped: route.skipped,
            absent: route.absent.len(),
            shares: shares.collect(),
        }
    }
}
