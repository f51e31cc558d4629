//! The identity of content: its SHA-256, in hex.

use std::fmt::Write as _;

use sha2::Digest as _;

/// The SHA-256 of these bytes: 64 lower-case hex digits.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in sha2::Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
