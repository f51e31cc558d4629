//! The certificate that a server shows, valid or not.

use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::X509;
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// The certificate that the server of this connection shows, without verifying it; `None` if it does
/// not speak TLS. Only a part of a handshake: a server that requires a certificate shows its own first.
///
/// # Errors
/// If OpenSSL cannot begin a handshake.
pub(crate) async fn shown_certificate(stream: TcpStream) -> Result<Option<X509>, ErrorStack> {
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_verify(SslVerifyMode::NONE);
    let ssl = connector.build().configure()?.verify_hostname(false).use_server_name_indication(false);
    let mut stream = SslStream::new(ssl.into_ssl("unverified")?, stream)?;
    drop(Pin::new(&mut stream).connect().await);
    Ok(stream.ssl().peer_certificate())
}
