//! TLS for a listener. Its files are read again when they change; existing connections keep theirs.
//!
//! With authorities of clients, a client without a certificate of one of them does not get past the
//! handshake: nothing that it sends is read. What a client may do is up to tokens either way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslMethod, SslRef, SslVerifyMode, select_next_proto};
use openssl::stack::Stack;
use openssl::x509::X509Name;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_openssl::SslStream;
use tracing::warn;

use crate::http_server::listener::{Establish, Listen};
use crate::http_server::peer::{ClientName, Peer};
use crate::reloaded::{InvalidContent, ReloadError, Reloaded, SourceFile};
use crate::telemetry::{Family, Gauge, metrics};
use crate::tls::ListenerConfig;
use crate::tls::expiry::{Validity, expiry};
use crate::tls::names::certificate_names;
use crate::tls::pem::{self, PemError};

/// The protocols by ALPN, each with its length in front.
const PROTOCOLS: &[u8] = b"\x02h2\x08http/1.1";
const HTTP1: &[u8] = b"\x08http/1.1";

/// Sessions are resumed by this listener only, with the authorities under which they began.
const SESSIONS: &[u8] = b"halley";

/// How long a client may take to read why its handshake failed, and how many KiB it may still send.
const LAST_ALERT: Duration = Duration::from_secs(1);
const MOST_UNREAD: usize = 64;

metrics! {
    /// When the listeners' certificates expire.
    #[derive(Clone, Debug)]
    pub(crate) struct CertificateExpiry {
        /// When the certificate of a listener expires, in seconds since 1970.
        at: Family<SectionLabel, Gauge> = "halley_certificate_expiry_timestamp_seconds";
    }
}

/// Which certificate it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SectionLabel {
    section: &'static str,
}

/// A certificate with its key, and the authorities of clients.
pub(crate) struct Certificate {
    /// The section of the configuration, such as `[admin.tls]`.
    section: &'static str,
    files: Reloaded<SslAcceptor>,
    expiry: CertificateExpiry,
    /// What is wrong with its validity, logged once.
    warned: Mutex<Option<String>>,
}

impl Certificate {
    /// Reads the files of a listener that speaks HTTP/1 only; `None` if it does not speak TLS.
    ///
    /// # Errors
    /// If they cannot be read, or do not belong together.
    pub(crate) async fn load(
        section: &'static str,
        config: &ListenerConfig,
        expiry: &CertificateExpiry,
    ) -> Result<Option<Arc<Self>>, ReloadError> {
        Self::load_for(section, config, expiry, |contents| acceptor(contents, HTTP1)).await
    }

    /// As [`Certificate::load`], for a listener that speaks HTTP/2 as well.
    ///
    /// # Errors
    /// As [`Certificate::load`].
    pub(crate) async fn load_with_http2(
        section: &'static str,
        config: &ListenerConfig,
        expiry: &CertificateExpiry,
    ) -> Result<Option<Arc<Self>>, ReloadError> {
        Self::load_for(section, config, expiry, |contents| acceptor(contents, PROTOCOLS)).await
    }

    async fn load_for(
        section: &'static str,
        config: &ListenerConfig,
        expiry: &CertificateExpiry,
        parse: fn(&[String]) -> Result<SslAcceptor, InvalidContent>,
    ) -> Result<Option<Arc<Self>>, ReloadError> {
        let (Some(certificate), Some(key)) = (&config.certificate, &config.key) else { return Ok(None) };
        let file = |path: &std::path::Path, is_secret| SourceFile { path: path.to_owned(), is_secret };
        let mut files = vec![file(certificate, false), file(key, true)];
        files.extend(config.client_ca.as_deref().map(|path| file(path, false)));
        let files = Reloaded::load(section, files, parse).await?;
        let certificate = Self { section, files, expiry: expiry.clone(), warned: Mutex::default() };
        certificate.note_validity();
        Ok(Some(Arc::new(certificate)))
    }

    /// Looks at the files, if that is due, and at the clock. Logs what becomes of the certificate.
    pub(crate) async fn look(&self) {
        drop(self.files.current().await);
        let found = self.note_validity();
        let mut warned = self.warned.lock();
        if *warned != found {
            if let Some(problem) = &found {
                warn!("{problem}");
            }
            *warned = found;
        }
    }

    /// Why the files cannot be used as they are now, or why clients refuse the certificate or soon will.
    pub(crate) fn problem(&self) -> Option<String> {
        self.files.problem().or_else(|| self.note_validity())
    }

    fn note_validity(&self) -> Option<String> {
        let acceptor = self.files.last();
        let certificate = acceptor.context().certificate()?;
        let validity = Validity::of(certificate, SystemTime::now()).ok()?;
        let label = SectionLabel { section: self.section.trim_matches(['[', ']']) };
        self.expiry.at.get_or_create(&label).set(expiry(certificate)?.try_into().ok()?);
        Some(format!("the certificate of `{}`: {}", self.section, validity.problem()?))
    }
}

/// `contents` are certificate, key and perhaps the authorities of clients.
fn acceptor(contents: &[String], protocols: &'static [u8]) -> Result<SslAcceptor, InvalidContent> {
    let (certificate, key, client_ca) = match contents {
        [certificate, key] => (certificate, key, None),
        [certificate, key, client_ca] => (certificate, key, Some(client_ca)),
        _ => return Err("two or three files are expected".into()),
    };
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    pem::use_identity(&mut builder, certificate, key)?;
    if let Some(client_ca) = client_ca {
        require_certificates(&mut builder, client_ca)?;
    }
    builder.set_session_id_context(SESSIONS)?;
    builder.set_alpn_select_callback(move |_, offered| {
        select_next_proto(protocols, offered).ok_or(AlpnError::NOACK)
    });
    Ok(builder.build())
}

/// Refuses clients without a certificate of one of these authorities.
fn require_certificates(
    builder: &mut openssl::ssl::SslAcceptorBuilder,
    client_ca: &str,
) -> Result<(), PemError> {
    builder.set_verify_cert_store(pem::authorities("client_ca", client_ca)?)?;
    // Tells clients with several certificates which of them to show.
    let mut names: Stack<X509Name> = Stack::new()?;
    for authority in pem::certificates("client_ca", client_ca)? {
        names.push(authority.subject_name().to_owned()?)?;
    }
    builder.set_client_ca_list(names);
    builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    Ok(())
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

    async fn establish(self) -> io::Result<(Self::Stream, ClientName)> {
        let acceptor = self.certificate.files.current().await;
        let ssl = Ssl::new(acceptor.context())?;
        let mut stream = SslStream::new(ssl, self.stream)?;
        let section = self.certificate.section;
        match Pin::new(&mut stream).accept().await {
            Ok(()) => {
                let name = client_name(stream.ssl());
                Ok((stream, name))
            }
            Err(error) => {
                let why = HandshakeError::of(section, stream.ssl(), &error);
                drop(timeout(LAST_ALERT, let_read(stream.get_mut())).await);
                Err(io::Error::other(why))
            }
        }
    }
}

/// The client's names, if it had to show a certificate: then the handshake has verified it.
fn client_name(ssl: &SslRef) -> ClientName {
    if !ssl.verify_mode().contains(SslVerifyMode::FAIL_IF_NO_PEER_CERT) {
        return ClientName::NONE;
    }
    let names = ssl.peer_certificate().map(|certificate| certificate_names(&certificate));
    names.map_or(ClientName::NONE, ClientName::of_certificate)
}

/// Closes a connection so that the client receives the alert that says why: closing it with bytes
/// unread would discard what was sent.
async fn let_read(stream: &mut TcpStream) {
    drop(stream.shutdown().await);
    let mut unread = [0; 1024];
    for _ in 0..MOST_UNREAD {
        if !stream.read(&mut unread).await.is_ok_and(|length| length > 0) {
            return;
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the client's certificate is refused: {why}; check `{section} client_ca`")]
    Certificate { section: &'static str, why: &'static str },
    #[error("the client shows no certificate; `{section} client_ca` requires one")]
    NoCertificate { section: &'static str },
    #[error("TLS handshake failed: {why}; `{section}` requires TLS")]
    Other { section: &'static str, why: String },
}

impl HandshakeError {
    fn of(section: &'static str, ssl: &SslRef, error: &openssl::ssl::Error) -> Self {
        let verified = ssl.verify_result();
        if verified != openssl::x509::X509VerifyResult::OK {
            return Self::Certificate { section, why: verified.error_string() };
        }
        // The reason alone: the rest of OpenSSL's text is for its own developers.
        let reasons = error.ssl_error().map(|stack| stack.errors().iter().filter_map(|error| error.reason()));
        let why = reasons.and_then(|mut reasons| reasons.next()).map(str::to_owned);
        match why {
            Some(why) if why == "peer did not return a certificate" => Self::NoCertificate { section },
            why => Self::Other { section, why: why.unwrap_or_else(|| error.to_string()) },
        }
    }
}
