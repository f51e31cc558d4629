//! One assigned partition as the polling thread sees it: what is admitted, what waits because
//! the pipeline is full, and how far offsets may be committed.
//!
//! No Kafka type comes here, so that the rules can be tested without a broker.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::consumer::feed::{Admitted, Feed};
use crate::consumer::limit::Limit;
use crate::consumer::mark::Mark;
use crate::kafka::TopicId;
use crate::message::Record;
use crate::offsets::{Offsets, Unsettled};
use crate::stalls::StallGuard;

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
    place: Place,
    /// The offset that comes next, where that is known.
    expected: Option<i64>,
    /// The first offset of this log that counts for the group.
    begun: Option<i64>,
    mark: Option<Mark>,
    /// The first offset that the log still has, and the one after its last.
    ends: Option<(i64, i64)>,
    /// No records come, and an operator should know why.
    stall: Option<StallGuard>,
    closing: CancellationToken,
    abandon: CancellationToken,
    done: std::sync::mpsc::Receiver<()>,
}

/// Whether it is known which log is read, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not yet, or not any more: records are dropped until it is. When `from_start`, what the
    /// group has committed is of another log.
    Unknown {
        /// See above.
        from_start: bool,
    },
    /// A record came with this offset although a later one had come: the log may be another one.
    /// Records are dropped until that is known.
    Doubtful {
        /// See above.
        offset: i64,
    },
    /// It is known.
    Known,
}

/// What became of a record that Kafka gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is admitted, or waits.
    Next(Flow),
    /// As `Next`, and the offsets from this one on hold no records, or were not read in time.
    After {
        /// The offset that should have come.
        expected: i64,
        /// What the polling thread has to tell Kafka.
        flow: Flow,
    },
    /// It is dropped: it is not known whether it counts. Kafka will hand it out again.
    Dropped,
    /// As `Dropped`, and this is news: see [`Place::Doubtful`].
    WentBack,
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
            place: Place::Unknown { from_start: false },
            expected: None,
            begun: None,
            mark: None,
            ends: None,
            stall: None,
            closing,
            abandon,
            done,
        };
        (assigned, feed)
    }

    /// It is known where to begin: there, with an empty tracker. `next` is `None` when that is at
    /// the first record, whatever its offset.
    pub(crate) fn begin(&mut self, next: Option<i64>, mark: Mark) {
        self.offsets = Offsets::default();
        self.waiting.clear();
        self.stored = None;
        (self.expected, self.begun) = (next, next);
        self.mark = Some(mark);
        self.place = Place::Known;
        self.stall = None;
    }

    /// The log that was read is not there any more: ends its tracker. Tickets of the records that
    /// are in flight count for nothing. Returns how many these are.
    pub(crate) fn lose_place(&mut self, from_start: bool) -> usize {
        let in_flight = self.offsets.unsettled().records;
        self.offsets = Offsets::default();
        self.waiting.clear();
        self.stored = None;
        (self.expected, self.begun, self.ends) = (None, None, None);
        self.place = Place::Unknown { from_start };
        in_flight
    }

    /// The doubt was for nothing: it is still the same log. Returns the offset to go on with.
    pub(crate) fn keep_place(&mut self) -> Option<i64> {
        self.place = Place::Known;
        self.stall = None;
        self.expected
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The brokers tell the topic's id, which they did not when the partition was placed.
    pub(crate) fn learn(&mut self, id: Option<TopicId>) {
        if let Some(mark) = &mut self.mark {
            mark.topic = mark.topic.or(id);
        }
    }

    /// What is committed with its offsets.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// The offset that comes next, where that is known.
    pub(crate) fn expected(&self) -> Option<i64> {
        self.expected.filter(|_| self.place == Place::Known)
    }

    /// The offset that was to come, also while that is in doubt.
    pub(crate) fn reached(&self) -> Option<i64> {
        self.expected
    }

    /// What stood before this offset is gone. Returns the offset that should have come, when that
    /// was before.
    pub(crate) fn lost_before(&mut self, low: i64) -> Option<i64> {
        let expected = self.expected().filter(|expected| *expected < low)?;
        self.expected = Some(low);
        Some(expected)
    }

    /// There is no record before this offset that has not come. Where all are settled, the group
    /// need not read them again.
    pub(crate) fn skip_to(&mut self, offset: i64) {
        if self.is_idle() && self.expected.is_none_or(|expected| expected < offset) {
            self.offsets.skip_to(offset);
            self.expected = Some(offset);
        }
    }

    /// Whether everything that Kafka has given is settled.
    pub(crate) fn is_idle(&self) -> bool {
        let open = self.records.is_some() && self.place == Place::Known;
        open && self.waiting.is_empty() && self.offsets.span() == 0
    }

    /// No records come, for this reason.
    pub(crate) fn hold(&mut self, begin: impl FnOnce() -> StallGuard, cause: &dyn Display) {
        self.stall.get_or_insert_with(begin).set_cause(cause);
    }

    /// What held it has ended.
    pub(crate) fn release(&mut self) {
        self.stall = None;
    }

    /// Kafka has said which offsets the log holds.
    pub(crate) fn note_end(&mut self, low: i64, end: i64) {
        self.ends = Some((low, end));
    }

    /// How many offsets a process that took over now would have before it.
    pub(crate) fn lag(&self) -> Option<i64> {
        let (low, end) = self.ends?;
        let position = self.offsets.watermark().or(self.begun).unwrap_or(low);
        Some(end.saturating_sub(position.max(low)).max(0))
    }

    /// Takes a record from Kafka.
    pub(crate) fn accept(&mut self, record: Record, limit: Limit) -> Arrival {
        let offset = record.origin.offset;
        if self.place != Place::Known {
            return Arrival::Dropped;
        }
        let expected = self.expected.unwrap_or(offset);
        if offset < expected {
            self.place = Place::Doubtful { offset };
            return Arrival::WentBack;
        }
        if self.stall.is_some() {
            self.stall = None;
        }
        self.expected = Some(offset + 1);
        self.begun.get_or_insert(offset);
        self.waiting.push_back(record);
        self.admit(limit);
        let flow = if self.paused || self.waiting.is_empty() { Flow::Unchanged } else { Flow::Pause };
        self.paused |= flow == Flow::Pause;
        if offset > expected { Arrival::After { expected, flow } } else { Arrival::Next(flow) }
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
        let watermark = self.offsets.watermark().filter(|_| self.place == Place::Known);
        watermark.filter(|watermark| self.stored != Some(*watermark))
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
        // Whoever reads it next may stand still there, too.
        if let Some(stall) = self.stall.take() {
            stall.cancel();
        }
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
