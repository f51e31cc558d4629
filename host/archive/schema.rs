//! The archive's tables, and their versions.
//!
//! `halley archive init` creates and migrates them, in steps that are never changed once released.

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use super::database::{Database, DatabaseError, has_column_already};
use super::{Config, day_partitions};
use crate::time;

/// The version of the tables that this program reads and writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// The steps from each version to the next. `{days}` stands for the partitions of the present days.
const STEPS: [&[&str]; 4] = [
    &[
        // The primary key is a message's identity, and has the partitions' column.
        // Ids are bytes: no collation treats two of them as equal.
        "CREATE TABLE IF NOT EXISTS halley_inbox (
  user VARBINARY(255) NOT NULL,
  sent_ms BIGINT NOT NULL,
  topic VARBINARY(249) NOT NULL,
  part INT NOT NULL,
  off BIGINT NOT NULL,
  fingerprint BIGINT UNSIGNED NOT NULL,
  operation INT NOT NULL,
  room VARBINARY(255) NOT NULL,
  body LONGBLOB NOT NULL,
  stored_ms BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL,
  cause VARBINARY(32) NOT NULL,
  PRIMARY KEY (user, sent_ms, topic, part, off, fingerprint)
) ENGINE = InnoDB
PARTITION BY RANGE (sent_ms) (
  {days}
)",
        // Users who were erased: what was stored before is never written again.
        "CREATE TABLE IF NOT EXISTS halley_erased (
  user VARBINARY(255) NOT NULL PRIMARY KEY,
  erased_ms BIGINT NOT NULL
) ENGINE = InnoDB",
    ],
    &[
        // A message's place in the user's inbox, which is the order of pages.
        "ALTER TABLE halley_inbox
  ADD COLUMN inbox_ms BIGINT UNSIGNED NOT NULL DEFAULT 0,
  ADD COLUMN inbox_number BIGINT UNSIGNED NOT NULL DEFAULT 0,
  ADD KEY inbox_order (user, inbox_ms, inbox_number)",
        "UPDATE halley_inbox SET inbox_ms = GREATEST(stored_ms, 0), inbox_number = fingerprint WHERE inbox_ms = 0",
    ],
    &[
        // Messages of rooms that have a history. Pages are in the order of the places in the history.
        "CREATE TABLE IF NOT EXISTS halley_history (
  room VARBINARY(255) NOT NULL,
  sent_ms BIGINT NOT NULL,
  topic VARBINARY(249) NOT NULL,
  part INT NOT NULL,
  off BIGINT NOT NULL,
  fingerprint BIGINT UNSIGNED NOT NULL,
  operation INT NOT NULL,
  body LONGBLOB NOT NULL,
  stored_ms BIGINT NOT NULL,
  expires_ms BIGINT NOT NULL,
  history_ms BIGINT UNSIGNED NOT NULL,
  history_number BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (room, sent_ms, topic, part, off, fingerprint),
  KEY history_order (room, history_ms, history_number)
) ENGINE = InnoDB
PARTITION BY RANGE (sent_ms) (
  {days}
)",
        // A row may refer to the message in the room's history instead of having its body: not 0.
        "ALTER TABLE halley_inbox
  ADD COLUMN history_ms BIGINT UNSIGNED NOT NULL DEFAULT 0,
  ADD COLUMN history_number BIGINT UNSIGNED NOT NULL DEFAULT 0",
        // Whose messages were dropped with their day, and the place of the oldest of them.
        "CREATE TABLE IF NOT EXISTS halley_dropped (
  kept VARBINARY(16) NOT NULL,
  owner VARBINARY(255) NOT NULL,
  oldest_ms BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (kept, owner)
) ENGINE = InnoDB",
    ],
    &[
        // The size of the body to which a row refers: how many can be read at once.
        "ALTER TABLE halley_inbox ADD COLUMN body_size BIGINT UNSIGNED NOT NULL DEFAULT 0",
    ],
];

const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS halley_archive_version (
  version BIGINT NOT NULL PRIMARY KEY
) ENGINE = InnoDB";

/// All statements from an empty database to the present version.
pub fn statements() -> Vec<String> {
    let steps = (0..VERSION).flat_map(step);
    std::iter::once(VERSIONS.to_owned()).chain(steps).collect()
}

/// The statements that lead from this version to the next.
fn step(from: i64) -> Vec<String> {
    let days = day_partitions::definition(time::now_record_ms());
    let step = usize::try_from(from).ok().and_then(|from| STEPS.get(from)).copied().unwrap_or_default();
    let mut statements: Vec<String> = step.iter().map(|text| text.replace("{days}", &days)).collect();
    statements.push(format!("INSERT INTO halley_archive_version (version) VALUES ({})", from + 1));
    statements
}

/// Creates the tables, or migrates them. Returns the versions before and after.
///
/// # Errors
/// If the database is unreachable or refuses, or its tables are newer.
pub async fn init(config: &Config) -> anyhow::Result<(i64, i64)> {
    let database = Database::new(config)?;
    let mut connection = database.connect().await?;
    sqlx::query(VERSIONS).execute(&mut connection).await.map_err(DatabaseError::from)?;
    let before = version(&mut connection).await?;
    if before > VERSION {
        return Err(DatabaseError::Version { found: before, expected: VERSION }.into());
    }
    for from in before..VERSION {
        // Statements that define tables end transactions: each can be repeated instead.
        for statement in step(from) {
            match sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await {
                // Done before, by a migration that was interrupted.
                Err(error) if has_column_already(&error) => {}
                done => {
                    done.map_err(DatabaseError::from)?;
                }
            }
        }
    }
    database.close(connection).await;
    Ok((before, VERSION))
}

/// Checks that the database can be used.
///
/// # Errors
/// What is wrong, and how to fix it.
pub async fn probe(config: &Config) -> anyhow::Result<String> {
    let database = Database::new(config)?;
    let mut connection = database.connect().await?;
    check(&mut connection).await?;
    database.close(connection).await;
    Ok(format!("its tables have version {VERSION}"))
}

async fn version(connection: &mut MySqlConnection) -> Result<i64, DatabaseError> {
    let newest = sqlx::query_scalar::<_, Option<i64>>("SELECT MAX(version) FROM halley_archive_version");
    Ok(newest.fetch_one(connection).await?.unwrap_or(0))
}

/// Checks that the tables are there, of this version.
///
/// # Errors
/// What is missing.
pub(super) async fn check(connection: &mut MySqlConnection) -> Result<(), DatabaseError> {
    match version(connection).await? {
        VERSION => Ok(()),
        0 => Err(DatabaseError::NotInitialized),
        found => Err(DatabaseError::Version { found, expected: VERSION }),
    }
}
