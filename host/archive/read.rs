//! Reads and erases messages of one user.

use std::time::SystemTime;

use sqlx::mysql::{MySql, MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::{QueryBuilder, Row as _};

use super::database::{Database, DatabaseError};
use super::row::{self, ArchivedMessage};
use super::{Config, InvalidUrl};
use crate::inbox::{OlderRange, Position};
use crate::message::UserId;
use crate::time;

/// Connections for reading.
const CONNECTIONS: u32 = 4;
/// Rows deleted in one statement.
const DELETE_ROWS: u64 = 5_000;

/// The archive of all users. Cheap to clone; clones share the connections.
#[derive(Debug, Clone)]
pub struct Archive {
    pool: MySqlPool,
}

impl Archive {
    /// The archive in the database of this configuration. It connects when it is used.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(config: &Config) -> Result<Self, InvalidUrl> {
        let options =
            MySqlPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(config.connect_timeout);
        Ok(Self { pool: options.connect_lazy_with(Database::new(config)?.options()) })
    }

    /// Unexpired messages of a user, in the order of their places in the inbox.
    ///
    /// # Errors
    /// If the database cannot be used now.
    pub async fn page(
        &self,
        user: &UserId,
        range: &OlderRange,
    ) -> Result<Vec<(Position, ArchivedMessage)>, DatabaseError> {
        // The index has this order; sorting all of a user's messages could take seconds.
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT sent_ms, topic, part, off, fingerprint, operation, room, body, stored_ms, expires_ms, \
             cause, inbox_ms, inbox_number FROM halley_inbox FORCE INDEX (inbox_order) WHERE user = ",
        );
        query.push_bind(user.as_str().as_bytes());
        query.push(" AND (expires_ms = 0 OR expires_ms > ").push_bind(now_ms()).push(")");
        for (compare, bound) in [('>', range.from), ('<', range.to)] {
            let Some(Position { ms, number }) = bound else { continue };
            // Written out: MySQL uses only a prefix of the key for a comparison of tuples.
            query.push(format!(" AND inbox_ms {compare}= ")).push_bind(ms);
            query.push(format!(" AND (inbox_ms {compare} ")).push_bind(ms);
            query.push(format!(" OR inbox_number {compare}= ")).push_bind(number).push(")");
        }
        let direction = if range.backwards { "DESC" } else { "ASC" };
        query.push(format!(" ORDER BY inbox_ms {direction}, inbox_number {direction} LIMIT "));
        query.push_bind(u32::try_from(range.limit).unwrap_or(u32::MAX));
        let rows = query.build().persistent(false).fetch_all(&self.pool).await;
        let rows = rows.and_then(|rows| rows.iter().map(entry).collect::<sqlx::Result<Vec<_>>>());
        rows.map_err(|error| DatabaseError::of(&error))
    }

    /// Removes what is stored for a user until now, also what is still on its way from gateways.
    /// Returns how many messages were in the archive.
    ///
    /// # Errors
    /// If the database cannot be used now. Erasing again continues.
    pub async fn erase(&self, user: &UserId) -> Result<u64, DatabaseError> {
        self.erase_until(user, now_ms()).await.map_err(|error| DatabaseError::of(&error))
    }

    async fn erase_until(&self, user: &UserId, erased_ms: i64) -> sqlx::Result<u64> {
        let user = user.as_str().as_bytes();
        let note = sqlx::query(
            "INSERT INTO halley_erased (user, erased_ms) VALUES (?, ?) \
             ON DUPLICATE KEY UPDATE erased_ms = GREATEST(erased_ms, VALUES(erased_ms))",
        );
        note.bind(user).bind(erased_ms).execute(&self.pool).await?;
        let mut removed = 0;
        loop {
            let delete = sqlx::query("DELETE FROM halley_inbox WHERE user = ? AND stored_ms <= ? LIMIT ?");
            let rows = delete.bind(user).bind(erased_ms).bind(DELETE_ROWS).execute(&self.pool).await?;
            removed += rows.rows_affected();
            if rows.rows_affected() < DELETE_ROWS {
                return Ok(removed);
            }
        }
    }
}

fn entry(row: &MySqlRow) -> sqlx::Result<(Position, ArchivedMessage)> {
    Ok((Position { ms: row.try_get(11)?, number: row.try_get(12)? }, message(row)?))
}

fn message(row: &MySqlRow) -> sqlx::Result<ArchivedMessage> {
    let text = |at: usize| -> sqlx::Result<String> {
        let bytes: Vec<u8> = row.try_get(at)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let body: Vec<u8> = row.try_get(7)?;
    Ok(ArchivedMessage {
        position: row::Position {
            sent_ms: row.try_get(0)?,
            topic: text(1)?,
            partition: row.try_get(2)?,
            offset: row.try_get(3)?,
            fingerprint: row.try_get(4)?,
        },
        operation: row.try_get(5)?,
        room: text(6)?,
        body: body.into(),
        stored_ms: row.try_get(8)?,
        expires_ms: row.try_get(9)?,
        cause: text(10)?,
    })
}

fn now_ms() -> i64 {
    time::to_record_ms(SystemTime::now())
}
