//! TLS to comets, through the system's OpenSSL: which comets speak it, whom they have to be, and the
//! gateway's own certificate. The files are read again when they change; connections keep what they have.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use openssl::ssl::{SslConnector, SslMethod};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;

use crate::message::Address;
use crate::mistake::{Mistake, mistake};
use crate::reloaded::{InvalidContent, ReloadError, Reloaded, SourceFile};
use crate::tls::expiry::Validity;
use crate::tls::pem;

/// `[comets.tls]`: TLS to comets.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether all comets speak TLS. Otherwise, those whose address begins with `https://` do.
    pub enabled: bool,
    /// The certificates (PEM) of the authorities that may certify comets. Without the key, those that
    /// the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The gateway's own certificate with its chain (PEM), for comets that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The private key of `certificate` (PEM), which no other user may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name that all comets' certificates have. Empty: the host in a comet's address.
    pub server_name: String,
}

impl Config {
    /// Mistakes in the values, one sentence each.
    pub(super) fn validate(&self) -> Vec<Mistake> {
        let is_half = self.certificate.is_some() != self.key.is_some();
        let half = is_half.then(|| {
            mistake!("comets.tls.certificate", "and `comets.tls.key` need each other").and("comets.tls.key")
        });
        half.into_iter().collect()
    }

    /// Resolves relative paths.
    pub fn resolve_paths(&mut self, base: &Path) {
        for path in [&mut self.ca, &mut self.certificate, &mut self.key].into_iter().flatten() {
            *path = base.join(&*path);
        }
    }

    fn files(&self) -> Vec<SourceFile> {
        let file = |path: &Option<PathBuf>, is_secret| {
            path.iter().map(move |path| SourceFile { path: path.clone(), is_secret }).collect::<Vec<_>>()
        };
        [file(&self.ca, false), file(&self.certificate, false), file(&self.key, true)].concat()
    }
}

/// Makes TLS connections to comets.
pub(super) struct TlsClient {
    config: Config,
    connector: Reloaded<SslConnector>,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// The comet does not answer.
    #[error("no TLS handshake within {0:?}; does the comet speak TLS?")]
    Silent(Duration),
    /// The certificate is not accepted.
    #[error("the comet's certificate is refused: {0}; check `[comets.tls] ca` and `server_name`")]
    Certificate(String),
    /// Anything else.
    #[error("TLS: {0}")]
    Handshake(String),
}

impl TlsClient {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// If they cannot be read, or a certificate does not belong to its key.
    pub(super) fn load(config: &Config) -> Result<Arc<Self>, ReloadError> {
        // Which of the files there are decides how their contents are read.
        let parse: fn(&[String]) -> _ = match (config.ca.is_some(), config.certificate.is_some()) {
            (false, false) => |_: &[String]| connector(None, None),
            (true, false) => |contents: &[String]| connector(contents.first(), None),
            (false, true) => |contents: &[String]| connector(None, contents.get(..2)),
            (true, true) => |contents: &[String]| connector(contents.first(), contents.get(1..3)),
        };
        let connector = Reloaded::load_now("[comets.tls] ca, certificate, key", config.files(), parse)?;
        Ok(Arc::new(Self { config: config.clone(), connector }))
    }

    /// Whether connections to this comet speak TLS.
    pub(super) fn speaks_with(&self, comet: &Address<'_>) -> bool {
        self.config.enabled || comet.is_https()
    }

    /// Speaks TLS on a connection to this host, and verifies that the comet is who it should be.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
        within: Duration,
    ) -> Result<SslStream<TcpStream>, TlsError> {
        let failed = |error: &dyn std::fmt::Display| TlsError::Handshake(error.to_string());
        let connector = self.connector.current().await;
        let name = if self.config.server_name.is_empty() { host } else { &self.config.server_name };
        let ssl = connector.configure().and_then(|setup| setup.into_ssl(name)).map_err(|e| failed(&e))?;
        let mut stream = SslStream::new(ssl, stream).map_err(|error| failed(&error))?;
        let Ok(connected) = timeout(within, Pin::new(&mut stream).connect()).await else {
            return Err(TlsError::Silent(within));
        };
        let verified = stream.ssl().verify_result();
        match connected {
            Ok(()) => Ok(stream),
            Err(_) if verified != openssl::x509::X509VerifyResult::OK => {
                Err(TlsError::Certificate(verified.error_string().to_owned()))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Looks at the files, if that is due: connections may live long, and only new ones look.
    pub(super) async fn look(&self) {
        drop(self.connector.current().await);
    }

    /// Why the files cannot be used as they are now, or why comets refuse the certificate or soon will.
    pub(super) fn problem(&self) -> Option<String> {
        self.connector.problem().or_else(|| {
            let connector = self.connector.last();
            let validity = Validity::of(connector.context().certificate()?, SystemTime::now()).ok()?;
            Some(format!("the certificate of `[comets.tls]`: {}", validity.problem()?))
        })
    }
}

/// `own` is the certificate with its chain, and its key.
fn connector(ca: Option<&String>, own: Option<&[String]>) -> Result<SslConnector, InvalidContent> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    if let Some(ca) = ca {
        builder.set_cert_store(pem::authorities("ca", ca)?);
    }
    if let Some([certificate, key]) = own {
        pem::use_identity(&mut builder, certificate, key)?;
    }
    builder.set_alpn_protos(b"\x02h2")?;
    Ok(builder.build())
}
