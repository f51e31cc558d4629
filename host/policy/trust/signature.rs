//! Detached signatures: 64 bytes as they are, or base64 of them.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signature;

use crate::files::{self, Unreadable};

/// A longer file is no signature.
const MAX_SIZE: u64 = 1024;

/// A signature from what stands in a file, a header or an annotation.
pub(super) fn parse(bytes: &[u8]) -> Result<Signature, String> {
    let raw = match <&[u8; 64]>::try_from(bytes) {
        Ok(raw) => *raw,
        Err(_) => {
            let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let raw = STANDARD.decode(text).ok().and_then(|raw| <[u8; 64]>::try_from(raw).ok());
            raw.ok_or_else(|| {
                "is neither 64 bytes nor base64 of them; `openssl pkeyutl -sign -rawin` writes one".to_owned()
            })?
        }
    };
    Ok(Signature::from_bytes(&raw))
}

/// A signature as a header or an annotation takes it.
///
/// # Errors
/// When it is none.
pub fn as_text(bytes: &[u8]) -> Result<String, String> {
    Ok(STANDARD.encode(parse(bytes)?.to_bytes()))
}

/// Where the signature of a plugin's file is.
pub(in crate::policy) fn beside(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".sig");
    path.into()
}

/// The signature beside a plugin's file (`FILE.sig`); none where there is none.
///
/// # Errors
/// When there is one that cannot be read: the second half of a sentence that begins with the
/// plugin.
pub fn read(file: &Path) -> Result<Option<Vec<u8>>, String> {
    let path = beside(file);
    match files::read(&path, MAX_SIZE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(why) if why.is_missing() => Ok(None),
        Err(why @ Unreadable::System(_)) => Err(format!("has a signature ({}) that {why}", path.display())),
        Err(_) => Err(format!("has a signature ({}) that is none; it has 64 bytes", path.display())),
    }
}
