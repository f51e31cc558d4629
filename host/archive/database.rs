//! The connection to MySQL or MariaDB, and what its errors mean.

use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError};
use sqlx::{ConnectOptions as _, Connection as _};

use super::config::{Config, InvalidUrl};

/// Opens connections.
#[derive(Debug, Clone)]
pub(super) struct Database {
    options: MySqlConnectOptions,
    connect_timeout: Duration,
}

/// The database could not be used. Nothing tells whether a transaction that was being committed is in
/// it; writing its rows again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// No connection, or none any more.
    #[error("the archive's database is unreachable: {0}; check `[archive] url`")]
    Unreachable(String),
    /// It answered with an error.
    #[error("the archive's database refused: {0}")]
    Refused(String),
    /// It lacks the tables.
    #[error("the archive's database has no tables of Halley; run `halley archive init`")]
    NotInitialized,
    /// Its tables are of another version of Halley.
    #[error(
        "the archive's tables have version {found}, and this release uses version {expected}; run its `halley archive init` if they are older, or this process in a newer release"
    )]
    Version {
        /// Their version.
        found: i64,
        /// The version of this release.
        expected: i64,
    },
    /// No answer in time.
    #[error("the archive's database did not answer within {0:?}")]
    Timeout(Duration),
}

/// The settings of each connection. `STRICT_ALL_TABLES`: without it, a server that is not strict
/// shortens values that are too long, without an error.
const SETTINGS: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
                        innodb_lock_wait_timeout = 10, transaction_isolation = 'REPEATABLE-READ'";
/// MariaDB before 11.1 calls it otherwise.
const OLDER_SETTINGS: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
                              innodb_lock_wait_timeout = 10, tx_isolation = 'REPEATABLE-READ'";

impl Database {
    /// # Errors
    /// When the URL cannot be used.
    pub(super) fn new(config: &Config) -> Result<Self, InvalidUrl> {
        let options = config
            .connect_options()?
            // sqlx would add its own settings to the session.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .disable_statement_logging();
        Ok(Self { options, connect_timeout: config.connect_timeout })
    }

    /// How to connect, for a pool.
    pub(super) fn options(&self) -> MySqlConnectOptions {
        self.options.clone()
    }

    /// Connects.
    ///
    /// # Errors
    /// If it does not succeed within the timeout.
    pub(super) async fn connect(&self) -> Result<MySqlConnection, DatabaseError> {
        let connecting = async {
            let mut connection = self.options.connect().await?;
            if sqlx::query(SETTINGS).execute(&mut connection).await.is_err() {
                sqlx::query(OLDER_SETTINGS).execute(&mut connection).await?;
            }
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(DatabaseError::Timeout(self.connect_timeout)),
        }
    }

    /// Ends a connection in an orderly way, if that does not take long.
    pub(super) async fn close(&self, connection: MySqlConnection) {
        drop(tokio::time::timeout(self.connect_timeout, connection.close()).await);
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        match mysql_error(&error) {
            Some(mysql) if mysql.number() == NO_SUCH_TABLE => Self::NotInitialized,
            Some(mysql) => Self::Refused(format!("{} (error {})", mysql.message(), mysql.number())),
            None => Self::Unreachable(error.to_string()),
        }
    }
}

/// The server's error, if the server answered.
fn mysql_error(error: &sqlx::Error) -> Option<&MySqlDatabaseError> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()
}

/// `ER_NO_SUCH_TABLE`.
const NO_SUCH_TABLE: u16 = 1146;
/// `ER_NO_PARTITION_FOR_GIVEN_VALUE`.
const NO_PARTITION: u16 = 1526;

/// `ER_DUP_FIELDNAME`.
const COLUMN_EXISTS: u16 = 1060;

/// Whether a column that was to be added is there already.
pub(super) fn has_column_already(error: &sqlx::Error) -> bool {
    mysql_error(error).is_some_and(|mysql| mysql.number() == COLUMN_EXISTS)
}

/// Why the database will never accept a statement because of its values; `None` if the values are not
/// the cause. By the class of the SQLSTATE: 22 is data, 23 and 44 constraints, 45 is raised by triggers.
pub(super) fn refused_values(error: &sqlx::Error) -> Option<String> {
    let mysql = mysql_error(error)?;
    let class = mysql.code().and_then(|code| code.get(..2)).unwrap_or_default();
    let is_values = matches!(class, "22" | "23" | "44" | "45") || mysql.number() == NO_PARTITION;
    is_values.then(|| format!("{} (error {})", mysql.message(), mysql.number()))
}
