//! Mistakes in a configuration, with their locations.

use std::fmt;

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ConfigError {
    /// `file:line`, or the environment variable; the file alone if it does not have the key's table.
    pub place: String,
    /// The line, if the file has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The key, section by section; elements of lists have their number. Empty for the whole file.
    pub key: Vec<String>,
    /// What is wrong and, if not obvious, how to fix it.
    pub text: String,
}

/// All mistakes; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, ConfigError { place, text, .. }) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{place}: {text}")?;
        }
        Ok(())
    }
}
