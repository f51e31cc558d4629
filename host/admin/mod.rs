//! The admin listener: health, readiness, metrics, a read API, and writes that change policies.
//!
//! # Layout
//!
//! - `tokens`: the tokens, and the problems of their files.
//! - `socket`: the Unix socket.
//! - `access`: access control.
//! - `archiver`: metrics and readiness of an archiver in a process of its own.
//! - `read`, `write`: the routes; expensive ones have a concurrency limit.
//!
//! Connections are served by [`http_server`](crate::http_server).

mod access;
mod archiver;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod read;
mod socket;
#[cfg(test)]
mod tests;
mod tokens;
mod write;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::blocking::run_blocking;
use crate::config::admin::Config;
use crate::gateway::Handle;
use crate::http_server::listener;
use crate::http_server::refusals::Refusals;
use crate::http_server::response::error_response;
use crate::http_server::serve::Server;
use crate::http_server::tls::{Certificate, CertificateExpiry};
use access::AccessControl;
use read::ReadApi;
use socket::BoundSocket;
use write::WriteMetrics;

pub use archiver::ArchiverProbes;
pub use socket::default_socket_path;

/// The bound admin listeners.
pub struct Admin {
    config: Config,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    expiry: CertificateExpiry,
    address: SocketAddr,
    probes: Option<TcpListener>,
    socket: Option<BoundSocket>,
    refusals: Refusals,
    writes: WriteMetrics,
}

/// Connections of the probe listener and of the Unix socket each: they do not depend on the load over
/// TCP.
const MAX_RESERVED: usize = 64;

impl Admin {
    /// Reads the certificate, binds the listeners and registers their metrics.
    ///
    /// # Errors
    /// If an address is invalid or in use, or a file of the TLS cannot be used.
    pub async fn bind(config: &Config, registry: &mut Registry) -> anyhow::Result<Self> {
        let expiry = CertificateExpiry::register(registry);
        let certificate = Certificate::load("[admin.tls]", &config.tls, &expiry).await?;
        let listener = listener::bind("[admin] listen", &config.listen).await?;
        let address = listener.local_addr()?;
        info!(%address, tls = certificate.is_some(), "admin is listening");
        let probes = match &config.probe_listen {
            Some(listen) => Some(listener::bind("[admin] probe_listen", listen).await?),
            None => None,
        };
        if let Some(probes) = &probes {
            info!(address = %probes.local_addr()?, "admin is listening for probes");
        }
        let socket = socket::bind(&config.socket, address.port())?;
        let refusals = Refusals::register(registry, "halley_admin_refused", "admin");
        let writes = WriteMetrics::register(registry);
        let config = config.clone();
        Ok(Self { config, listener, certificate, expiry, address, probes, socket, refusals, writes })
    }

    /// The address of the TCP listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The metric of the certificates that listeners show.
    pub(crate) fn certificate_expiry(&self) -> &CertificateExpiry {
        &self.expiry
    }

    /// Serves requests until the shutdown.
    pub async fn serve(self, gateway: Handle, shutdown: CancellationToken) {
        let Self { config, listener, certificate, expiry: _, address, probes, socket, refusals, writes } =
            self;
        let access = AccessControl::new(&config, address, refusals.clone());
        let watch = watch_files(&gateway, config.clone(), certificate.clone());
        let reads = ReadApi::new(gateway.clone(), refusals.clone());
        let routes =
            reads.probes(&access).merge(reads.router(&access)).merge(write::router(gateway, &access, writes));
        let routes = routes.fallback(unknown_path);
        let over_socket = async {
            if let Some(socket) = socket {
                Server::new(routes.clone(), MAX_RESERVED, &refusals).serve(socket, shutdown.clone()).await;
            }
        };
        let for_probes = async {
            if let Some(probes) = probes {
                let server = Server::new(reads.probes(&access), MAX_RESERVED, &refusals);
                server.serve(probes, shutdown.clone()).await;
            }
        };
        let server = Server::new(routes.clone(), config.max_connections, &refusals);
        let over_tcp = server.serve_tcp(listener, certificate, shutdown.clone());
        let serve = async { tokio::join!(over_tcp, over_socket, for_probes) };
        tokio::select! {
            _ = serve => {}
            () = watch => {}
        }
    }
}

async fn unknown_path() -> Response {
    error_response(
        StatusCode::NOT_FOUND,
        "unknown path; there are /healthz, /readyz, /metrics, /v1/plugins, /v1/comets, /v1/stalls, /v1/routes/{room}",
    )
}

/// How often tokens and certificate are looked at for readiness; requests look each time.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// Readiness warns while a token file cannot be used (no token is accepted then), or the certificate.
fn watch_files(
    gateway: &Handle,
    config: Config,
    certificate: Option<Arc<Certificate>>,
) -> impl Future<Output = ()> + use<> {
    let problem = Arc::<Mutex<Option<String>>>::default();
    let (shown, shown_certificate) = (Arc::clone(&problem), certificate.clone());
    gateway.add_warning(move || shown.lock().clone());
    gateway.add_warning(move || shown_certificate.as_ref()?.problem());
    async move {
        loop {
            let config = config.clone();
            let read = run_blocking("reading the tokens", move || config.token_problems()).await;
            *problem.lock() = read.unwrap_or_default().into_iter().next().map(|problem| problem.text);
            if let Some(certificate) = &certificate {
                certificate.look().await;
            }
            tokio::time::sleep(FILE_INTERVAL).await;
        }
    }
}
