//! Bearer tokens: how one is read from a request and compared.

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use smart_default::SmartDefault;
use subtle::ConstantTimeEq as _;

/// A shorter token is too easy to guess.
pub(crate) const SHORTEST: usize = 16;

/// The digest of a token. Its fixed size makes the comparison take constant time.
#[derive(Clone, Debug)]
pub(crate) struct TokenDigest([u8; 32]);

impl TokenDigest {
    pub(crate) fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether this is the token. Takes constant time.
    fn matches(&self, given: &[u8]) -> bool {
        self.0.ct_eq(&Sha256::digest(given)).into()
    }
}

/// Tokens, and what each grants.
#[derive(Clone, Debug, SmartDefault)]
pub(crate) struct Tokens<G>(pub(crate) Vec<(TokenDigest, G)>);

impl<G: Clone> Tokens<G> {
    /// What this token grants. Takes the same time whichever token matches.
    pub(crate) fn grant(&self, given: &[u8]) -> Option<G> {
        let mut found = None;
        for (token, grant) in &self.0 {
            if token.matches(given) {
                found = Some(grant.clone());
            }
        }
        found
    }
}

/// What is wrong with a file of tokens, and in which line; without values, which may be tokens.
pub(crate) fn syntax_problem(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let message = error.message().replace('\n', ", ");
    match message.split_once(", expected ") {
        Some((wrong, expected)) if wrong.starts_with("invalid") => {
            format!("line {line}: expected {expected}")
        }
        _ => format!("line {line}: {message}"),
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
