//! The identity of content: its SHA-256. It is validated when it is parsed.

use std::str::FromStr;

use sha2::Digest as _;

use crate::schema;

/// The length of a digest, in bytes.
const LENGTH: usize = 32;
/// The number of hex digits in the short form of a version.
const SHORT: usize = 12;

/// The SHA-256 of some content. As text, 64 hex digits, written in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, derive_more::Debug, derive_more::Display)]
#[debug("{self}")]
#[display("{}", hex::encode(_0))]
pub struct Digest([u8; LENGTH]);

/// A text that is not a SHA-256 in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 hex digits, as `sha256sum` prints them")]
pub struct InvalidDigest;

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Its first 12 hex digits, the short form of a version.
    pub fn short(&self) -> String {
        let mut hex = self.to_string();
        hex.truncate(SHORT);
        hex
    }

    /// Whether its text begins with this. Case matters.
    pub(crate) fn starts_with(&self, prefix: &str) -> bool {
        self.to_string().starts_with(prefix)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let mut bytes = [0; LENGTH];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidDigest)?;
        Ok(Self(bytes))
    }
}

schema::as_text!(Digest);

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest = Digest::of(b"abc");
        assert_eq!((digest.to_string(), digest.short()), (ABC.to_owned(), ABC[..12].to_owned()));
        assert_eq!(ABC.parse(), Ok(digest));
        assert_eq!(ABC.to_uppercase().parse(), Ok(digest), "people write both");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{ABC}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        for wrong in ["", &ABC[1..], &format!("{ABC}0"), &ABC.replace('b', "g"), &"ä".repeat(32)] {
            assert_eq!(wrong.parse::<Digest>(), Err(InvalidDigest), "{wrong}");
        }
    }
}
