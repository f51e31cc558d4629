//! Writes rows in one transaction.
//!
//! A row that is there already stays as it is. Rows that the database refuses for their values are
//! found by halving the statement, and do not keep the others out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use sqlx::mysql::{MySql, MySqlConnection};
use sqlx::{Connection as _, QueryBuilder};

use super::database::{DatabaseError, refused_values};
use super::row::{ArchivedMessage, Row, RowOwner};
use super::tables::{HISTORY, INBOX, Table};

/// Maximum number of rows in a statement. Sixteen columns each stay far below MySQL's 65,535 values.
const MOST_ROWS: usize = 1_000;
/// Maximum size of a statement in bytes, unless a single row exceeds it.
const MOST_BYTES: usize = 1 << 20;

/// What became of the rows of a transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WriteResult {
    /// Rows that the database will never accept, by index, and why.
    pub(super) refused: Vec<(usize, String)>,
    /// How many rows were left out because their user was erased after they had been stored.
    pub(super) erased: usize,
}

/// Writes these rows and commits. `max_packet` is the server's `max_allowed_packet`.
///
/// # Errors
/// If the database is unreachable or refuses other than for a row's values: none of the rows may be in
/// it. Writing them again repeats nothing.
pub(super) async fn write(
    connection: &mut MySqlConnection,
    rows: &[Row],
    max_packet: usize,
) -> Result<WriteResult, DatabaseError> {
    let mut transaction = connection.begin().await?;
    let erased = erased(&mut transaction, rows).await?;
    let is_erased = |row: &Row| {
        let user = row.owner.user().and_then(|user| erased.get(user.as_str().as_bytes()));
        user.is_some_and(|erased_ms| row.message.stored_ms <= *erased_ms)
    };
    let mut result = WriteResult::default();
    let (mut inboxes, mut histories) = (Vec::with_capacity(rows.len()), Vec::new());
    for (at, row) in rows.iter().enumerate() {
        if is_erased(row) {
            result.erased += 1;
        } else if row.size() + HEADROOM > max_packet {
            let why = format!("it has {} bytes; the server's max_allowed_packet is {max_packet}", row.size());
            result.refused.push((at, why));
        } else {
            let of_its_kind = match row.owner {
                RowOwner::User(_) => &mut inboxes,
                RowOwner::Room(_) => &mut histories,
            };
            of_its_kind.push((at, row));
        }
    }
    for (table, rows) in [(HISTORY, histories), (INBOX, inboxes)] {
        result.refused.extend(write_table(&mut transaction, &table, &rows, max_packet).await?);
    }
    transaction.commit().await?;
    Ok(result)
}

/// Writes the rows of one table. Returns those that the database will never accept, and why.
async fn write_table(
    connection: &mut MySqlConnection,
    table: &Table,
    rows: &[(usize, &Row)],
    max_packet: usize,
) -> sqlx::Result<Vec<(usize, String)>> {
    let mut refused = Vec::new();
    let mut ranges: Vec<Range<usize>> = statements(rows, max_packet);
    ranges.reverse();
    while let Some(range) = ranges.pop() {
        let Err(error) = insert(connection, table, &rows[range.clone()]).await else { continue };
        let Some(why) = refused_values(&error) else { return Err(error) };
        let half = range.start + range.len() / 2;
        if half == range.start {
            refused.push((rows[range.start].0, why));
        } else {
            ranges.extend([half..range.end, range.start..half]);
        }
    }
    Ok(refused)
}

/// What a statement has in addition to its rows, at most.
const HEADROOM: usize = 1024;

/// The ranges of rows that make one statement each.
fn statements(rows: &[(usize, &Row)], max_packet: usize) -> Vec<Range<usize>> {
    let most_bytes = MOST_BYTES.min(max_packet.saturating_sub(HEADROOM));
    let (mut ranges, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, (_, row)) in rows.iter().enumerate() {
        let size = row.size();
        if at > start && (at - start == MOST_ROWS || bytes + size > most_bytes) {
            ranges.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    if start < rows.len() {
        ranges.push(start..rows.len());
    }
    ranges
}

/// When the users of these rows were erased. Locks their absence as well: an erasure waits until this
/// transaction ends, and then deletes what it wrote.
async fn erased(connection: &mut MySqlConnection, rows: &[Row]) -> sqlx::Result<BTreeMap<Vec<u8>, i64>> {
    let users = rows.iter().filter_map(|row| row.owner.user());
    let users: BTreeSet<&[u8]> = users.map(|user| user.as_str().as_bytes()).collect();
    let users: Vec<_> = users.into_iter().collect();
    let mut erased = BTreeMap::new();
    for users in users.chunks(MOST_ROWS) {
        let mut query =
            QueryBuilder::<MySql>::new("SELECT user, erased_ms FROM halley_erased WHERE user IN (");
        let mut list = query.separated(", ");
        for user in users {
            list.push_bind(*user);
        }
        query.push(") LOCK IN SHARE MODE");
        let rows = query.build_query_as::<(Vec<u8>, i64)>().persistent(false);
        erased.extend(rows.fetch_all(&mut *connection).await?);
    }
    Ok(erased)
}

async fn insert(connection: &mut MySqlConnection, table: &Table, rows: &[(usize, &Row)]) -> sqlx::Result<()> {
    let Table { name, owner, place: [ms, number], .. } = table;
    // A history is of one room, and nobody refers from it.
    let more = if *table == INBOX { ", room, cause, history_ms, history_number, body_size" } else { "" };
    let mut query = QueryBuilder::<MySql>::new(format!(
        "INSERT INTO {name} ({owner}, sent_ms, topic, part, off, fingerprint, operation, body, stored_ms, \
         expires_ms, {ms}, {number}{more}) "
    ));
    query.push_values(rows, |mut values, (_, Row { owner, place, message })| {
        let ArchivedMessage { position, operation, room, body, stored_ms, expires_ms, cause, reference } =
            message;
        values
            .push_bind(owner.as_bytes())
            .push_bind(position.sent_ms)
            .push_bind(position.topic.as_bytes())
            .push_bind(position.partition)
            .push_bind(position.offset)
            .push_bind(position.fingerprint)
            .push_bind(*operation)
            .push_bind(&body[..])
            .push_bind(*stored_ms)
            .push_bind(*expires_ms)
            .push_bind(place.ms)
            .push_bind(place.number);
        if *table == INBOX {
            values
                .push_bind(room.as_bytes())
                .push_bind(cause.as_bytes())
                .push_bind(reference.map_or(0, |reference| reference.place.ms))
                .push_bind(reference.map_or(0, |reference| reference.place.number))
                .push_bind(reference.map_or(0, |reference| reference.size));
        }
    });
    // Not IGNORE, which shortens values that are too long.
    query.push(" ON DUPLICATE KEY UPDATE off = off");
    query.build().persistent(false).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::row::Position;
    use crate::inbox;
    use proptest::prelude::*;

    fn row(size: usize) -> Row {
        let position = Position::new(1, "t/0/1/0000000000000000").unwrap();
        let message = ArchivedMessage {
            position,
            operation: 1,
            room: String::new(),
            body: vec![0; size].into(),
            stored_ms: 1,
            expires_ms: 0,
            cause: String::new(),
            reference: None,
        };
        Row { owner: RowOwner::User("ann".into()), place: inbox::Position { ms: 1, number: 0 }, message }
    }

    proptest! {
        #[test]
        fn statements_are_bounded_and_cover_all_rows(
            sizes in prop::collection::vec(0_usize..600_000, 0..40), max_packet in 4_096_usize..(1 << 24)
        ) {
            let rows: Vec<Row> = sizes.into_iter().map(row).collect();
            let kept: Vec<_> = rows.iter().enumerate().collect();
            let ranges = statements(&kept, max_packet);
            let mut next = 0;
            for range in ranges {
                prop_assert_eq!(range.start, next);
                prop_assert!(!range.is_empty());
                let bytes: usize = rows[range.clone()].iter().map(Row::size).sum();
                prop_assert!(range.len() == 1 || bytes <= MOST_BYTES.min(max_packet));
                next = range.end;
            }
            prop_assert_eq!(next, rows.len());
        }
    }

    #[test]
    fn a_statement_has_at_most_a_thousand_rows() {
        let rows: Vec<Row> = (0..2_500).map(|_| row(1)).collect();
        let kept: Vec<_> = rows.iter().enumerate().collect();
        assert_eq!(statements(&kept, 1 << 24), [0..1_000, 1_000..2_000, 2_000..2_500]);
    }
}
