//! Public keys in PEM, as `openssl pkey -pubout` writes them.

use std::path::Path;

use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey as _;

use crate::files;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
/// The largest file with keys, in bytes.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;
const END: &str = "-----END PUBLIC KEY-----";

/// Whether this is a PEM text, not a file name.
pub(super) fn is_text(key: &str) -> bool {
    key.trim_start().starts_with("-----BEGIN")
}

/// All keys of these files and texts.
///
/// # Errors
/// When one cannot be read, or is not a public key.
pub(super) fn read_all(sources: &[String]) -> Result<Vec<VerifyingKey>, String> {
    let mut keys = Vec::new();
    for source in sources {
        if is_text(source) {
            keys.extend(parse(source, "a text of `[policies] trusted_keys`")?);
            continue;
        }
        let place = format!("`[policies] trusted_keys` {source}");
        let bytes = files::read(Path::new(source), MAX_SIZE)
            .map_err(|why| format!("cannot be checked: {place} {why}"))?;
        keys.extend(parse(&String::from_utf8_lossy(&bytes), &place)?);
    }
    Ok(keys)
}

/// One key, or several in sequence.
fn parse(text: &str, place: &str) -> Result<Vec<VerifyingKey>, String> {
    if text.contains("PRIVATE KEY-----") {
        return Err(format!(
            "cannot be checked: {place} holds a private key; keep it away from gateways and give what `openssl pkey -in KEY.pem -pubout` writes"
        ));
    }
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let end = rest[begin..].find(END).map_or(rest.len(), |end| begin + end + END.len());
        let key = VerifyingKey::from_public_key_pem(&rest[begin..end]).map_err(|e| {
            format!("cannot be checked: {place} is no ed25519 public key: {e}; make one with `openssl genpkey -algorithm ed25519`")
        })?;
        keys.push(key);
        rest = &rest[end..];
    }
    if keys.is_empty() {
        return Err(format!(
            "cannot be checked: {place} holds no public key in PEM; `openssl pkey -in KEY.pem -pubout` writes one"
        ));
    }
    Ok(keys)
}
