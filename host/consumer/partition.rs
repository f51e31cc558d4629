//! One assigned partition as the polling thread sees it: admission, back-pressure, and the offset
//! that may be committed.
//!
//! It uses no Kafka type, so the rules are tested without a broker.

mod position;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::consumer::in_flight_limit::InFlightLimit;
use crate::consumer::metadata::CommitMetadata;
use crate::consumer::stream::{InFlightRecord, PartitionStream};
use crate::consumer::until_committed::UntilCommitted;
use crate::message::Record;
use crate::offsets::{OffsetTracker, UnsettledCount};
use crate::stalls::StallGuard;

/// One assigned partition, owned by the polling thread.
pub(crate) struct Partition {
    offsets: OffsetTracker,
    /// `None` once the partition is closing.
    records: Option<mpsc::Sender<InFlightRecord>>,
    /// Records that were read while the partition was at its limit, with their sizes.
    waiting: VecDeque<(Record, usize)>,
    /// Their size in bytes.
    waiting_bytes: usize,
    /// Since when records have been waiting.
    full_since: Option<Instant>,
    /// When a record was last admitted.
    admitted_at: Instant,
    paused: bool,
    /// The worker has ended without being cancelled.
    worker_ended: bool,
    stored: Option<i64>,
    /// The last offset that Kafka has confirmed.
    committed: Option<i64>,
    until_committed: UntilCommitted,
    log_position: LogPosition,
    /// The next offset to read, if known.
    expected: Option<i64>,
    /// The offset at which the group started in this log.
    start_offset: Option<i64>,
    metadata: Option<CommitMetadata>,
    /// The log's first available offset, and the one after its last.
    log_range: Option<(i64, i64)>,
    /// The position that was behind the end of the log when that was last seen, and since when.
    behind: Option<(i64, Instant)>,
    /// Set while no records arrive, to tell the operator why.
    stall: Option<StallGuard>,
    closing: CancellationToken,
    cancel: CancellationToken,
    done: std::sync::mpsc::Receiver<()>,
}

/// Whether the log and the position in it are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogPosition {
    /// The position is unknown: records are dropped until it is found. With `from_start`, the
    /// group's committed offset belongs to another log.
    Unknown {
        /// See above.
        from_start: bool,
    },
    /// A record with this offset arrived after a later one, so the topic may have been recreated.
    /// Records are dropped until that is resolved.
    Suspect {
        /// See above.
        offset: i64,
    },
    /// The position is known.
    Known,
}

/// How full a partition's buffer of waiting records is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    Nothing,
    Something,
    /// The buffer is full, and Kafka still delivers records.
    AtLimit,
}

/// What happened to a record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptOutcome {
    /// It is admitted, or waits in the buffer.
    Accepted,
    /// As `Accepted`, and the offsets from this one on hold no records, or were not read in time.
    AcceptedAfterGap {
        /// The first offset of the gap.
        expected: i64,
    },
    /// It is dropped, because the position is unknown. It is read again later.
    Dropped,
    /// As `Dropped`, and the first such record: see [`LogPosition::Suspect`].
    OffsetRegression,
}

impl Partition {
    /// A new assignment and the stream for its worker. `capacity` bounds the queue between them;
    /// it must be at least the largest limit.
    pub(crate) fn assign(topic: Arc<str>, partition: i32, capacity: usize) -> (Self, PartitionStream) {
        let (sender, records) = mpsc::channel(capacity.max(1));
        let (done_sender, done) = std::sync::mpsc::channel();
        let (closing, cancel) = (CancellationToken::new(), CancellationToken::new());
        let until_committed = UntilCommitted::default();
        let stream = PartitionStream {
            topic,
            partition,
            records,
            until_committed: until_committed.clone(),
            closing: closing.clone(),
            cancel: cancel.clone(),
            _done: done_sender,
        };
        let assigned = Self {
            offsets: OffsetTracker::default(),
            records: Some(sender),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            full_since: None,
            admitted_at: Instant::now(),
            paused: false,
            worker_ended: false,
            stored: None,
            committed: None,
            until_committed,
            log_position: LogPosition::Unknown { from_start: false },
            expected: None,
            start_offset: None,
            metadata: None,
            log_range: None,
            behind: None,
            stall: None,
            closing,
            cancel,
            done,
        };
        (assigned, stream)
    }

    /// Whether every record that was read is settled.
    pub(crate) fn is_idle(&self) -> bool {
        let open = self.records.is_some() && self.log_position == LogPosition::Known;
        open && self.waiting.is_empty() && self.offsets.window() == 0
    }

    /// No records arrive, for this reason.
    pub(crate) fn hold(&mut self, begin: impl FnOnce() -> StallGuard, cause: &dyn Display) {
        self.stall.get_or_insert_with(begin).set_cause(cause);
    }

    /// The reason for the stall has ended.
    pub(crate) fn release(&mut self) {
        self.stall = None;
    }

    fn forget_waiting(&mut self) {
        self.waiting.clear();
        (self.waiting_bytes, self.full_since) = (0, None);
    }

    /// Takes a record from Kafka.
    pub(crate) fn accept(&mut self, record: Record, limit: InFlightLimit, now: Instant) -> AcceptOutcome {
        let offset = record.origin.offset;
        if self.log_position != LogPosition::Known {
            return AcceptOutcome::Dropped;
        }
        let expected = self.expected.unwrap_or(offset);
        if offset < expected {
            self.log_position = LogPosition::Suspect { offset };
            return AcceptOutcome::OffsetRegression;
        }
        if self.stall.is_some() {
            self.stall = None;
        }
        self.expected = Some(offset + 1);
        self.start_offset.get_or_insert(offset);
        // Behind others it waits for the next refill, which admits many at a time.
        let is_next = self.waiting.is_empty();
        let size = record.size();
        self.waiting_bytes += size;
        self.waiting.push_back((record, size));
        if is_next {
            self.admit(limit, now);
        }
        if offset > expected { AcceptOutcome::AcceptedAfterGap { expected } } else { AcceptOutcome::Accepted }
    }

    /// Admits waiting records up to the limit. Returns whether a paused partition should resume: it
    /// does so with its buffer half full, so that there is work until the next records arrive.
    pub(crate) fn refill(&mut self, limit: InFlightLimit, now: Instant) -> bool {
        if self.waiting.is_empty() && !self.paused {
            return false;
        }
        self.admit(limit, now);
        let resumes = self.paused && self.waiting_bytes <= limit.held() / 2;
        self.paused &= !resumes;
        resumes
    }

    /// How full the buffer is.
    pub(crate) fn fill(&self, limit: InFlightLimit) -> Fill {
        match self.waiting_bytes {
            _ if self.waiting.is_empty() => Fill::Nothing,
            bytes if self.paused || bytes < limit.held() => Fill::Something,
            _ => Fill::AtLimit,
        }
    }

    /// Whether it has nothing waiting and could take more records.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.paused
            && self.waiting.is_empty()
            && self.records.is_some()
            && self.log_position == LogPosition::Known
    }

    /// How long records have been waiting, and how long of that nothing was admitted.
    pub(crate) fn has_waited(&self, now: Instant) -> (Duration, Duration) {
        let since = |moment: Instant| now.saturating_duration_since(moment);
        let full = self.full_since.map(since).unwrap_or_default();
        (full, full.min(since(self.admitted_at)))
    }

    /// The client has been told to fetch no more of it for now.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    fn admit(&mut self, limit: InFlightLimit, now: Instant) {
        self.admit_waiting(limit, now);
        self.full_since = if self.waiting.is_empty() { None } else { self.full_since.or(Some(now)) };
    }

    fn admit_waiting(&mut self, limit: InFlightLimit, now: Instant) {
        let Some(records) = &self.records else { return self.forget_waiting() };
        while !self.waiting.is_empty() && !limit.is_reached(&self.offsets) {
            // The slot is reserved first: a handle without a receiver would hold the watermark.
            let slot = match records.try_reserve() {
                Ok(slot) => slot,
                Err(TrySendError::Full(())) => return,
                Err(TrySendError::Closed(())) => return self.worker_ended = !self.cancel.is_cancelled(),
            };
            let Some((record, size)) = self.waiting.pop_front() else { return };
            self.waiting_bytes = self.waiting_bytes.saturating_sub(size);
            self.admitted_at = now;
            let ack = self.offsets.admit(record.origin.offset, size, record.timestamp_ms);
            slot.send(InFlightRecord { record: Arc::new(record), ack });
        }
    }

    /// The offset to store, if it has moved since the last one was stored.
    pub(crate) fn to_store(&self) -> Option<i64> {
        let watermark = self.offsets.watermark().filter(|_| self.log_position == LogPosition::Known);
        watermark.filter(|watermark| self.stored != Some(*watermark))
    }

    /// Records which offset librdkafka has stored for committing, if any.
    pub(crate) fn set_stored(&mut self, offset: Option<i64>) {
        self.stored = offset;
    }

    /// Kafka has confirmed this offset, or without one the stored offset.
    pub(crate) fn note_committed(&mut self, offset: Option<i64>) {
        self.committed = offset.or(self.stored);
        if let Some(committed) = self.committed {
            self.until_committed.note_committed(committed);
        }
    }

    /// Drops what was kept for too long.
    pub(crate) fn expire_kept(&self, now: Instant) {
        self.until_committed.expire(now);
    }

    /// The watermark, if Kafka has not confirmed it.
    pub(crate) fn uncommitted(&self) -> Option<i64> {
        let watermark = self.offsets.watermark().filter(|_| self.log_position == LogPosition::Known);
        watermark.filter(|watermark| self.committed != Some(*watermark))
    }

    /// Whether the worker has ended by itself, which is a bug: its records would wait forever.
    pub(crate) fn has_worker_ended(&self) -> bool {
        self.worker_ended
    }

    /// Whether records are waiting, or would be.
    pub(crate) fn is_full(&self) -> bool {
        self.paused || !self.waiting.is_empty()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(crate) fn unsettled(&self) -> UnsettledCount {
        self.offsets.unsettled()
    }

    /// Tells the worker to start no more work. The next owner of the partition reads the records
    /// that were not started.
    pub(crate) fn close(&mut self) {
        self.closing.cancel();
        // What waits for a commit would hold up the drain that comes before it.
        self.until_committed.close();
        self.records = None;
        self.forget_waiting();
        // Not a recovery: the next owner may stall at the same record.
        if let Some(stall) = self.stall.take() {
            stall.cancel();
        }
    }

    /// Waits until the worker is done, at most for this long.
    pub(crate) fn wait(&self, at_most: Duration) {
        // Nothing is ever sent: this returns when the worker drops its stream.
        let _ = self.done.recv_timeout(at_most);
    }

    /// Cancels a worker that is not done. Returns how many records have no outcome.
    pub(crate) fn cancel_unfinished(&mut self) -> usize {
        if self.is_done() {
            return 0;
        }
        self.cancel.cancel();
        self.offsets.unsettled().records
    }

    /// Whether the worker is done.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.done.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
    }

    /// Cancels the worker at once.
    pub(crate) fn cancel(&mut self) {
        self.close();
        self.cancel.cancel();
    }
}
