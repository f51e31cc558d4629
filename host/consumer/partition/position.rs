//! Where a partition is in its log, and which log that is.

use std::time::{Duration, Instant};

use super::{LogPosition, Partition};
use crate::consumer::metadata::CommitMetadata;
use crate::kafka::TopicId;
use crate::offsets::OffsetTracker;

impl Partition {
    /// Starts at `next` with an empty tracker. `None` means at the first record, whatever its
    /// offset.
    pub(crate) fn begin(&mut self, next: Option<i64>, metadata: CommitMetadata) {
        self.offsets = OffsetTracker::default();
        self.forget_waiting();
        self.until_committed.reset();
        (self.stored, self.committed) = (None, None);
        (self.expected, self.start_offset) = (next, next);
        self.metadata = Some(metadata);
        self.log_position = LogPosition::Known;
        self.stall = None;
    }

    /// The log no longer exists: drops its tracker, so handles of records in flight have no effect.
    /// Returns how many records were in flight.
    pub(crate) fn reset_log(&mut self, from_start: bool) -> usize {
        let in_flight = self.offsets.unsettled().records;
        self.offsets = OffsetTracker::default();
        self.forget_waiting();
        self.until_committed.reset();
        (self.stored, self.committed) = (None, None);
        (self.expected, self.start_offset, self.log_range, self.behind) = (None, None, None, None);
        self.log_position = LogPosition::Unknown { from_start };
        in_flight
    }

    /// The log is still the same one. Returns the offset to continue at.
    pub(crate) fn resume_log(&mut self) -> Option<i64> {
        self.log_position = LogPosition::Known;
        self.stall = None;
        self.expected
    }

    pub(crate) fn log_position(&self) -> LogPosition {
        self.log_position
    }

    /// The brokers report the topic's id, which they did not when the partition started.
    pub(crate) fn set_topic_id(&mut self, id: Option<TopicId>) {
        if let Some(metadata) = &mut self.metadata {
            metadata.topic = metadata.topic.or(id);
        }
    }

    /// The metadata to commit with its offsets.
    pub(crate) fn metadata(&self) -> Option<CommitMetadata> {
        self.metadata
    }

    /// The next offset to read, if the position is known.
    pub(crate) fn expected(&self) -> Option<i64> {
        self.expected.filter(|_| self.log_position == LogPosition::Known)
    }

    /// The next offset to read, even while the position is in doubt.
    pub(crate) fn next_offset(&self) -> Option<i64> {
        self.expected
    }

    /// Records before this offset were removed. Returns the offset that was due, if it is one of
    /// them.
    pub(crate) fn lost_before(&mut self, low: i64) -> Option<i64> {
        let expected = self.expected().filter(|expected| *expected < low)?;
        self.expected = Some(low);
        Some(expected)
    }

    /// Every record before this offset has been read. If all are settled, moves the watermark
    /// there.
    pub(crate) fn skip_to(&mut self, offset: i64) {
        if self.is_idle() && self.expected.is_none_or(|expected| expected < offset) {
            self.offsets.skip_to(offset);
            self.expected = Some(offset);
        }
    }

    /// Kafka has reported the range of the log.
    pub(crate) fn set_log_range(&mut self, low: i64, end: i64, now: Instant) {
        self.log_range = Some((low, end));
        let position = self.position().filter(|position| *position < end);
        self.behind = position.map(|position| match self.behind {
            Some((before, since)) if before == position => (before, since),
            _ => (position, now),
        });
    }

    /// The offset below which everything is settled.
    fn position(&self) -> Option<i64> {
        let (low, _) = self.log_range?;
        Some(self.offsets.watermark().or(self.start_offset).unwrap_or(low).max(low))
    }

    /// How many offsets a new owner of the partition would have to read.
    pub(crate) fn lag(&self) -> Option<i64> {
        let (_, end) = self.log_range?;
        Some(end.saturating_sub(self.position()?).max(0))
    }

    /// The age of the first record that is not settled: by its timestamp, and at least as long as the
    /// partition has stood still there. So a record that cannot be read ages as well, and so does one
    /// whose producer's clock is ahead. Zero if everything is settled; `None` if Kafka has not reported
    /// the log's range.
    pub(crate) fn lag_duration(&self, now: Instant, now_ms: i64) -> Option<Duration> {
        let is_in_hand = self.offsets.window() > 0;
        let waiting = self.waiting.front().and_then(|(record, _)| record.timestamp_ms);
        let written = if is_in_hand { self.offsets.first_timestamp_ms() } else { waiting };
        let age = written.filter(|written| *written >= 0).map(|written| now_ms.saturating_sub(written));
        let age = Duration::from_millis(age.and_then(|age| u64::try_from(age).ok()).unwrap_or(0));
        let behind = self.behind.filter(|(position, _)| self.position() == Some(*position));
        let still = behind.map(|(_, since)| now.saturating_duration_since(since)).unwrap_or_default();
        (self.log_range.is_some() || is_in_hand).then_some(age.max(still))
    }
}
