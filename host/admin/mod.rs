//! The admin listener: health, readiness, metrics, and the API that steers policies.
//!
//! - `read`: what can be looked at. Open to everyone who reaches the listener.
//! - `write`: what changes the policies in force; `upload` takes in the versions for it.
//! - `auth`: who may write, and the log of who did.
//! - `listener`: a bound on connections.

mod auth;
mod listener;
mod read;
mod upload;
mod write;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post, put};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::admin::auth::Gate;
use crate::admin::listener::{Bounded, Peer};
use crate::gateway::Handle;

/// `[admin]`: the admin listener.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on; port 0 takes a free one and logs it. Reads are open to
    /// everyone who reaches it. Writes need a token, unless it is on loopback and none is
    /// configured.
    pub listen: String,
    /// A file with the tokens that may write, one a line, each of at least 16 characters. Read
    /// again for every write, so that tokens can be changed while the gateway runs. Without
    /// it, the environment's HALLEY_ADMIN_TOKEN is the token.
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
}

/// A bound admin listener.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    gate: Gate,
}

/// What the handlers share.
#[derive(Clone)]
struct App {
    gateway: Handle,
    gate: Arc<Gate>,
    /// One permit for each upload that may be under way.
    uploads: Arc<Semaphore>,
    /// Changes that were asked for: they are carried out even when whoever asked hangs up.
    tasks: TaskTracker,
}

impl FromRef<App> for Handle {
    fn from_ref(app: &App) -> Self {
        app.gateway.clone()
    }
}

/// Connections beyond this wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Uploads beyond this are told to come again: each can be in memory as a whole.
const MAX_UPLOADS: usize = 2;
/// A look-up for `/v1/routes/{room}` may take this long.
const ROUTE_DEADLINE: Duration = Duration::from_secs(5);

impl Admin {
    /// Binds the listener.
    ///
    /// # Errors
    /// When the address is none, or taken, or the token cannot be used.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await.with_context(|| {
            format!(
                "cannot listen on `{}`; check `[admin] listen`, or what else uses the port",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
        let gate = Gate::new(config.token_file.clone(), address)?;
        info!(%address, writes = gate.describe(), "admin is listening");
        Ok(Self { listener, address, gate })
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
        let tasks = TaskTracker::new();
        let app = App {
            gateway,
            gate: Arc::new(self.gate),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            tasks: tasks.clone(),
        };
        let service = router(app).into_make_service_with_connect_info::<Peer>();
        let served = axum::serve(listener, service).with_graceful_shutdown(shutdown.cancelled_owned());
        served.await.context("the admin listener failed")?;
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

fn router(app: App) -> Router {
    let guard = || middleware::from_fn_with_state(app.clone(), auth::guard);
    let one = put(write::push_one).layer(DefaultBodyLimit::max(upload::MAX_PLUGIN));
    let several = put(write::push_several).layer(DefaultBodyLimit::max(upload::MAX_TOGETHER));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(read::ready))
        .route("/metrics", get(read::metrics))
        .route("/v1/plugins", several.route_layer(guard()).get(read::plugins))
        .route("/v1/plugins/{name}", one.route_layer(guard()).get(read::plugin))
        .route("/v1/plugins/{name}/rollback", post(write::rollback).route_layer(guard()))
        .route("/v1/plugins/{name}/release", post(write::release).route_layer(guard()))
        .route("/v1/plugins/{name}/versions", get(read::versions))
        .route("/v1/comets", get(read::comets))
        .route("/v1/routes/{room}", get(read::route))
        .with_state(app)
}

fn failed(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error, "problems": [] }))).into_response()
}
