//! The tokens of the API: a TOML file, read again when it changes.
//!
//! ```toml
//! [[token]]
//! name = "comets"
//! token = "at least 16 characters"
//!
//! [[token]]
//! name = "support-eu"
//! token = "another one, at least 16 characters"
//! read_only = true
//! users = ["eu-"]          # only users whose id begins like this
//! rooms = ["im_eu_"]       # only histories of rooms whose id begins like this
//! ```
//!
//! A token that is limited to users reads no history, unless it has `rooms`.
//!
//! See [`Reloaded`] for what a mistake in a changed file does.

use std::path::PathBuf;
use std::sync::Arc;

use crate::blocking::run_blocking;
use crate::http_server::token::{SHORTEST, TokenDigest, Tokens, syntax_problem};
use crate::reloaded::{ReloadError, Reloaded, SourceFile};

/// What a client may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The token's name, for the log.
    pub(super) name: Arc<str>,
    pub(super) read_only: bool,
    /// Prefixes of the users; empty: all.
    pub(super) users: Arc<[String]>,
    /// Prefixes of the rooms; empty: all if `users` is empty as well, otherwise none.
    pub(super) rooms: Arc<[String]>,
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
enum InvalidTokens {
    #[error("{0}")]
    Syntax(String),
    #[error("it has no [[token]]")]
    Empty,
    #[error("token `{0}` has fewer than {SHORTEST} characters")]
    Short(String),
    #[error("token `{0}` has an empty prefix in `users` or `rooms`; leave them out for all")]
    EmptyPrefix(String),
}

/// The file; `None` if no tokens are configured.
#[derive(Clone)]
pub(super) struct TokenFile(Option<Arc<Reloaded<Arc<Tokens<Grant>>>>>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContent {
    token: Vec<TokenEntry>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: String,
    token: String,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    rooms: Vec<String>,
}

impl Grant {
    /// Everything, for a listener without tokens.
    pub(super) fn everything() -> Self {
        Self { name: "local".into(), read_only: false, users: Arc::default(), rooms: Arc::default() }
    }

    /// Whether it covers this user.
    pub(super) fn covers(&self, user: &str) -> bool {
        self.users.is_empty() || self.users.iter().any(|prefix| user.starts_with(prefix.as_str()))
    }

    /// Whether it covers the history of this room.
    pub(super) fn covers_room(&self, room: &str) -> bool {
        match self.rooms.is_empty() {
            true => self.users.is_empty(),
            false => self.rooms.iter().any(|prefix| room.starts_with(prefix.as_str())),
        }
    }
}

impl Tokens<Grant> {
    fn parse(text: &str) -> Result<Self, InvalidTokens> {
        let content: FileContent =
            toml::from_str(text).map_err(|error| InvalidTokens::Syntax(syntax_problem(text, &error)))?;
        if content.token.is_empty() {
            return Err(InvalidTokens::Empty);
        }
        let token = |entry: TokenEntry| {
            let TokenEntry { name, token, read_only, users, rooms } = entry;
            if token.trim().len() < SHORTEST {
                return Err(InvalidTokens::Short(name));
            }
            if users.iter().chain(&rooms).any(String::is_empty) {
                return Err(InvalidTokens::EmptyPrefix(name));
            }
            let grant = Grant { name: name.into(), read_only, users: users.into(), rooms: rooms.into() };
            Ok((TokenDigest::new(token.trim()), grant))
        };
        content.token.into_iter().map(token).collect::<Result<_, _>>().map(Self)
    }
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(super) async fn load(file: Option<PathBuf>) -> Result<Self, ReloadError> {
        run_blocking("reading the tokens", move || Self::load_now(file)).await?
    }

    /// As [`TokenFile::load`], for a command: blocks while it reads.
    ///
    /// # Errors
    /// As [`TokenFile::load`].
    pub(super) fn load_now(file: Option<PathBuf>) -> Result<Self, ReloadError> {
        let Some(path) = file else { return Ok(Self(None)) };
        let parse = |contents: &[String]| Ok(Arc::new(Tokens::parse(&contents.concat())?));
        let files = vec![SourceFile { path, is_secret: true }];
        Ok(Self(Some(Arc::new(Reloaded::load_now("[api] token_file", files, parse)?))))
    }

    /// Why the file cannot be used as it is now.
    pub(super) fn problem(&self) -> Option<String> {
        self.0.as_ref()?.problem()
    }

    /// The current tokens; `None` if no file is configured.
    pub(super) async fn current(&self) -> Option<Arc<Tokens<Grant>>> {
        match &self.0 {
            Some(file) => Some(file.current().await),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_names_and_limits() {
        let text = r#"
            [[token]]
            name = "comets"
            token = "0123456789abcdef"
            [[token]]
            name = "support"
            token = "fedcba9876543210"
            read_only = true
            users = ["eu-", "uk-"]
            [[token]]
            name = "rooms"
            token = "0123456789fedcba"
            users = ["eu-"]
            rooms = ["im_"]
        "#;
        let table = Tokens::parse(text).expect("valid");
        let comets = table.grant(b"0123456789abcdef").expect("known");
        assert!(!comets.read_only && comets.covers("anyone"));
        let support = table.grant(b"fedcba9876543210").expect("known");
        assert!(support.read_only && support.covers("uk-7") && !support.covers("us-7"));
        let rooms = table.grant(b"0123456789fedcba").expect("known");
        let may_read =
            [&comets, &support, &rooms].map(|grant| (grant.covers_room("im_1"), grant.covers_room("x")));
        assert_eq!(may_read, [(true, true), (false, false), (true, false)]);
        assert_eq!(table.grant(b"0123456789abcde"), None);
    }

    #[test]
    fn mistakes_in_the_file_are_refused() {
        for (text, why) in [
            ("", "missing field `token`"),
            ("token = []", "no [[token]]"),
            ("[[token]]\nname = \"a\"\ntoken = \"short\"", "fewer than 16"),
            ("[[token]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\nuser = [\"a\"]", "unknown field `user`"),
            ("[[token]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\nusers = [\"\"]", "empty prefix"),
        ] {
            let error = Tokens::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
