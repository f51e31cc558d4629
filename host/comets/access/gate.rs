//! Guards a comet's channel: only addresses that it allows are dialled.
//!
//! The connector is hyper-util's, which tonic uses as well. It dials an IP address in the URI
//! directly, and resolves a name through a resolver. Both are checked here, a name after it is
//! resolved, and exactly the allowed addresses are dialled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::TcpStream;
use tonic::codegen::Service;

use super::{AccessRules, AddressRefused, NamerTrust};
use crate::comets::metrics::RefusedReason;
use crate::comets::state::CometState;
use crate::message::{CometAddr, NamedBy};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whether an address is one of the gateway's own comets.
type IsKnown = Arc<dyn Fn(&CometAddr) -> bool + Send + Sync>;

/// Decides where one comet's connections may lead.
#[derive(Clone)]
pub(in crate::comets) struct DialGate {
    access: Arc<AccessRules>,
    state: Arc<CometState>,
    is_known: IsKnown,
}

impl DialGate {
    pub(in crate::comets) fn new(
        access: Arc<AccessRules>,
        state: Arc<CometState>,
        is_known: IsKnown,
    ) -> Self {
        Self { access, state, is_known }
    }

    /// The gate of a comet that an operator listed.
    #[cfg(test)]
    pub(in crate::comets) fn open(address: &CometAddr) -> Self {
        let metrics = crate::comets::Metrics::register(&mut prometheus_client::registry::Registry::default());
        let access = AccessRules::new(None, metrics.refused());
        let source = crate::comets::Source::Configured;
        let state = CometState::new(address.clone(), source, metrics.of(address), Arc::default());
        Self { access: Arc::new(access), state: Arc::new(state), is_known: Arc::new(|_| false) }
    }

    /// Whether this address may be dialled now: the comet's source may have changed.
    fn check(&self, name: Option<&str>, address: SocketAddr) -> Result<(), AddressRefused> {
        let trust = NamerTrust::from(self.state.source());
        self.access.check(trust, name, address).or_else(|refused| {
            // The address of one of the gateway's own comets is allowed, whatever named it.
            let is_trusted = trust == NamerTrust::Others && self.is_trusted(address);
            if is_trusted { Ok(()) } else { Err(refused) }
        })
    }

    fn is_trusted(&self, address: SocketAddr) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        (self.is_known)(&CometAddr::from(address.to_string()))
    }

    /// The addresses of a name that may be dialled.
    fn filter(
        &self,
        name: &str,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, BoxError> {
        let port = self.state.address.address().map_or(0, |address| address.port());
        let (mut admitted, mut last) = (Vec::new(), None);
        for mut address in found {
            address.set_port(port);
            match self.check(Some(name), address) {
                Ok(()) => admitted.push(address),
                Err(refused) => last = Some(refused),
            }
        }
        match last {
            Some(refused) if admitted.is_empty() => Err(self.note(refused).into()),
            _ => Ok(admitted),
        }
    }

    fn note(&self, refused: AddressRefused) -> AddressRefused {
        let named_by = match NamerTrust::from(self.state.source()) {
            NamerTrust::Operator | NamerTrust::Directory => NamedBy::Directory,
            NamerTrust::Others => NamedBy::Record,
        };
        self.access.note(&refused, named_by);
        refused
    }
}

/// Resolves names, and returns the addresses that may be dialled.
#[derive(Clone)]
pub(in crate::comets) struct GatedResolver {
    gate: DialGate,
}

impl Service<Name> for GatedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let gate = self.gate.clone();
        Box::pin(async move {
            let found = gate.access.names().look_up(name.as_str()).await.map_err(|why| why.to_string())?;
            Ok(gate.filter(name.as_str(), found.iter().copied())?.into_iter())
        })
    }
}

/// Connects where the gate allows it.
#[derive(Clone)]
pub(in crate::comets) struct GatedConnector {
    gate: DialGate,
    http: HttpConnector<GatedResolver>,
}

impl GatedConnector {
    /// A connector that `set_up` configures.
    pub(in crate::comets) fn new(
        gate: DialGate,
        set_up: impl FnOnce(&mut HttpConnector<GatedResolver>),
    ) -> Self {
        let resolver = GatedResolver { gate: gate.clone() };
        let mut http = HttpConnector::new_with_resolver(resolver);
        set_up(&mut http);
        Self { gate, http }
    }

    /// Connects to the host and port of a URI.
    ///
    /// # Errors
    /// If the gate refuses the address, or nobody listens there.
    pub(in crate::comets) async fn connect(&mut self, uri: http::Uri) -> Result<TcpStream, BoxError> {
        self.admits(&uri).map_err(|refused| self.gate.note(refused))?;
        std::future::poll_fn(|context| self.http.poll_ready(context)).await?;
        Ok(self.http.call(uri).await?.into_inner())
    }

    fn admits(&self, uri: &http::Uri) -> Result<(), AddressRefused> {
        let address = CometAddr::from(uri.authority().map_or("", http::uri::Authority::as_str));
        let Ok(address) = address.address() else {
            return Err(AddressRefused::new(uri, RefusedReason::NotListed));
        };
        match address.ip() {
            Some(ip) => self.gate.check(None, SocketAddr::new(ip, address.port())),
            None => Ok(()),
        }
    }
}
