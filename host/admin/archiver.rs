//! Metrics and readiness of `halley archive`, which has no other admin listener. Like the listener for probes
//! of a gateway, it needs no token: bind it where only monitoring can connect.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::read::{readiness, wanted_format};
use crate::gateway::ArchiverStatus;
use crate::http_server::listener;
use crate::http_server::refusals::Refusals;
use crate::http_server::response::error_response;
use crate::http_server::serve::Server;
use crate::telemetry::exposition::{self, Exposition};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// The bound listener.
pub struct ArchiverProbes {
    listener: TcpListener,
    refusals: Refusals,
}

#[derive(Clone)]
struct Served {
    registry: Arc<Registry>,
    status: ArchiverStatus,
}

impl ArchiverProbes {
    /// Binds the listener.
    ///
    /// # Errors
    /// If the address is invalid or in use.
    pub async fn bind(listen: &str, registry: &mut Registry) -> anyhow::Result<Self> {
        let listener = listener::bind("--metrics-listen", listen).await?;
        info!(address = %listener.local_addr()?, "metrics are served");
        Ok(Self { listener, refusals: Refusals::register(registry, "halley_admin_refused", "admin") })
    }

    /// Serves `/healthz`, `/readyz` and `/metrics` until the shutdown.
    pub async fn serve(self, registry: Registry, status: ArchiverStatus, shutdown: CancellationToken) {
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(Served { registry: Arc::new(registry), status });
        Server::new(routes, MAX_CONNECTIONS, &self.refusals).serve(self.listener, shutdown).await;
    }
}

async fn ready(State(served): State<Served>) -> Response {
    readiness(served.status.problem().as_slice(), &served.status.warnings())
}

async fn metrics(State(served): State<Served>, headers: HeaderMap) -> Response {
    let (format, described) = wanted_format(&headers);
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &served.registry) {
        Ok(()) if format == Exposition::OpenMetrics => (described, text).into_response(),
        Ok(()) => (described, exposition::to_text(&text)).into_response(),
        Err(error) => error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
