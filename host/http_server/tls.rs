//! TLS for a listener, through the system's OpenSSL. Certificate and key are read again when they change;
//! existing connections keep theirs.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use openssl::pkey::PKey;
use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslMethod, select_next_proto};
use openssl::x509::X509;
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

use crate::http_server::listener::{Establish, Listen};
use crate::http_server::peer::Peer;
use crate::reloaded::{InvalidContent, ReloadError, Reloaded, SourceFile};

/// The protocols by ALPN, each with its length in front.
const PROTOCOLS: &[u8] = b"\x02h2\x08http/1.1";

/// A certificate with its key.
pub(crate) struct Certificate(Reloaded<SslAcceptor>);

impl Certificate {
    /// Reads PEM files: the certificate with its chain, and its private key.
    ///
    /// # Errors
    /// If they cannot be read, or do not belong together.
    pub(crate) async fn load(certificate: &Path, key: &Path) -> Result<Arc<Self>, ReloadError> {
        let file = |path: &Path, is_secret| SourceFile { path: path.to_owned(), is_secret };
        let files = vec![file(certificate, false), file(key, true)];
        Ok(Arc::new(Self(Reloaded::load("[api] tls_certificate, tls_key", files, acceptor).await?)))
    }
}

impl Certificate {
    /// Looks at the files, if that is due.
    pub(crate) async fn look(&self) {
        drop(self.0.current().await);
    }

    /// Why the files cannot be used as they are now.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.problem()
    }
}

fn acceptor(contents: &[String]) -> Result<SslAcceptor, InvalidContent> {
    let [certificate, key] = contents else { return Err("two files are expected".into()) };
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    let mut chain = X509::stack_from_pem(certificate.as_bytes())?.into_iter();
    let own = chain.next().ok_or("the certificate file has no certificate in PEM")?;
    builder.set_certificate(&own)?;
    for issuer in chain {
        builder.add_extra_chain_cert(issuer)?;
    }
    let key = PKey::private_key_from_pem(key.as_bytes())?;
    // Fails only for a key of another certificate.
    builder.set_private_key(&key).map_err(|_| "the key does not belong to the certificate")?;
    builder
        .set_alpn_select_callback(|_, offered| select_next_proto(PROTOCOLS, offered).ok_or(AlpnError::NOACK));
    Ok(builder.build())
}

/// A TCP listener that speaks TLS.
pub(crate) struct TlsListener {
    listener: TcpListener,
    certificate: Arc<Certificate>,
}

/// A TCP connection before its handshake.
pub(crate) struct TlsAccepted {
    stream: TcpStream,
    certificate: Arc<Certificate>,
}

impl TlsListener {
    pub(crate) fn new(listener: TcpListener, certificate: Arc<Certificate>) -> Self {
        Self { listener, certificate }
    }
}

impl Listen for TlsListener {
    type Accepted = TlsAccepted;

    async fn accept(&self) -> io::Result<(TlsAccepted, Peer)> {
        let (stream, peer) = Listen::accept(&self.listener).await?;
        Ok((TlsAccepted { stream, certificate: Arc::clone(&self.certificate) }, peer))
    }
}

impl Establish for TlsAccepted {
    type Stream = SslStream<TcpStream>;

    async fn establish(self) -> io::Result<Self::Stream> {
        let acceptor = self.certificate.0.current().await;
        let ssl = Ssl::new(acceptor.context())?;
        let mut stream = SslStream::new(ssl, self.stream)?;
        Pin::new(&mut stream).accept().await.map_err(io::Error::other)?;
        Ok(stream)
    }
}
