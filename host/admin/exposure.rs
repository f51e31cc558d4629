//! Problems of token files: a gateway does not start if other users may know a token.

use std::path::Path;

use crate::admin::tokens;
use crate::config::admin::Config;
use crate::files::{ReadError, read_secret};

/// Maximum size of a token file, in bytes.
const LONGEST: u64 = 64 * 1024;

impl Config {
    /// The problem of the tokens, if any. Not a part of [`Config::validate`]: tokens may be created and
    /// changed while the gateway runs, which only refuses requests meanwhile.
    pub fn token_problem(&self) -> Option<String> {
        let files = [(tokens::WRITE, &self.token_file), (tokens::READ, &self.read_token_file)];
        files.into_iter().find_map(|(place, file)| tokens::read(place, file.as_deref()).err())
    }

    /// A token file that others may read or write, with the remedy. Unlike the problems that
    /// [`Config::token_problem`] reports, this one is never temporary, and the token may be known.
    pub fn exposed_token(&self) -> Option<String> {
        let files = [
            ("admin.token_file", self.token_file.as_deref()),
            ("admin.read_token_file", self.read_token_file.as_deref()),
        ];
        files.into_iter().find_map(|(key, file)| exposure(key, file?))
    }
}

fn exposure(key: &str, file: &Path) -> Option<String> {
    match read_secret(file, LONGEST) {
        Err(why @ ReadError::Exposed(_)) => Some(format!("`{key}` {} {why}", file.display())),
        _ => None,
    }
}
