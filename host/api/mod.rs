//! The API for comets and backends: inboxes, over gRPC and over HTTP with JSON, on one listener.
//!
//! # Layout
//!
//! - `service`: the operations, whatever the form of the request. `error`: why one fails.
//! - `grpc`: `halley.inbox.v1.Inbox` (`proto/inbox.proto`) and reflection. `http`: `/v1/inbox` and the OpenAPI
//!   description; `view`: their JSON.
//! - `tokens`, `access`: who may do what. A token may be limited to reading, and to users by prefix.
//!
//! Everything that a client can make the gateway keep is bounded: connections and streams
//! ([`http_server`](crate::http_server)), pages that are read at a time, and replays that are followed. Pages
//! of a stream are read when the client takes them.
//!
//! It does not know where inboxes are stored, or how messages reach comets.

mod access;
mod arguments;
mod error;
mod grpc;
mod http;
pub mod proto;
mod service;
mod tokens;
pub(crate) mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::api::Config;
use crate::gateway::Handle;
use crate::http_server::listener;
use crate::http_server::refusals::Refusals;
use crate::http_server::serve::Server;
use crate::http_server::tls::{Certificate, CertificateExpiry};
use crate::mistake::Mistake;
use crate::reloaded;
use access::AccessControl;
use service::{InboxService, Metrics};
use tokens::TokenFile;

/// The bound listener.
pub struct Api {
    config: Config,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    tokens: TokenFile,
    address: SocketAddr,
    refusals: Refusals,
    metrics: Metrics,
}

impl Api {
    /// Binds the listener, reads certificate and tokens, and registers the metrics. `None` if no API is
    /// configured.
    ///
    /// # Errors
    /// If the address is invalid or in use, or a file cannot be used.
    pub(crate) async fn bind(
        config: &Config,
        registry: &mut Registry,
        expiry: &CertificateExpiry,
    ) -> anyhow::Result<Option<Self>> {
        let Some(listen) = &config.listen else { return Ok(None) };
        let certificate = Certificate::load_with_http2("[api.tls]", &config.tls, expiry).await?;
        let tokens = TokenFile::load(config.token_file.clone()).await?;
        let listener = listener::bind("[api] listen", listen).await?;
        let address = listener.local_addr()?;
        info!(%address, tls = certificate.is_some(), "api is listening");
        Ok(Some(Self {
            config: config.clone(),
            listener,
            certificate,
            tokens,
            address,
            refusals: Refusals::register(registry, "halley_api_refused", "api"),
            metrics: Metrics::register(registry),
        }))
    }

    /// Serves requests until the shutdown.
    pub async fn serve(self, gateway: Handle, shutdown: CancellationToken) {
        let Self { config, listener, certificate, tokens, address, refusals, metrics } = self;
        let watch = watch_files(&gateway, certificate.clone(), tokens.clone());
        let access = AccessControl::new(&config, address, tokens, refusals.clone());
        let service = InboxService::new(gateway, metrics, shutdown.clone());
        let routes = grpc::router(service.clone()).merge(http::router(service));
        let server = Server::new(access.protect(routes), config.max_connections, &refusals).with_http2();
        tokio::select! {
            () = server.serve_tcp(listener, certificate, shutdown) => {}
            () = watch => {}
        }
    }
}

/// Why the tokens cannot be used, if any are configured. Reads their file.
pub fn token_problem(config: &Config) -> Option<Mistake> {
    config.listen.as_ref()?;
    TokenFile::load_now(config.token_file.clone()).err().map(|why| Mistake::about("api.token_file", why))
}

/// Looks at certificate and tokens also while nobody connects: readiness warns while they cannot be used.
fn watch_files(
    gateway: &Handle,
    certificate: Option<Arc<Certificate>>,
    tokens: TokenFile,
) -> impl Future<Output = ()> + use<> {
    let (shown, shown_tokens) = (certificate.clone(), tokens.clone());
    gateway.add_warning(move || shown.as_ref()?.problem());
    gateway.add_warning(move || shown_tokens.problem());
    async move {
        loop {
            drop(tokens.current().await);
            if let Some(certificate) = &certificate {
                certificate.look().await;
            }
            tokio::time::sleep(reloaded::INTERVAL).await;
        }
    }
}
