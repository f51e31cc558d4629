//! Reads messages of one user or room, and erases those of a user.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::mysql::{MySql, MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::{QueryBuilder, Row as _};

use super::database::{Database, DatabaseError};
use super::row::{self, ArchivedMessage};
use super::tables::{HISTORY, INBOX, Table};
use super::{Config, InvalidUrl};
use crate::inbox::{BodyReference, OlderRange, Owner, Position, Reference};
use crate::message::UserId;
use crate::time::now_record_ms;

/// Connections for reading.
const CONNECTIONS: u32 = 4;
/// Messages looked up in one statement.
const LOOK_UP: usize = 100;
/// Rows deleted in one statement.
const DELETE_ROWS: u64 = 5_000;

/// The archive of all users and rooms. Cheap to clone; clones share the connections.
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

    /// Unexpired messages of a user or a room, in the order of their places in the inbox or history, and
    /// whether they are all of the range.
    ///
    /// # Errors
    /// If the database cannot be used now.
    pub async fn page<'a>(
        &self,
        owner: impl Into<Owner<'a>>,
        range: &OlderRange,
    ) -> Result<(Vec<(Position, ArchivedMessage)>, bool), DatabaseError> {
        let (table, id) = Table::of(owner.into());
        let Table { owner, place: [ms, number], order, .. } = table;
        let mut query = QueryBuilder::<MySql>::new(select(&table));
        // The index has this order; sorting all of a user's messages could take seconds.
        query.push(format!(" FORCE INDEX ({order}) WHERE {owner} = ")).push_bind(id);
        query.push(" AND (expires_ms = 0 OR expires_ms > ").push_bind(now_record_ms()).push(")");
        for (compare, bound) in [('>', range.from), ('<', range.to)] {
            let Some(place) = bound else { continue };
            // Written out: MySQL uses only a prefix of the key for a comparison of tuples.
            query.push(format!(" AND {ms} {compare}= ")).push_bind(place.ms);
            query.push(format!(" AND ({ms} {compare} ")).push_bind(place.ms);
            query.push(format!(" OR {number} {compare}= ")).push_bind(place.number).push(")");
        }
        let direction = if range.backwards { "DESC" } else { "ASC" };
        query.push(format!(" ORDER BY {ms} {direction}, {number} {direction} LIMIT "));
        query.push_bind(u32::try_from(range.limit).unwrap_or(u32::MAX));
        let (rows, are_all) = self.rows(query, range.bytes).await?;
        let are_all = are_all && rows.len() < range.limit;
        Ok((rows, are_all))
    }

    /// Rows up to the one whose body exceeds this many bytes, and whether these are all.
    async fn rows(
        &self,
        mut query: QueryBuilder<MySql>,
        bytes: usize,
    ) -> sqlx::Result<(Vec<(Position, ArchivedMessage)>, bool)> {
        let mut connection = self.pool.acquire().await?;
        let (mut found, mut read) = (Vec::new(), 0);
        let mut rows = query.build().persistent(false).fetch(&mut *connection);
        while read <= bytes {
            let Some(row) = rows.try_next().await? else { return Ok((found, true)) };
            let (place, message) = entry(&row)?;
            read += message.body.len();
            found.push((place, message));
        }
        drop(rows);
        // Its next user would have to read the rest.
        drop(connection.detach());
        Ok((found, false))
    }

    /// The bodies of messages in the histories of their rooms, in this order; `None` for those that are not
    /// there.
    ///
    /// # Errors
    /// If the database cannot be used now.
    pub async fn referenced(&self, references: &[Reference]) -> Result<Vec<Option<Bytes>>, DatabaseError> {
        let key = |wanted: &Reference| {
            let position = row::Position::new(wanted.sent_ms, wanted.id.as_str())?;
            Some((wanted.room.as_str().as_bytes().to_vec(), position))
        };
        let keys: Vec<_> = references.iter().map(key).collect();
        let mut found = HashMap::new();
        for some in keys.iter().flatten().collect::<Vec<_>>().chunks(LOOK_UP) {
            let mut query = QueryBuilder::<MySql>::new(select(&HISTORY));
            let mut before = " WHERE ";
            // The primary key, written out: not every version looks up tuples by it.
            for (room, position) in some {
                query.push(before).push("(room = ").push_bind(&room[..]);
                query.push(" AND sent_ms = ").push_bind(position.sent_ms);
                query.push(" AND topic = ").push_bind(position.topic.as_bytes());
                query.push(" AND part = ").push_bind(position.partition);
                query.push(" AND off = ").push_bind(position.offset);
                query.push(" AND fingerprint = ").push_bind(position.fingerprint).push(")");
                before = " OR ";
            }
            let body = |(_, message): (_, ArchivedMessage)| {
                ((message.room.into_bytes(), message.position), message.body)
            };
            let rows = query.build().persistent(false).fetch_all(&self.pool).await?;
            let rows = rows.iter().map(entry).collect::<sqlx::Result<Vec<_>>>()?;
            found.extend(rows.into_iter().map(body));
        }
        Ok(keys.iter().map(|key| found.get(key.as_ref()?).cloned()).collect())
    }

    /// When the oldest entry of an owner whose day was dropped had been stored, in milliseconds since 1970.
    ///
    /// # Errors
    /// If the database cannot be used now.
    pub async fn oldest_dropped(&self, owner: Owner<'_>) -> Result<Option<u64>, DatabaseError> {
        let (table, id) = Table::of(owner);
        let query = sqlx::query_scalar("SELECT oldest_ms FROM halley_dropped WHERE kept = ? AND owner = ?");
        let query = query.bind(table.kept.as_bytes()).bind(id).persistent(false);
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// Removes what is stored for a user until now, also what is still on its way from gateways.
    /// Returns how many messages were in the archive.
    ///
    /// # Errors
    /// If the database cannot be used now. Erasing again continues.
    pub async fn erase(&self, user: &UserId) -> Result<u64, DatabaseError> {
        let (user, erased_ms) = (user.as_str().as_bytes(), now_record_ms());
        let note = sqlx::query(
            "INSERT INTO halley_erased (user, erased_ms) VALUES (?, ?) \
             ON DUPLICATE KEY UPDATE erased_ms = GREATEST(erased_ms, VALUES(erased_ms))",
        );
        note.bind(user).bind(erased_ms).execute(&self.pool).await?;
        let dropped = sqlx::query("DELETE FROM halley_dropped WHERE kept = ? AND owner = ?");
        dropped.bind(INBOX.kept.as_bytes()).bind(user).execute(&self.pool).await?;
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

/// Selects the columns of messages, in the order in which they are read.
fn select(table: &Table) -> String {
    let Table { name, place: [ms, number], .. } = table;
    let more = if *table == INBOX {
        "room, cause, history_ms, history_number, body_size"
    } else {
        "room, x'', 0, 0, 0"
    };
    format!(
        "SELECT sent_ms, topic, part, off, fingerprint, operation, body, stored_ms, expires_ms, {ms}, \
         {number}, {more} FROM {name}"
    )
}

fn entry(row: &MySqlRow) -> sqlx::Result<(Position, ArchivedMessage)> {
    let text = |at: usize| -> sqlx::Result<String> {
        let bytes: Vec<u8> = row.try_get(at)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let body: Vec<u8> = row.try_get(6)?;
    let reference = match row.try_get_unchecked(13)? {
        0 => None,
        ms => Some(BodyReference {
            place: Position { ms, number: row.try_get_unchecked(14)? },
            size: row.try_get_unchecked(15)?,
        }),
    };
    let message = ArchivedMessage {
        position: row::Position {
            sent_ms: row.try_get(0)?,
            topic: text(1)?,
            partition: row.try_get(2)?,
            offset: row.try_get(3)?,
            fingerprint: row.try_get(4)?,
        },
        operation: row.try_get(5)?,
        body: body.into(),
        stored_ms: row.try_get(7)?,
        expires_ms: row.try_get(8)?,
        room: text(11)?,
        cause: text(12)?,
        reference,
    };
    Ok((Position { ms: row.try_get(9)?, number: row.try_get(10)? }, message))
}
