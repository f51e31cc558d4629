//! Tokens: where they are stored, and whether other users may know one: then the gateway does not
//! start.

use std::path::{Path, PathBuf};

use crate::blocking::{EndedEarly, run_blocking};
use crate::config::admin::Config;
use crate::files::{self, ReadError};
use crate::http_server::token::TokenDigest;

/// Where a token is configured.
#[derive(Clone, Copy, Debug)]
struct TokenSource {
    /// The environment variable, which takes precedence.
    variable: &'static str,
    /// The key that names a file.
    key: &'static str,
}

/// The token that grants everything.
const WRITE: TokenSource = TokenSource { variable: "HALLEY_ADMIN_TOKEN", key: "admin.token_file" };
/// The token that grants reads.
const READ: TokenSource = TokenSource { variable: "HALLEY_ADMIN_READ_TOKEN", key: "admin.read_token_file" };

/// Maximum size of a token file, in bytes.
const LONGEST_FILE: u64 = 64 * 1024;
/// A shorter token is too easy to guess.
const SHORTEST: usize = 16;

/// Why a configured token cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("{place} {why}; no token is accepted")]
    File { place: String, why: ReadError },
    #[error("{0} has fewer than {SHORTEST} characters; no token is accepted")]
    Short(String),
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}

impl Config {
    /// The problem of the tokens, if any. Not a part of [`Config::validate`]: tokens may be created and
    /// changed while the gateway runs, which only refuses requests meanwhile.
    pub fn token_problem(&self) -> Option<String> {
        let wrong =
            |(source, file): (TokenSource, Option<&Path>)| Some(read(source, file).err()?.to_string());
        self.token_files().into_iter().find_map(wrong)
    }

    /// A token file that others may read or write, with the remedy. Unlike the problems that
    /// [`Config::token_problem`] reports, this one is never temporary, and the token may be known.
    pub fn exposed_token(&self) -> Option<String> {
        self.token_files().into_iter().find_map(|(source, file)| match source.read_file(file?) {
            Err(TokenError::File { place, why: why @ ReadError::Exposed(_) }) => {
                Some(format!("{place} {why}"))
            }
            _ => None,
        })
    }

    fn token_files(&self) -> [(TokenSource, Option<&Path>); 2] {
        [(WRITE, self.token_file.as_deref()), (READ, self.read_token_file.as_deref())]
    }
}

/// The tokens of a gateway. They are read for each request, so that they can be changed while it
/// runs.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenFiles {
    /// The file for [`WRITE`].
    pub(super) write: Option<PathBuf>,
    /// The file for [`READ`].
    pub(super) read: Option<PathBuf>,
}

/// The tokens at the time of a request.
#[derive(Debug, Default)]
pub(super) struct TokenSet {
    /// Grants everything.
    pub(super) write: Option<TokenDigest>,
    /// Grants reads.
    pub(super) read: Option<TokenDigest>,
}

impl TokenFiles {
    /// Reads both.
    ///
    /// # Errors
    /// If a token is configured and cannot be used: then none is accepted.
    pub(super) async fn current(&self) -> Result<TokenSet, TokenError> {
        let files = self.clone();
        let read = run_blocking("reading the tokens", move || {
            let secret = |source, file: Option<PathBuf>| -> Result<Option<TokenDigest>, TokenError> {
                Ok(read(source, file.as_deref())?.as_deref().map(TokenDigest::new))
            };
            Ok(TokenSet { write: secret(WRITE, files.write)?, read: secret(READ, files.read)? })
        });
        read.await?
    }
}

/// The token configured here; `None` if none is configured.
///
/// # Errors
/// If it is configured and cannot be used.
fn read(source: TokenSource, file: Option<&Path>) -> Result<Option<String>, TokenError> {
    let (token, place) = match (std::env::var(source.variable), file) {
        (Ok(token), _) => (token, source.variable.to_owned()),
        (Err(_), None) => return Ok(None),
        (Err(_), Some(file)) => (source.read_file(file)?, source.place(file)),
    };
    let token = token.trim();
    if token.len() < SHORTEST { Err(TokenError::Short(place)) } else { Ok(Some(token.to_owned())) }
}

impl TokenSource {
    fn place(self, file: &Path) -> String {
        format!("`{}` {}", self.key, file.display())
    }

    fn read_file(self, file: &Path) -> Result<String, TokenError> {
        files::read_secret(file, LONGEST_FILE)
            .map_err(|why| TokenError::File { place: self.place(file), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::write_secret;

    #[tokio::test]
    async fn token_files_are_read_and_validated_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for tokens in [
            TokenFiles { write: Some(file.clone()), read: None },
            TokenFiles { write: None, read: Some(file.clone()) },
        ] {
            drop(std::fs::remove_file(&file));
            let why = tokens.current().await.unwrap_err().to_string();
            assert!(why.contains("cannot be read"), "{why}");
            write_secret(&file, "short\n");
            let why = tokens.current().await.unwrap_err().to_string();
            assert!(why.contains("fewer than 16"), "{why}");
            write_secret(&file, "0123456789abcdef\n");
            let current = tokens.current().await.unwrap();
            assert_eq!(
                (current.write.is_some(), current.read.is_some()),
                (tokens.write.is_some(), tokens.read.is_some())
            );
        }
    }
}
