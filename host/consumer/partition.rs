//! One assigned partition as the polling thread sees it: what is admitted, what waits because
//! the pipeline is full, and how far offsets may be committed.
//!
//! No Kafka type comes here, so that the rules can be tested without a broker.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::message::Record;
use crate::offsets::{Offsets, Ticket, Unsettled};

/// A record with its ticket: whoever settles the ticket has given the record its outcome.
#[derive(Debug)]
pub struct Admitted {
    /// The record.
    pub record: Arc<Record>,
    /// Settles its offset.
    pub ticket: Ticket,
}

/// One assigned partition as its worker sees it. Dropping it says that the worker is done.
#[derive(Debug)]
pub struct Feed {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Records in the order of their offsets. Ends when the partition is revoked.
    pub records: mpsc::Receiver<Admitted>,
    /// Cancelled when the partition is going away: begin nothing new, finish what is begun.
    pub closing: CancellationToken,
    /// Cancelled when the time for finishing is over: drop everything.
    pub abandon: CancellationToken,
    /// Closes with the feed; nothing is ever sent.
    _done: std::sync::mpsc::Sender<()>,
}

/// How much of one partition may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Limit {
    /// Nothing is admitted.
    pub(crate) const NOTHING: Self = Self { records: 0, bytes: 0 };
    /// What is admitted at a time while memory is short: one record, and others when they are small.
    pub(crate) const LITTLE: Self = Self { records: 32, bytes: 64 * 1024 };

    /// The share of one of `partitions` partitions. Equal shares, so that a partition that
    /// stands still cannot use up what the others need.
    pub(crate) fn share(self, partitions: usize) -> Self {
        let parts = partitions.max(1);
        Self { records: (self.records / parts).max(1), bytes: (self.bytes / parts).max(1) }
    }

    fn is_reached(self, offsets: &Offsets) -> bool {
        let unsettled = offsets.unsettled();
        let full = unsettled.records >= self.records || unsettled.bytes >= self.bytes;
        full || offsets.span() >= self.span()
    }

    /// Pausing throws away what librdkafka has fetched ahead, so a partition resumes only
    /// once half of its share is free again.
    fn has_room_again(self, offsets: &Offsets) -> bool {
        let unsettled = offsets.unsettled();
        let half_free = unsettled.records <= self.records / 2 && unsettled.bytes <= self.bytes / 2;
        half_free && offsets.span() <= self.span() / 2
    }

    /// How many settled records may wait behind one that is not: it bounds the ledger, and
    /// what is delivered again after a crash.
    fn span(self) -> usize {
        self.records.saturating_mul(16)
    }
}

/// One assigned partition, owned by the polling thread.
pub(crate) struct Partition {
    offsets: Offsets,
    /// `None` once the partition is closing.
    records: Option<mpsc::Sender<Admitted>>,
    /// Read from Kafka while the pipeline was full.
    waiting: VecDeque<Record>,
    paused: bool,
    /// The worker has dropped its feed though nobody told it to.
    gone: bool,
    stored: Option<i64>,
    closing: CancellationToken,
    abandon: CancellationToken,
    done: std::sync::mpsc::Receiver<()>,
}

/// What the polling thread has to tell Kafka after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Unchanged,
    Pause,
    Resume,
}

impl Partition {
    /// A new assignment and the feed for its worker. `capacity` bounds the queue between
    /// them; it has to be at least the greatest limit.
    pub(crate) fn assign(topic: Arc<str>, partition: i32, capacity: usize) -> (Self, Feed) {
        let (sender, records) = mpsc::channel(capacity.max(1));
        let (done_sender, done) = std::sync::mpsc::channel();
        let (closing, abandon) = (CancellationToken::new(), CancellationToken::new());
        let feed = Feed {
            topic,
            partition,
            records,
            closing: closing.clone(),
            abandon: abandon.clone(),
            _done: done_sender,
        };
        let assigned = Self {
            offsets: Offsets::default(),
            records: Some(sender),
            waiting: VecDeque::new(),
            paused: false,
            gone: false,
            stored: None,
            closing,
            abandon,
            done,
        };
        (assigned, feed)
    }

    /// Takes a record from Kafka.
    pub(crate) fn accept(&mut self, record: Record, limit: Limit) -> Flow {
        self.waiting.push_back(record);
        self.admit(limit);
        if self.paused || self.waiting.is_empty() {
            return Flow::Unchanged;
        }
        self.paused = true;
        Flow::Pause
    }

    /// Admits what waits, as far as records have been settled meanwhile.
    pub(crate) fn refill(&mut self, limit: Limit) -> Flow {
        if !self.paused || !limit.has_room_again(&self.offsets) {
            return Flow::Unchanged;
        }
        self.admit(limit);
        if !self.waiting.is_empty() {
            return Flow::Unchanged;
        }
        self.paused = false;
        Flow::Resume
    }

    fn admit(&mut self, limit: Limit) {
        let Some(records) = &self.records else { return self.waiting.clear() };
        while !limit.is_reached(&self.offsets) {
            // The slot is reserved first: a ticket without a receiver would hold the watermark.
            let slot = match records.try_reserve() {
                Ok(slot) => slot,
                Err(TrySendError::Full(())) => return,
                Err(TrySendError::Closed(())) => return self.gone = !self.abandon.is_cancelled(),
            };
            let Some(record) = self.waiting.pop_front() else { return };
            let ticket = self.offsets.admit(record.origin.offset, record.size());
            slot.send(Admitted { record: Arc::new(record), ticket });
        }
    }

    /// The offset to store, when it has moved since [`Partition::stored`].
    pub(crate) fn to_store(&self) -> Option<i64> {
        self.offsets.watermark().filter(|watermark| self.stored != Some(*watermark))
    }

    /// Notes which offset librdkafka has stored for committing, if any.
    pub(crate) fn stored(&mut self, offset: Option<i64>) {
        self.stored = offset;
    }

    /// Whether the worker has ended by itself: a bug, and nobody works on the records any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(crate) fn unsettled(&self) -> Unsettled {
        self.offsets.unsettled()
    }

    /// Tells the worker to begin nothing new. What it has not begun will be read again by
    /// whoever gets the partition next.
    pub(crate) fn close(&mut self) {
        self.closing.cancel();
        self.records = None;
        self.waiting.clear();
    }

    /// Waits until the worker is done, or this time is over.
    pub(crate) fn wait(&self, at_most: Duration) {
        // Nothing is ever sent: it ends when the worker drops its feed.
        let _ = self.done.recv_timeout(at_most);
    }

    /// Tells a worker that is not done to drop everything. Returns how many records are left
    /// without an outcome.
    pub(crate) fn give_up(&mut self) -> usize {
        if self.is_done() {
            return 0;
        }
        self.abandon.cancel();
        self.offsets.unsettled().records
    }

    /// Whether the worker is done.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.done.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
    }

    /// Tells the worker to drop everything, at once.
    pub(crate) fn abandon(&mut self) {
        self.close();
        self.abandon.cancel();
    }
}
