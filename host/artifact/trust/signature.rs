//! Detached signatures: a signed statement, 64 bytes over the file alone, or base64 of either.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signature;

use crate::artifact::error::ArtifactError;
use crate::artifact::trust::statement::{self, Statement};
use crate::files::{self, ReadError};

/// The maximum size of a signature file, in bytes.
const MAX_SIZE: u64 = 1024;

/// The formats of signatures.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParsedSignature {
    /// Over a statement.
    Statement(Statement, Signature),
    /// Over the file alone.
    Bare(Signature),
}

/// Parses a signature from a file, a header or an annotation.
pub(super) fn parse(bytes: &[u8]) -> Result<ParsedSignature, ArtifactError> {
    if let Some(signed) = plain(bytes) {
        return Ok(signed);
    }
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let signed = STANDARD.decode(text).ok().and_then(|decoded| plain(&decoded));
    signed.ok_or_else(|| {
        let why = "is neither what `halley plugin sign` writes nor base64 of it; sign the plugin again";
        ArtifactError::Untrusted(why.to_owned())
    })
}

fn plain(bytes: &[u8]) -> Option<ParsedSignature> {
    if let Ok(raw) = <&[u8; 64]>::try_from(bytes) {
        return Some(ParsedSignature::Bare(Signature::from_bytes(raw)));
    }
    let (statement, signature) = statement::parse(std::str::from_utf8(bytes).ok()?)?;
    Some(ParsedSignature::Statement(statement, signature))
}

/// A signature in the format of headers and annotations.
///
/// # Errors
/// When it is not a signature.
pub fn as_text(bytes: &[u8]) -> Result<String, ArtifactError> {
    Ok(match parse(bytes)? {
        ParsedSignature::Bare(signature) => STANDARD.encode(signature.to_bytes()),
        ParsedSignature::Statement(statement, signature) => {
            STANDARD.encode(statement::with_signature(&statement, &signature))
        }
    })
}

/// The path of the signature of a plugin's file.
pub fn signature_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".sig");
    path.into()
}

/// The signature of a plugin's file (`FILE.sig`), if it exists.
///
/// # Errors
/// When it cannot be read: the second half of a sentence that begins with the plugin.
pub fn read(file: &Path) -> Result<Option<Vec<u8>>, ArtifactError> {
    let path = signature_path(file);
    match files::read(&path, MAX_SIZE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(why) if why.is_missing() => Ok(None),
        Err(why @ ReadError::System(_)) => {
            Err(ArtifactError::Unreadable(format!("has a signature ({}) that {why}", path.display())))
        }
        Err(_) => Err(ArtifactError::Unreadable(format!(
            "has an invalid signature ({}); `halley plugin sign` writes one",
            path.display()
        ))),
    }
}
