//! Day partitions of the archive's tables: made ahead, and dropped when the last message in them is
//! older than the retention. Dropping a partition costs the same however many rows it has. Before that,
//! it is noted whose messages it has: pages from the oldest say that something before is gone.
//!
//! A partition is named after its day and holds what was sent before the next one. The first
//! partition also holds everything older, and the last one, `later`, everything newer than the days
//! that have a partition.

use std::time::{Duration, UNIX_EPOCH};

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;
use tracing::info;

use super::tables::{TABLES, Table};

use crate::time::record_millis;

/// Days that have a partition before they begin.
const DAYS_AHEAD: i64 = 14;
/// The length of a day in milliseconds.
const DAY_MS: i64 = 24 * 3600 * 1000;
/// The last partition.
pub(super) const LAST: &str = "later";

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DayPartition {
    name: String,
    /// It holds rows sent before this, in milliseconds since 1970. `None`: the last one.
    before_ms: Option<i64>,
}

/// What has to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct PartitionChanges {
    /// Partitions to split off the last one, in order.
    add: Vec<DayPartition>,
    /// Partitions to drop.
    drop: Vec<String>,
}

/// What has to change now.
fn changes(existing: &[DayPartition], now_ms: i64, retention: Duration) -> PartitionChanges {
    let newest = existing.iter().filter_map(|partition| partition.before_ms).max();
    let today = now_ms.div_euclid(DAY_MS);
    let next = newest.map_or(today, |before| before.div_euclid(DAY_MS));
    let add = (next..=today + DAYS_AHEAD).map(day).collect();
    let oldest = now_ms.saturating_sub(record_millis(retention));
    let expired = |partition: &&DayPartition| partition.before_ms.is_some_and(|before| before <= oldest);
    let mut drop: Vec<_> = existing.iter().filter(expired).map(|partition| partition.name.clone()).collect();
    // A table has at least one partition, and there is always the last.
    drop.retain(|name| name != LAST);
    PartitionChanges { add, drop }
}

/// The partition of a day, counted from 1970-01-01.
fn day(number: i64) -> DayPartition {
    let begin = UNIX_EPOCH + Duration::from_secs(number.max(0) as u64 * 24 * 3600);
    let date = humantime::format_rfc3339_seconds(begin).to_string();
    let digits: String = date.chars().take(10).filter(char::is_ascii_digit).collect();
    DayPartition { name: format!("day{digits}"), before_ms: Some((number + 1) * DAY_MS) }
}

/// The partitions of a new table, for `CREATE TABLE`.
pub(super) fn definition(now_ms: i64) -> String {
    let days = changes(&[], now_ms, Duration::MAX).add;
    list(&days)
}

/// Partitions with the last one, as `PARTITION BY` and `REORGANIZE PARTITION` take them.
fn list(days: &[DayPartition]) -> String {
    let named = days.iter().filter_map(|day| {
        day.before_ms.map(|before| format!("PARTITION {} VALUES LESS THAN ({before})", day.name))
    });
    let mut all: Vec<String> = named.collect();
    all.push(format!("PARTITION {LAST} VALUES LESS THAN MAXVALUE"));
    all.join(",\n  ")
}

/// Makes partitions ahead and drops expired ones, unless another archiver is doing that.
///
/// # Errors
/// What the database refuses.
pub(super) async fn maintain(
    connection: &mut MySqlConnection,
    now_ms: i64,
    retention: Duration,
) -> sqlx::Result<()> {
    let lock = sqlx::query_scalar::<_, Option<i64>>("SELECT CAST(GET_LOCK('halley_archive', 0) AS SIGNED)");
    if lock.fetch_one(&mut *connection).await? != Some(1) {
        return Ok(());
    }
    let mut done = Ok(());
    for table in &TABLES {
        done = done.and(maintain_locked(connection, table, now_ms, retention).await);
    }
    sqlx::query("DO RELEASE_LOCK('halley_archive')").execute(connection).await?;
    done
}

async fn maintain_locked(
    connection: &mut MySqlConnection,
    table: &Table,
    now_ms: i64,
    retention: Duration,
) -> sqlx::Result<()> {
    let rows = sqlx::query_as::<_, (String, Option<String>)>(
        "SELECT CAST(PARTITION_NAME AS CHAR), CAST(PARTITION_DESCRIPTION AS CHAR) \
         FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? \
         AND PARTITION_NAME IS NOT NULL ORDER BY PARTITION_ORDINAL_POSITION",
    );
    let partition = |(name, before): (String, Option<String>)| DayPartition {
        name,
        before_ms: before.and_then(|before| before.parse().ok()),
    };
    let rows = rows.bind(table.name).fetch_all(&mut *connection).await?;
    let existing: Vec<_> = rows.into_iter().map(partition).collect();
    if existing.is_empty() {
        // An operator's own table, without partitions: nothing to maintain.
        return Ok(());
    }
    let PartitionChanges { add, drop } = changes(&existing, now_ms, retention);
    if !add.is_empty() {
        let statement =
            format!("ALTER TABLE {} REORGANIZE PARTITION {LAST} INTO (\n  {})", table.name, list(&add));
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    if !drop.is_empty() {
        let days = drop.join(", ");
        note_dropped(connection, table, &days).await?;
        let statement = format!("ALTER TABLE {} DROP PARTITION {days}", table.name);
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await?;
        info!(
            table = table.name,
            days = drop.len(),
            first = drop.first(),
            last = drop.last(),
            "dropped days older than the archive's retention"
        );
    }
    Ok(())
}

/// Notes whose messages these partitions have. The index has each owner's oldest place first.
async fn note_dropped(connection: &mut MySqlConnection, table: &Table, days: &str) -> sqlx::Result<()> {
    let Table { name, kept, owner, place: [ms, _], .. } = table;
    let statement = format!(
        "INSERT INTO halley_dropped (kept, owner, oldest_ms) \
         SELECT '{kept}', {owner}, MIN({ms}) FROM {name} PARTITION ({days}) GROUP BY {owner} \
         ON DUPLICATE KEY UPDATE oldest_ms = LEAST(oldest_ms, VALUES(oldest_ms))"
    );
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    /// 2026-11-26T12:00:00Z.
    const NOON: i64 = 1_795_694_400_000;

    #[test]
    fn days_are_made_ahead_and_dropped_when_all_of_it_is_old() {
        let new = changes(&[], NOON, WEEK);
        assert_eq!((new.add.len(), new.add[0].name.as_str()), (15, "day20261126"));
        assert_eq!(new.add[0].before_ms, Some(NOON + DAY_MS / 2));
        assert_eq!(new.drop, [""; 0]);

        let last = DayPartition { name: LAST.to_owned(), before_ms: None };
        let mut existing = new.add;
        existing.push(last);
        assert_eq!(changes(&existing, NOON, WEEK), PartitionChanges::default());
        let tomorrow = changes(&existing, NOON + DAY_MS, WEEK);
        assert_eq!((tomorrow.add.len(), tomorrow.drop.len()), (1, 0));
        let week = changes(&existing, NOON + 7 * DAY_MS, WEEK);
        assert_eq!(week.drop, [""; 0], "the day ended less than a week ago");
        let later = changes(&existing, NOON + 8 * DAY_MS, WEEK);
        assert_eq!((later.add.len(), later.drop), (8, vec!["day20261126".to_owned()]));
    }

    proptest! {
        #[test]
        fn partitions_follow_each_other(start in 0..4_000_000_000_000_i64, days in 0..400_i64) {
            let mut existing = changes(&[], start, WEEK).add;
            let PartitionChanges { add, drop } = changes(&existing, start + days * DAY_MS, WEEK);
            existing.extend(add);
            for pair in existing.windows(2) {
                prop_assert_eq!(pair[0].before_ms.unwrap() + DAY_MS, pair[1].before_ms.unwrap());
                prop_assert!(pair[0].name < pair[1].name);
            }
            // What is dropped is the beginning.
            let names: Vec<_> = existing.iter().take(drop.len()).map(|day| day.name.clone()).collect();
            prop_assert_eq!(names, drop);
        }
    }
}
