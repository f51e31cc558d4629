//! Public keys in PEM, as `openssl pkey -pubout` writes them.

use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey as _;

use crate::artifact::error::ArtifactError;
use crate::files;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
/// The largest file with keys, in bytes.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;
const END: &str = "-----END PUBLIC KEY-----";

/// One of `[policies] trusted_keys`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(from = "String", into = "String")]
pub enum TrustedKey {
    /// A text with one public key, or several.
    Pem(String),
    /// A file with such a text. It is followed.
    File(PathBuf),
}

impl TrustedKey {
    /// Makes a relative path relative to this folder.
    pub(crate) fn resolve(&mut self, base: &Path) {
        if let Self::File(file) = self {
            *file = base.join(&*file);
        }
    }
}

impl From<String> for TrustedKey {
    fn from(text: String) -> Self {
        if text.trim_start().starts_with("-----BEGIN") { Self::Pem(text) } else { Self::File(text.into()) }
    }
}

impl From<TrustedKey> for String {
    fn from(key: TrustedKey) -> Self {
        match key {
            TrustedKey::Pem(text) => text,
            TrustedKey::File(file) => file.display().to_string(),
        }
    }
}

/// All keys of these files and texts.
///
/// # Errors
/// When one cannot be read, or is not a public key.
pub(super) fn read_all(sources: &[TrustedKey], named_by: &str) -> Result<Vec<VerifyingKey>, ArtifactError> {
    let mut keys = Vec::new();
    for source in sources {
        let file = match source {
            TrustedKey::Pem(text) => {
                keys.extend(parse(text, &format!("a text of {named_by}"))?);
                continue;
            }
            TrustedKey::File(file) => file,
        };
        let place = format!("{named_by} {}", file.display());
        let bytes = files::read(file, MAX_SIZE)
            .map_err(|why| ArtifactError::Unreadable(format!("cannot be checked: {place} {why}")))?;
        keys.extend(parse(&String::from_utf8_lossy(&bytes), &place)?);
    }
    Ok(keys)
}

/// One key, or several in sequence.
fn parse(text: &str, place: &str) -> Result<Vec<VerifyingKey>, ArtifactError> {
    if text.contains("PRIVATE KEY-----") {
        return Err(ArtifactError::Key(format!(
            "cannot be checked: {place} holds a private key; keep it away from gateways and give what `openssl pkey -in KEY.pem -pubout` writes"
        )));
    }
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let end = rest[begin..].find(END).map_or(rest.len(), |end| begin + end + END.len());
        let key = VerifyingKey::from_public_key_pem(&rest[begin..end]).map_err(|e| {
            ArtifactError::Key(format!("cannot be checked: {place} is no ed25519 public key: {e}; make one with `openssl genpkey -algorithm ed25519`"))
        })?;
        keys.push(key);
        rest = &rest[end..];
    }
    if keys.is_empty() {
        return Err(ArtifactError::Key(format!(
            "cannot be checked: {place} holds no public key in PEM; `openssl pkey -in KEY.pem -pubout` writes one"
        )));
    }
    Ok(keys)
}
