//! Certificates, private keys and authorities in PEM.

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::SslContextBuilder;
use openssl::x509::X509;
use openssl::x509::store::{X509Store, X509StoreBuilder};

/// What is wrong with a file's content.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PemError {
    /// Not PEM, or not a certificate.
    #[error("the file of `{0}` has no certificate in PEM")]
    NoCertificate(&'static str),
    /// Not a private key, or an encrypted one.
    #[error("the file of `{0}` has no private key in PEM without a passphrase")]
    NoKey(&'static str),
    /// Certificate and key are of different pairs.
    #[error("the key does not belong to the certificate")]
    OtherKey,
    /// OpenSSL refuses it.
    #[error(transparent)]
    OpenSsl(#[from] ErrorStack),
}

/// The certificates of a file, at least one. `key` names the file in errors.
///
/// # Errors
/// If there is none, or what is there is not PEM.
pub(crate) fn certificates(key: &'static str, pem: &str) -> Result<Vec<X509>, PemError> {
    let found = X509::stack_from_pem(pem.as_bytes()).map_err(|_| PemError::NoCertificate(key))?;
    if found.is_empty() { Err(PemError::NoCertificate(key)) } else { Ok(found) }
}

/// The private key of a file. Never asks for a passphrase.
///
/// # Errors
/// If there is none that can be read.
pub(crate) fn private_key(key: &'static str, pem: &str) -> Result<PKey<Private>, PemError> {
    // An empty passphrase: OpenSSL would ask for one at the terminal.
    PKey::private_key_from_pem_passphrase(pem.as_bytes(), b"").map_err(|_| PemError::NoKey(key))
}

/// Checks that a key belongs to a certificate. The keys name the files in errors.
///
/// # Errors
/// If it does not, or a file is not what it should be.
pub(crate) fn check_identity(
    certificate_key: &'static str,
    certificate: &str,
    key_key: &'static str,
    key: &str,
) -> Result<(), PemError> {
    let own = certificates(certificate_key, certificate)?;
    let public = own.first().ok_or(PemError::NoCertificate(certificate_key))?.public_key()?;
    let private = private_key(key_key, key)?;
    if public.public_eq(&private) { Ok(()) } else { Err(PemError::OtherKey) }
}

/// The private key of a file as PKCS#8, which clients of native-tls require, in PEM.
///
/// # Errors
/// As [`private_key`].
pub(crate) fn as_pkcs8(key: &'static str, pem: &str) -> Result<Vec<u8>, PemError> {
    Ok(private_key(key, pem)?.private_key_to_pem_pkcs8()?)
}

/// Shows this certificate, with its chain, to peers.
///
/// # Errors
/// If certificate or key cannot be used, or do not belong together.
pub(crate) fn use_identity(
    context: &mut SslContextBuilder,
    certificate: &str,
    key: &str,
) -> Result<(), PemError> {
    let mut chain = certificates("certificate", certificate)?.into_iter();
    if let Some(own) = chain.next() {
        context.set_certificate(&own)?;
    }
    for issuer in chain {
        context.add_extra_chain_cert(issuer)?;
    }
    let key = private_key("key", key)?;
    // Fails only for a key of another certificate.
    context.set_private_key(&key).map_err(|_| PemError::OtherKey)
}

/// A store that trusts the authorities of a file, and nobody else.
///
/// # Errors
/// If the file has none.
pub(crate) fn authorities(key: &'static str, pem: &str) -> Result<X509Store, PemError> {
    let mut store = X509StoreBuilder::new()?;
    for authority in certificates(key, pem)? {
        store.add_cert(authority)?;
    }
    Ok(store.build())
}
