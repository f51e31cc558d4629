//! What a signer states about a version: the plugin's name, the version's number, and the file's
//! hash.
//!
//! ```text
//! halley-plugin-v1
//! name: keyword-filter
//! version: 7
//! sha256: 0123...
//! signature: <base64>
//! ```
//!
//! The signature is ed25519 over the first four lines, each with its newline: the output of `openssl
//! pkeyutl -sign -rawin`. A signature over a file alone cannot be mistaken for one of these, because
//! plugin files begin differently.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::{Signature, Signer as _, SigningKey};

use crate::artifact::error::ArtifactError;
use crate::digest::Digest;

/// The first line.
pub(super) const BEGIN: &str = "halley-plugin-v1\n";

/// The signed statement.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{BEGIN}name: {name}\nversion: {version}\nsha256: {sha256}\n")]
pub(crate) struct Statement {
    /// The plugin's name in the configuration.
    pub(crate) name: String,
    /// Increases with every version.
    pub(crate) version: u64,
    /// The SHA-256 of the file.
    pub(crate) sha256: Digest,
}

/// Parses a statement with its signature, exactly as [`sign`] writes it.
pub(super) fn parse(text: &str) -> Option<(Statement, Signature)> {
    let mut lines = text.strip_prefix(BEGIN)?.lines();
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(": ");
    let statement = Statement {
        name: value("name")?.to_owned(),
        version: value("version")?.parse().ok()?,
        sha256: value("sha256")?.parse().ok()?,
    };
    let signature = STANDARD.decode(value("signature")?).ok()?;
    let signature = Signature::from_bytes(&<[u8; 64]>::try_from(signature).ok()?);
    // There is only one way to write a statement, so the signed bytes can be reproduced from it.
    (with_signature(&statement, &signature) == text).then_some((statement, signature))
}

/// Signs a version of a plugin with an ed25519 private key in PEM. Returns the content of FILE.sig.
///
/// # Errors
/// When the key is not such a key.
pub fn sign(key: &str, name: &str, version: u64, bytes: &[u8]) -> Result<String, ArtifactError> {
    let key = SigningKey::from_pkcs8_pem(key).map_err(|why| {
        ArtifactError::Key(format!("is not an ed25519 private key: {why}; make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`"))
    })?;
    let statement = Statement { name: name.to_owned(), version, sha256: Digest::of(bytes) };
    let signature = key.sign(statement.to_string().as_bytes());
    Ok(with_signature(&statement, &signature))
}

pub(super) fn with_signature(statement: &Statement, signature: &Signature) -> String {
    format!("{statement}signature: {}\n", STANDARD.encode(signature.to_bytes()))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::pkcs8::EncodePrivateKey as _;
    use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;

    use super::*;

    #[test]
    fn a_statement_is_read_in_one_way_only() {
        let key = SigningKey::from_bytes(&[1; 32]).to_pkcs8_pem(LineEnding::LF).unwrap();
        let text = sign(&key, "p", 7, b"file").unwrap();
        let (statement, _) = parse(&text).unwrap();
        assert_eq!(statement, Statement { name: "p".into(), version: 7, sha256: Digest::of(b"file") });
        for other in [
            text.replace("version: 7", "version: 07"),
            text.replace("version: 7", "version: +7"),
            text.replace("version: 7", "version: -7"),
            text.replace('\n', "\r\n"),
            text.trim_end().to_owned(),
            format!("{text}more\n"),
            text.replace("sha256", "sha512"),
            text.replace("-v1", "-v2"),
            text.replace("signature: ", "signature: AA"),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
        assert!(
            sign("-----BEGIN PRIVATE KEY-----\n", "p", 1, b"")
                .unwrap_err()
                .to_string()
                .contains("openssl genpkey")
        );
    }
}
