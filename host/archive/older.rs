//! The archive as the continuation of inboxes and histories: bounded in time, and not asked again at once while the
//! database cannot be used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use super::config::DAY;
use super::metrics::{ReadMetrics, ReadOutcome};
use super::row::ArchivedMessage;
use super::{Archive, Config, DatabaseError, InvalidUrl};
use crate::decision::AbsenceCause;
use crate::inbox::{
    OlderEntries, OlderMessages, OlderRange, OlderUnavailable, Owner, Reference, StoredMessage,
};
use crate::telemetry::LogThrottle;
use crate::time::record_millis;

/// How long a page waits for the database.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long the database is not asked after it could not be used: pages do not wait for it one by one.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the reason is logged.
const WARNING: Duration = Duration::from_secs(10);

const UNAVAILABLE: OlderUnavailable =
    OlderUnavailable("the archive cannot be read now: messages that Redis no longer has are missing");

/// Messages that have left their inboxes and histories.
#[derive(Debug)]
pub struct ArchivedMessages {
    archive: Archive,
    retention: Duration,
    failed: Mutex<Option<Instant>>,
    throttle: LogThrottle,
    metrics: ReadMetrics,
}

impl ArchivedMessages {
    /// Those in the database of this configuration; `None` if there is no database. It connects when it
    /// is used.
    ///
    /// # Errors
    /// When the URL cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime, if there is a database.
    pub fn open(
        config: &Config,
        metrics: impl FnOnce() -> ReadMetrics,
    ) -> Result<Option<Arc<dyn OlderMessages>>, InvalidUrl> {
        if !config.has_database() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self {
            archive: Archive::new(config)?,
            // Whole days are dropped.
            retention: config.retention + DAY,
            failed: Mutex::default(),
            throttle: LogThrottle::new(1, WARNING),
            metrics: metrics(),
        })))
    }

    /// Reads, unless the database could not be used a moment ago.
    async fn read<T>(
        &self,
        reading: impl Future<Output = Result<T, DatabaseError>>,
    ) -> Result<T, OlderUnavailable> {
        if self.is_pausing() {
            self.metrics.count(ReadOutcome::Skipped);
            return Err(UNAVAILABLE);
        }
        let read = match tokio::time::timeout(TIMEOUT, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => return Err(self.failed(&error)),
            Err(_) => return Err(self.failed(&format_args!("the archive did not answer within {TIMEOUT:?}"))),
        };
        *self.failed.lock() = None;
        self.metrics.count(ReadOutcome::Ok);
        Ok(read)
    }

    fn is_pausing(&self) -> bool {
        self.failed.lock().is_some_and(|failed| failed.elapsed() < PAUSE)
    }

    fn failed(&self, why: &dyn std::fmt::Display) -> OlderUnavailable {
        *self.failed.lock() = Some(Instant::now());
        self.metrics.count(ReadOutcome::Failed);
        if let Some(held_back) = self.throttle.admit() {
            warn!(held_back, "pages end where the inboxes and histories in redis begin: {why}");
        }
        UNAVAILABLE
    }

    fn stored(&self, message: ArchivedMessage) -> StoredMessage {
        let retention_ms = record_millis(self.retention);
        let expires_ms = match message.expires_ms {
            0 => message.position.sent_ms.saturating_add(retention_ms),
            expires_ms => expires_ms,
        };
        StoredMessage {
            id: message.position.id(),
            operation: message.operation,
            room: (!message.room.is_empty()).then(|| message.room.into()),
            body: message.body,
            sent_ms: message.position.sent_ms,
            expires_ms,
            cause: AbsenceCause::named(&message.cause),
            reference: message.reference,
        }
    }
}

#[async_trait]
impl OlderMessages for ArchivedMessages {
    async fn older(&self, owner: Owner<'_>, range: &OlderRange) -> Result<OlderEntries, OlderUnavailable> {
        let (rows, are_all) = self.read(self.archive.page(owner, range)).await?;
        let entry = |(position, message)| (position, self.stored(message));
        Ok(OlderEntries { entries: rows.into_iter().map(entry).collect(), are_all })
    }

    async fn oldest_dropped(&self, owner: Owner<'_>) -> Result<Option<u64>, OlderUnavailable> {
        self.read(self.archive.oldest_dropped(owner)).await
    }

    async fn referenced(&self, references: &[Reference]) -> Result<Vec<Option<Bytes>>, OlderUnavailable> {
        self.read(self.archive.referenced(references)).await
    }
}
