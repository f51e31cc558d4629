//! Moves messages from the archive topic to the database.
//!
//! Each partition has one worker. It fills a transaction from the partition's records, commits it in
//! the database, and then settles the records. A process that is killed in between writes the same
//! rows again, which changes nothing.
//!
//! Promises: a record is settled once each of its rows is in the database or a dead letter. While the
//! database cannot be used, records are held, Kafka keeps what is not read, and [`Stalls`] says why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::mysql::MySqlConnection;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::database::{Database, DatabaseError};
use super::insert::{self, WriteResult};
use super::metrics::{Metrics, RowOutcome};
use super::row::Row;
use super::{Config, InvalidUrl, day_partitions, record, schema};
use crate::backoff::Backoff;
use crate::consumer::{InFlightRecord, PartitionStream};
use crate::dead_letter::{DeadLetterReason, DeadLetters, Stage};
use crate::offsets::AckHandle;
use crate::stalls::{HeldRecord, StallGuard, StallStage, Stalls};
use crate::telemetry::LogThrottle;
use crate::time;

/// Maximum size of a transaction in bytes, unless a single record exceeds it.
const MOST_BYTES: usize = 16 << 20;
/// Back-off after a failure.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// How often partitions are made ahead and expired ones dropped.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(3600);
/// How long until failed maintenance is tried again.
const MAINTENANCE_RETRY: Duration = Duration::from_secs(60);

/// Archives partitions. Shared by their workers.
pub struct Archiver {
    database: Database,
    config: Config,
    dead_letters: DeadLetters,
    metrics: Metrics,
    stalls: Stalls,
    /// Why partitions cannot be made or dropped.
    maintenance_problem: Mutex<Option<String>>,
}

/// The partition was cancelled; its records are read again.
struct Cancelled;

/// Records of one transaction, with their rows.
#[derive(Default)]
struct Batch {
    records: Vec<InFlightRecord>,
    rows: Vec<Row>,
    /// The index of each row's record.
    record_of: Vec<usize>,
    /// Records that cannot be decoded, and why.
    invalid: Vec<(usize, String)>,
    bytes: usize,
}

/// A connection, and what is known about its server.
struct Session {
    connection: MySqlConnection,
    max_packet: usize,
}

impl Archiver {
    /// Archives to the database of this configuration.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(
        config: &Config,
        dead_letters: DeadLetters,
        metrics: Metrics,
        stalls: Stalls,
    ) -> Result<Self, InvalidUrl> {
        let (database, config) = (Database::new(config)?, config.clone());
        Ok(Self { database, config, dead_letters, metrics, stalls, maintenance_problem: Mutex::default() })
    }

    /// What needs attention; empty if the archive is written.
    pub fn warnings(&self) -> Vec<String> {
        let stalls = self.stalls.list().into_iter().map(|stall| stall.to_string());
        stalls.chain(self.maintenance_problem.lock().clone()).collect()
    }

    /// Archives one partition until it is revoked.
    pub async fn run(self: Arc<Self>, mut stream: PartitionStream) {
        let mut session = None;
        loop {
            let batch = self.gather(&mut stream).await;
            if batch.records.is_empty() {
                break;
            }
            if self.finish(&stream, batch, &mut session).await.is_err() {
                break;
            }
        }
        if let Some(Session { connection, .. }) = session {
            self.database.close(connection).await;
        }
        debug!(topic = %stream.topic, stream.partition, "the partition is no longer archived here");
    }

    /// Makes partitions ahead and drops expired ones, until the shutdown.
    pub async fn maintain(self: Arc<Self>, shutdown: CancellationToken) {
        let work = async {
            loop {
                let wait = match self.maintain_once().await {
                    Ok(()) => {
                        *self.maintenance_problem.lock() = None;
                        MAINTENANCE_INTERVAL
                    }
                    Err(error) => {
                        warn!(%error, "cannot make or drop day partitions of the archive; retrying");
                        *self.maintenance_problem.lock() = Some(format!("day partitions: {error}"));
                        MAINTENANCE_RETRY
                    }
                };
                tokio::time::sleep(wait).await;
            }
        };
        shutdown.run_until_cancelled(work).await;
    }

    async fn maintain_once(&self) -> Result<(), DatabaseError> {
        let mut connection = self.database.connect().await?;
        schema::check(&mut connection).await?;
        let now = time::now_record_ms();
        let done = day_partitions::maintain(&mut connection, now, self.config.retention).await;
        self.database.close(connection).await;
        Ok(done?)
    }

    /// Waits for records, then for more of them, until the transaction is full or has waited long
    /// enough. Empty when the partition is closing.
    async fn gather(&self, stream: &mut PartitionStream) -> Batch {
        let mut batch = Batch::default();
        let mut deadline = None;
        while batch.rows.len() < self.config.max_rows && batch.bytes < MOST_BYTES {
            let until = deadline.unwrap_or_else(|| tokio::time::Instant::now() + MAINTENANCE_INTERVAL);
            tokio::select! {
                biased;
                () = stream.closing.cancelled() => break,
                record = stream.records.recv() => match record {
                    Some(record) => batch.push(record),
                    None => break,
                },
                () = tokio::time::sleep_until(until) => if deadline.is_some() { break },
            }
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + self.config.max_wait);
        }
        batch
    }

    /// Writes a batch, makes dead letters of what can never be written, and settles its records.
    async fn finish(
        &self,
        stream: &PartitionStream,
        batch: Batch,
        session: &mut Option<Session>,
    ) -> Result<(), Cancelled> {
        let WriteResult { refused, erased } = self.write(stream, &batch, session).await?;
        let written = batch.rows.len() - refused.len() - erased;
        let counts = [
            (RowOutcome::Written, written),
            (RowOutcome::Erased, erased),
            (RowOutcome::Refused, refused.len()),
        ];
        counts.into_iter().for_each(|(outcome, rows)| self.metrics.rows(outcome, rows));
        for (at, reason) in batch.letters(refused) {
            self.dead_letter(stream, &batch.records[at], reason).await?;
        }
        AckHandle::settle_all(batch.records.into_iter().map(|record| record.ack));
        Ok(())
    }

    /// Writes the rows of a batch; retries until it succeeds.
    async fn write(
        &self,
        stream: &PartitionStream,
        batch: &Batch,
        session: &mut Option<Session>,
    ) -> Result<WriteResult, Cancelled> {
        if batch.rows.is_empty() {
            return Ok(WriteResult::default());
        }
        let since = Instant::now();
        let (mut backoff, mut stall) = (BACKOFF, None::<StallGuard>);
        loop {
            let attempt = self.attempt(&batch.rows, session);
            let error = match stream.cancel.run_until_cancelled(attempt).await {
                Some(Ok(result)) => {
                    self.metrics.duration.observe(since.elapsed().as_secs_f64());
                    return Ok(result);
                }
                Some(Err(error)) => error,
                None => return Err(cancelled(stall)),
            };
            let held = || self.stalls.begin_since(batch.held(stream, StallStage::Archive), since);
            stall.get_or_insert_with(held).set_cause(&error);
            let pause = tokio::time::sleep(backoff.next_wait(fastrand::f64()));
            if stream.cancel.run_until_cancelled(pause).await.is_none() {
                return Err(cancelled(stall));
            }
        }
    }

    /// Writes rows once. A connection that fails is not used again: what it was doing is unknown.
    async fn attempt(
        &self,
        rows: &[Row],
        session: &mut Option<Session>,
    ) -> Result<WriteResult, DatabaseError> {
        let writing = async {
            let mut current = match session.take() {
                Some(current) => current,
                None => Session::open(&self.database).await?,
            };
            let result = insert::write(&mut current.connection, rows, current.max_packet).await?;
            *session = Some(current);
            Ok(result)
        };
        let timeout = self.config.write_timeout;
        tokio::time::timeout(timeout, writing).await.unwrap_or(Err(DatabaseError::Timeout(timeout)))
    }

    async fn dead_letter(
        &self,
        stream: &PartitionStream,
        record: &InFlightRecord,
        reason: DeadLetterReason,
    ) -> Result<(), Cancelled> {
        static LINE: LogThrottle = LogThrottle::per_record();
        if let Some(held_back) = LINE.admit() {
            let origin = &record.record.origin;
            warn!(
                topic = %origin.topic, origin.partition, origin.offset, held_back,
                "a record of the archive topic becomes a dead letter: {}", reason.text
            );
        }
        let work = async {
            let receipt = self.dead_letters.put(Arc::clone(&record.record), reason).await;
            let (mut backoff, mut stall, since) = (BACKOFF, None::<StallGuard>, Instant::now());
            while let Err(error) = receipt.outcome().await {
                let origin = &record.record.origin;
                let held = HeldRecord {
                    stage: StallStage::DeadLetter,
                    topic: Arc::clone(&origin.topic),
                    partition: origin.partition,
                    offset: Some(origin.offset),
                };
                stall.get_or_insert_with(|| self.stalls.begin_since(held, since)).set_cause(&error);
                tokio::time::sleep(backoff.next_wait(fastrand::f64())).await;
            }
        };
        stream.cancel.run_until_cancelled(work).await.ok_or(Cancelled)
    }
}

fn cancelled(stall: Option<StallGuard>) -> Cancelled {
    if let Some(stall) = stall {
        stall.cancel();
    }
    Cancelled
}

impl Session {
    async fn open(database: &Database) -> Result<Self, DatabaseError> {
        let mut connection = database.connect().await?;
        schema::check(&mut connection).await?;
        let limit = sqlx::query_scalar::<_, i64>("SELECT CAST(@@max_allowed_packet AS SIGNED)");
        let limit = limit.fetch_one(&mut connection).await?;
        Ok(Self { connection, max_packet: usize::try_from(limit).unwrap_or(usize::MAX) })
    }
}

impl Batch {
    fn push(&mut self, record: InFlightRecord) {
        let at = self.records.len();
        match record::decode(record.record.value.clone()) {
            Ok(rows) => {
                self.bytes += rows.iter().map(Row::size).sum::<usize>();
                self.record_of.resize(self.record_of.len() + rows.len(), at);
                self.rows.extend(rows);
            }
            Err(error) => self.invalid.push((at, error.to_string())),
        }
        self.records.push(record);
    }

    /// The dead letters: records that cannot be decoded, and those with refused rows.
    fn letters(&self, refused: Vec<(usize, String)>) -> Vec<(usize, DeadLetterReason)> {
        let letter = |text: String| DeadLetterReason::new(Stage::Archive, text);
        let invalid = self.invalid.iter().map(|(at, why)| (*at, letter(why.clone())));
        let mut letters: Vec<(usize, DeadLetterReason)> = invalid.collect();
        let mut refused = refused;
        refused.sort_by_key(|(row, _)| *row);
        for (row, why) in refused {
            let (at, user) = (self.record_of[row], self.rows[row].owner.user().cloned());
            match letters.iter_mut().find(|(known, _)| *known == at) {
                Some((_, reason)) => reason.users.extend(user),
                None => {
                    let mut reason = letter(format!("the archive's database refused a row: {why}"));
                    reason.users.extend(user);
                    letters.push((at, reason));
                }
            }
        }
        letters
    }

    fn held(&self, stream: &PartitionStream, stage: StallStage) -> HeldRecord {
        let offset = self.records.first().map(|record| record.record.origin.offset);
        HeldRecord { stage, topic: Arc::clone(&stream.topic), partition: stream.partition, offset }
    }
}
