//! Reads and erases messages of one user.

use std::time::SystemTime;

use sqlx::mysql::{MySql, MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::{QueryBuilder, Row as _};

use super::database::{Database, DatabaseError};
use super::row::{ArchivedMessage, Position};
use super::{Config, InvalidUrl};
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

/// One page of a user's messages.
#[derive(Debug, Clone)]
pub struct ArchivePage<'a> {
    /// The user.
    pub user: &'a UserId,
    /// Only messages after this position.
    pub after: Option<&'a Position>,
    /// Only messages before this position.
    pub before: Option<&'a Position>,
    /// Maximum number of messages.
    pub limit: u32,
    /// Begin with the newest.
    pub is_backwards: bool,
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

    /// Unexpired messages, in order.
    ///
    /// # Errors
    /// If the database cannot be used now.
    pub async fn page(&self, page: &ArchivePage<'_>) -> Result<Vec<ArchivedMessage>, DatabaseError> {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT sent_ms, topic, part, off, fingerprint, operation, room, body, stored_ms, expires_ms, \
             cause FROM halley_inbox WHERE user = ",
        );
        query.push_bind(page.user.as_str().as_bytes());
        query.push(" AND (expires_ms = 0 OR expires_ms > ").push_bind(now_ms()).push(")");
        if let Some(after) = page.after {
            push_bound(&mut query, '>', after);
        }
        if let Some(before) = page.before {
            push_bound(&mut query, '<', before);
        }
        let direction = if page.is_backwards { "DESC" } else { "ASC" };
        let columns = ["sent_ms", "topic", "part", "off", "fingerprint"];
        query.push(" ORDER BY ").push(columns.map(|column| format!("{column} {direction}")).join(", "));
        query.push(" LIMIT ").push_bind(page.limit);
        let rows = query.build().persistent(false).fetch_all(&self.pool).await;
        let rows = rows.and_then(|rows| rows.iter().map(message).collect::<sqlx::Result<Vec<_>>>());
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

/// A bound on the position. Written out: MySQL uses only a prefix of the key for a comparison of
/// tuples.
fn push_bound(query: &mut QueryBuilder<MySql>, compare: char, position: &Position) {
    let Position { sent_ms, topic, partition, offset, fingerprint } = position;
    let topic = topic.as_bytes();
    query.push(format!(" AND sent_ms {compare}= ")).push_bind(*sent_ms);
    query.push(format!(" AND (sent_ms {compare} ")).push_bind(*sent_ms);
    query.push(format!(" OR topic {compare} ")).push_bind(topic);
    query.push(" OR (topic = ").push_bind(topic).push(format!(" AND (part {compare} ")).push_bind(*partition);
    query.push(" OR (part = ").push_bind(*partition).push(format!(" AND (off {compare} ")).push_bind(*offset);
    query.push(" OR (off = ").push_bind(*offset);
    query.push(format!(" AND fingerprint {compare} ")).push_bind(*fingerprint).push("))))))");
}

fn message(row: &MySqlRow) -> sqlx::Result<ArchivedMessage> {
    let text = |at: usize| -> sqlx::Result<String> {
        let bytes: Vec<u8> = row.try_get(at)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let body: Vec<u8> = row.try_get(7)?;
    Ok(ArchivedMessage {
        position: Position {
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
