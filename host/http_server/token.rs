//! Bearer tokens: how one is read from a request and compared.

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

/// The digest of a token. Its fixed size makes the comparison take constant time.
#[derive(Clone, Debug)]
pub(crate) struct TokenDigest([u8; 32]);

impl TokenDigest {
    pub(crate) fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether this is the token. Takes constant time.
    pub(crate) fn matches(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        let differing = self.0.iter().zip(given).fold(0, |differing, (own, given)| differing | (own ^ given));
        std::hint::black_box(differing) == 0
    }
}

/// The token of a request, if it carries exactly one.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let only = given.next().filter(|_| given.next().is_none())?;
    only.as_bytes().strip_prefix(b"Bearer ").map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_matches() {
        let secret = TokenDigest::new("0123456789abcdef");
        assert!(secret.matches(b"0123456789abcdef"));
        for other in [&b""[..], b"0123456789abcde", b"0123456789abcdef0", b"0123456789abcdeg"] {
            assert!(!secret.matches(other));
        }
    }
}
