//! Tokens: where they are stored, what each permits, and whether other users may know one: then the
//! gateway does not start.
//!
//! A file has one token, or several with names and roles:
//!
//! ```toml
//! [[token]]
//! name = "alice"
//! token = "at least 16 characters"
//! roles = ["operate", "push-policies"]      # each role includes reading
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::blocking::{EndedEarly, run_blocking};
use crate::config::admin::Config;
use crate::files::{self, ReadError};
use crate::http_server::token::{SHORTEST, TokenDigest, Tokens, syntax_problem};
use crate::mistake::Mistake;

/// What a token permits. Each role includes reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Role {
    /// To read.
    Read,
    /// To roll back, release, promote and abandon versions of policies.
    Operate,
    /// To push new versions.
    PushPolicies,
}

const EVERYTHING: &[Role] = &[Role::Read, Role::Operate, Role::PushPolicies];

/// Where a token is configured.
#[derive(Clone, Copy, Debug)]
struct TokenSource {
    /// The environment variable, which takes precedence.
    variable: &'static str,
    /// The key that names a file.
    key: &'static str,
    /// What a single token permits.
    roles: &'static [Role],
}

/// A single token grants everything.
const WRITE: TokenSource =
    TokenSource { variable: "HALLEY_ADMIN_TOKEN", key: "admin.token_file", roles: EVERYTHING };
/// A single token grants reads.
const READ: TokenSource =
    TokenSource { variable: "HALLEY_ADMIN_READ_TOKEN", key: "admin.read_token_file", roles: &[Role::Read] };

/// Maximum size of a token file, in bytes.
const LONGEST_FILE: u64 = 64 * 1024;

/// Why a configured token cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("{place} {why}; no token is accepted")]
    File { place: String, why: ReadError },
    #[error("{0} has fewer than {SHORTEST} characters; no token is accepted")]
    Short(String),
    #[error("{place}: {why}; no token is accepted")]
    Syntax { place: String, why: String },
    #[error(
        "{place}: `{name}` has the role `{role:?}`, which this file does not grant; no token is accepted"
    )]
    Role { place: String, name: String, role: Role },
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}

impl Config {
    /// The problems of the tokens. Not a part of [`Config::validate`]: tokens may be created and
    /// changed while the gateway runs, which only refuses requests meanwhile.
    pub fn token_problems(&self) -> Vec<Mistake> {
        let wrong = |(source, file): (TokenSource, Option<&Path>)| {
            Some(Mistake::about(source.key, read(source, file).err()?))
        };
        self.token_files().into_iter().filter_map(wrong).collect()
    }

    /// A token file that others may read or write, with the remedy. Unlike the problems that
    /// [`Config::token_problems`] reports, this one is never temporary, and the token may be known.
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

/// What the holder of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The token's name, for the log.
    pub(super) name: Arc<str>,
    pub(super) roles: Arc<[Role]>,
}

impl Tokens<Grant> {
    /// Whether some token has this role.
    pub(super) fn has(&self, role: Role) -> bool {
        self.0.iter().any(|(_, grant)| grant.roles.contains(&role))
    }

    /// Adds a token.
    pub(super) fn add(&mut self, name: &str, token: &str, roles: &[Role]) {
        self.0.push((TokenDigest::new(token), Grant { name: name.into(), roles: roles.into() }));
    }
}

impl TokenFiles {
    /// Reads both.
    ///
    /// # Errors
    /// If a token is configured and cannot be used: then none is accepted.
    pub(super) async fn current(&self) -> Result<Tokens<Grant>, TokenError> {
        let files = self.clone();
        let read = run_blocking("reading the tokens", move || {
            let mut all = Tokens::default();
            for (source, file) in [(WRITE, files.write), (READ, files.read)] {
                all.0.append(&mut read(source, file.as_deref())?.0);
            }
            Ok(all)
        });
        read.await?
    }
}

/// The tokens configured here.
///
/// # Errors
/// If they are configured and cannot be used.
fn read(source: TokenSource, file: Option<&Path>) -> Result<Tokens<Grant>, TokenError> {
    let mut tokens = Tokens::default();
    let (text, place) = match (std::env::var(source.variable), file) {
        (Ok(token), _) => (token, source.variable.to_owned()),
        (Err(_), None) => return Ok(tokens),
        (Err(_), Some(file)) => (source.read_file(file)?, source.place(file)),
    };
    for NamedToken { name, token, roles } in source.tokens(&text, &place)? {
        if token.trim().len() < SHORTEST {
            return Err(TokenError::Short(if name.is_empty() {
                place
            } else {
                format!("{place}: `{name}`")
            }));
        }
        if let Some(role) = roles.iter().find(|role| !source.roles.contains(role)) {
            return Err(TokenError::Role { place, name, role: *role });
        }
        let name = if name.is_empty() { source.key } else { &name };
        tokens.add(name, token.trim(), &roles);
    }
    Ok(tokens)
}

/// A file with several tokens.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenTable {
    token: Vec<NamedToken>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedToken {
    name: String,
    token: String,
    roles: Vec<Role>,
}

impl TokenSource {
    /// The tokens in a text: one with all roles, or a table of them.
    fn tokens(self, text: &str, place: &str) -> Result<Vec<NamedToken>, TokenError> {
        if !text.contains("[[token]]") {
            if place != self.variable && text.trim().contains(char::is_whitespace) {
                let why = "one token is one word without spaces; several are `[[token]]` tables".to_owned();
                return Err(TokenError::Syntax { place: place.to_owned(), why });
            }
            let (name, token) = (String::new(), text.to_owned());
            return Ok(vec![NamedToken { name, token, roles: self.roles.to_vec() }]);
        }
        let table: TokenTable = toml::from_str(text).map_err(|error| TokenError::Syntax {
            place: place.to_owned(),
            why: syntax_problem(text, &error),
        })?;
        Ok(table.token)
    }

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
            let grant = current.grant(b"0123456789abcdef").unwrap();
            assert_eq!(grant.roles.contains(&Role::PushPolicies), tokens.write.is_some());
            assert_eq!(current.grant(b"0123456789abcde"), None);
        }
    }

    #[tokio::test]
    async fn a_file_may_have_several_tokens_with_roles() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let write = |text: &str| write_secret(&file, text);
        let tokens = TokenFiles { write: Some(file.clone()), read: None };
        write(
            "[[token]]\nname = \"ci\"\ntoken = \"ci-0123456789abcdef\"\nroles = [\"push-policies\"]\n\
             [[token]]\nname = \"eve\"\ntoken = \"eve-0123456789abcdef\"\nroles = [\"read\"]\n",
        );
        let current = tokens.current().await.unwrap();
        let grant = current.grant(b"ci-0123456789abcdef").unwrap();
        assert_eq!((&*grant.name, &*grant.roles), ("ci", &[Role::PushPolicies][..]));
        assert!(current.has(Role::Read) && !current.has(Role::Operate));

        let secret = "[[token]]\nname = \"a\"\ntoken = 0123456789abcdef\nroles = []\n";
        for (text, why) in [
            (secret, "admin.token_file"),
            ("[[token]]\nname = \"a\"\ntoken = \"short\"\nroles = []\n", "`a` has fewer than 16"),
            (
                "[[token]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\nroles = [\"root\"]\n",
                "unknown variant",
            ),
            ("[[token]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\n", "missing field `roles`"),
            ("[[token]]\nname = \"a\"\ntoken = 123456789\nroles = []\n", "line 3: expected a string"),
            ("[[tokens]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\n", "one word without spaces"),
        ] {
            write(text);
            let error = tokens.current().await.unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("123456789"), "{text}: {error}");
        }
        // The file for readers cannot permit more.
        write("[[token]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\nroles = [\"operate\"]\n");
        let readers = TokenFiles { write: None, read: Some(file.clone()) };
        let error = readers.current().await.unwrap_err().to_string();
        assert!(error.contains("does not grant"), "{error}");
    }
}
