//! The `[archive]` section.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::time::Duration;

use smart_default::SmartDefault;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use crate::kafka::topic_problem;
use crate::mistake::{Mistake, mistake};
use crate::schema;

/// The `[archive]` section.
#[derive(
    Clone,
    PartialEq,
    SmartDefault,
    derive_more::Debug,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether each message that is stored for absent users is also written to `topic`, before its
    /// record is settled.
    pub enabled: bool,
    /// The topic between gateways and archivers, on the brokers of `[kafka]`.
    #[default("push.archive")]
    pub topic: String,
    /// The consumer group of the archivers.
    #[default("halley-archive")]
    pub group: String,
    /// The database: `mysql://user:password@host[:port]/database`. Gateways with a URL archive as
    /// well; without one, `halley archive` has to run elsewhere. `ssl-mode` (`REQUIRED`, `VERIFY_CA`,
    /// `VERIFY_IDENTITY`), `ssl-ca`, `ssl-cert` and `ssl-key` are its properties for TLS.
    #[debug(skip)] // It contains a password.
    pub url: String,
    /// How long messages are kept, counted from the day on which they were sent.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(90 * 24 * 3600))]
    pub retention: Duration,
    /// Maximum number of rows in a transaction.
    #[default(5000)]
    pub max_rows: usize,
    /// How long a transaction waits to be filled.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(5))]
    pub max_wait: Duration,
    /// Timeout of connecting, including TLS and login.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(5))]
    pub connect_timeout: Duration,
    /// Timeout of a transaction; after it the connection is dropped, and the rows are written again.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(60))]
    pub write_timeout: Duration,
}

/// A `[archive] url` that cannot be used. The message does not repeat it: it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// It is empty.
    #[error("`archive.url` is empty; set it to mysql://user:password@host/database")]
    Missing,
    /// Another scheme, or no URL.
    #[error(
        "`archive.url` is invalid; expected mysql://user:password@host[:port]/database[?ssl-mode=VERIFY_IDENTITY&ssl-ca=/path/to/ca.pem], with special characters of the password percent-encoded"
    )]
    Malformed,
    /// No database is named.
    #[error("`archive.url` names no database; expected mysql://user:password@host[:port]/database")]
    NoDatabase,
}

impl Config {
    /// Whether this process has a database to archive to.
    pub fn has_database(&self) -> bool {
        !self.url.is_empty()
    }

    /// How to connect.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub(super) fn connect_options(&self) -> Result<MySqlConnectOptions, InvalidUrl> {
        if self.url.is_empty() {
            return Err(InvalidUrl::Missing);
        }
        if !self.url.starts_with("mysql://") && !self.url.starts_with("mariadb://") {
            return Err(InvalidUrl::Malformed);
        }
        let options = MySqlConnectOptions::from_str(&self.url).map_err(|_| InvalidUrl::Malformed)?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(InvalidUrl::NoDatabase);
        }
        Ok(options)
    }

    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::from_iter(topic_problem("archive.topic", &self.topic));
        if self.group.is_empty() {
            problems
                .push(mistake!("archive.group", "is empty; archivers that share the topic share a group"));
        }
        if self.has_database() {
            problems.extend(self.connect_options().err().map(|error| Mistake::about("archive.url", error)));
        }
        if self.retention < DAY {
            problems.push(mistake!("archive.retention", "must be at least 1day: whole days are dropped"));
        }
        if self.max_rows == 0 {
            problems.push(mistake!("archive.max_rows", "is 0; it must be at least 1"));
        }
        for (key, value) in [("connect_timeout", self.connect_timeout), ("write_timeout", self.write_timeout)]
        {
            if value.is_zero() {
                problems.push(mistake!("archive.{key}", "is zero; nothing would ever be written"));
            }
        }
        problems
    }

    /// Valid values that are probably not intended.
    pub fn warnings(&self) -> Vec<Mistake> {
        let Ok(options) = self.connect_options() else { return Vec::new() };
        let host = options.get_host().trim_matches(['[', ']']);
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let is_chosen = !matches!(options.get_ssl_mode(), MySqlSslMode::Preferred);
        if is_here || is_chosen || options.get_socket().is_some() {
            return Vec::new();
        }
        vec![mistake!(
            "archive.url",
            "does not require TLS (`ssl-mode`): messages and the password may travel in the clear, and nobody verifies the server; add ?ssl-mode=VERIFY_IDENTITY&ssl-ca=/path/to/ca.pem, or ?ssl-mode=DISABLED where something else encrypts"
        )]
    }
}

/// The length of a day partition.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_and_passwords_are_not() {
        assert_eq!(Config::default().validate(), []);
        let with = |url: &str| Config { url: url.to_owned(), ..Config::default() }.validate()[0].text.clone();
        for (url, expected) in [
            ("postgres://ann:hunter2@db/halley", "expected mysql://"),
            ("mysql://ann:hunter2@db:port/halley", "expected mysql://"),
            ("mysql://ann:hunter2@db?ssl-mode=SOMETIMES", "expected mysql://"),
            ("mysql://ann:hunter2@db", "names no database"),
            ("mysql://ann:hunter2@db/", "names no database"),
        ] {
            let problems = with(url);
            assert!(problems.contains(expected) && !problems.contains("hunter2"), "{url}: {problems}");
        }
        let secret = Config { url: "mysql://ann:hunter2@db/halley".into(), ..Config::default() };
        assert_eq!(secret.validate(), []);
        assert!(!format!("{secret:?}").contains("hunter2"));
        for (url, warned) in [
            ("mysql://ann:x@db/halley", true),
            ("mysql://ann:x@127.0.0.1/halley", false),
            ("mysql://ann:x@[::1]/halley", false),
            ("mysql://ann:x@db/halley?ssl-mode=REQUIRED", false),
            ("mysql://ann:x@db/halley?ssl-mode=DISABLED", false),
        ] {
            let config = Config { url: url.into(), ..Config::default() };
            assert_eq!(config.warnings().len(), usize::from(warned), "{url}: {:?}", config.warnings());
        }
        let odd = Config { max_rows: 0, retention: DAY / 2, topic: "a b".into(), ..Config::default() };
        assert_eq!(odd.validate().len(), 3, "{:?}", odd.validate());
    }
}
