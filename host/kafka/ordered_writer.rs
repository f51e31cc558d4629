//! Writes records to a topic in order, even if the topic refuses some of them.
//!
//! Records are sent in batches, the next one after the broker has answered the last. The broker
//! refuses a batch as a whole. Then its records are sent in smaller batches, or one by one. A
//! record that is refused alone is itself the cause: its writer may adapt it, or drop it. Records
//! never overtake each other, since later ones are not sent meanwhile. The only exception is a
//! batch that librdkafka splits, if the first half is refused and the second is not.
//!
//! Other failures (no broker reachable, not authorized) end the attempt: all unwritten records are
//! returned in order.

use std::collections::VecDeque;

use smart_default::SmartDefault;
use tokio::sync::OnceCell;

use crate::kafka::record_writer::{OutgoingRecord, RecordWriter, WriteError, WriteRefusal};
use crate::kafka::{Config, refused};

/// The maximum number of records in a batch.
const MOST_RECORDS: usize = 500;
/// The maximum size of a batch, if the topic accepts it; a larger record is sent alone.
const MOST_BYTES: usize = 512 * 1024;
/// If a topic refuses batches of this size, its records are sent one by one.
const FEWEST_BYTES: usize = 4 * 1024;

/// How a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOutcome {
    /// As it was given.
    Whole,
    /// Adapted, so that the topic accepts it.
    Fitted,
}

/// Adapts records that their topic refuses.
pub(crate) trait FitRecord: Sync {
    /// An adapted record that the topic may accept; `None` if nothing more can be done. Called until
    /// the topic accepts it.
    fn fit<'a>(&self, record: OutgoingRecord<'a>, error: &WriteError) -> Option<OutgoingRecord<'a>>;
}

/// Writes in order, with one batch in flight at a time.
pub(crate) struct OrderedWriter {
    config: Config,
    batching: RecordWriter,
    /// Created when a batch is refused for the first time.
    unbatched: OnceCell<RecordWriter>,
    batch_size: BatchSize,
}

impl OrderedWriter {
    /// Creates it. It connects and reconnects automatically.
    ///
    /// # Errors
    /// If librdkafka rejects a property.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let batching = RecordWriter::batching(config).map_err(refused)?;
        Ok(Self {
            config: config.clone(),
            batching,
            unbatched: OnceCell::new(),
            batch_size: BatchSize::default(),
        })
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// When the broker does not answer within five seconds.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<i32, WriteError> {
        self.batching.partitions(topic).await
    }

    /// Writes these records; returns one result for each, in order. An error with a refusal is about
    /// that record alone; one without applies to all remaining records.
    pub(crate) async fn write(
        &mut self,
        topic: &str,
        records: Vec<OutgoingRecord<'_>>,
        fit: &dyn FitRecord,
    ) -> Vec<Result<WriteOutcome, WriteError>> {
        let mut work = OrderedWrite::new(records);
        while let Some(batch) = work.next_batch(&self.batch_size) {
            let sender = match batch.len() {
                1 => {
                    let made =
                        self.unbatched.get_or_try_init(async || RecordWriter::unbatched(&self.config)).await;
                    made.unwrap_or(&self.batching)
                }
                _ => &self.batching,
            };
            let records: Vec<_> = batch.iter().map(|waiting| &waiting.record).collect();
            let answers = sender.send_all(topic, &records).await;
            work.take(answers, &mut self.batch_size, fit);
        }
        work.answers()
    }
}

/// The batch size: halved after the topic refused a batch for its size, then slowly increased.
#[derive(Debug, SmartDefault)]
struct BatchSize {
    #[default(MOST_BYTES)]
    bytes: usize,
}

impl BatchSize {
    fn refused(&mut self, bytes: usize) {
        self.bytes = (bytes.min(self.bytes) / 2).max(FEWEST_BYTES);
    }

    fn taken(&mut self) {
        self.bytes = (self.bytes + self.bytes / 16).min(MOST_BYTES);
    }
}

/// A record without a result.
struct UnansweredRecord<'a> {
    index: usize,
    record: OutgoingRecord<'a>,
    fitted: bool,
}

/// The records of one write.
struct OrderedWrite<'a> {
    answers: Vec<Option<Result<WriteOutcome, WriteError>>>,
    /// In order.
    waiting: VecDeque<UnansweredRecord<'a>>,
    /// How many records at the front are sent one by one.
    unbatched: usize,
    /// How many are in flight.
    sent: usize,
}

impl<'a> OrderedWrite<'a> {
    fn new(records: Vec<OutgoingRecord<'a>>) -> Self {
        let answers = records.iter().map(|_| None).collect();
        let waiting = records.into_iter().enumerate();
        let waiting =
            waiting.map(|(index, record)| UnansweredRecord { index, record, fitted: false }).collect();
        Self { answers, waiting, unbatched: 0, sent: 0 }
    }

    /// The next batch; `None` if every record has a result.
    fn next_batch(&mut self, batch_size: &BatchSize) -> Option<&[UnansweredRecord<'a>]> {
        if self.waiting.is_empty() {
            return None;
        }
        let waiting = self.waiting.make_contiguous();
        let (mut count, mut bytes) = (1, waiting[0].record.size());
        if self.unbatched == 0 {
            let rest = waiting.iter().skip(1).take(MOST_RECORDS - 1);
            for size in rest.map(|waiting| waiting.record.size()) {
                bytes += size;
                if bytes > batch_size.bytes {
                    break;
                }
                count += 1;
            }
        }
        self.sent = count;
        Some(&waiting[..count])
    }

    /// Handles the results of the last batch.
    fn take(
        &mut self,
        answers: Vec<Result<(), WriteError>>,
        batch_size: &mut BatchSize,
        fit: &dyn FitRecord,
    ) {
        let sent: Vec<_> = self.waiting.drain(..self.sent).collect();
        let (count, bytes) = (sent.len(), sent.iter().map(|waiting| waiting.record.size()).sum());
        let (mut failed, mut first) = (Vec::new(), None);
        for (waiting, answer) in sent.into_iter().zip(answers) {
            match answer {
                Ok(()) => {
                    let written = if waiting.fitted { WriteOutcome::Fitted } else { WriteOutcome::Whole };
                    self.answers[waiting.index] = Some(Ok(written));
                }
                Err(error) => {
                    first.get_or_insert(error);
                    failed.push(waiting);
                }
            }
        }
        self.unbatched = self.unbatched.saturating_sub(count - failed.len());
        let Some(error) = first else {
            return if count > 1 {
                batch_size.taken()
            };
        };
        match error.refusal {
            None => {
                let left = failed.into_iter().chain(self.waiting.drain(..));
                left.for_each(|waiting| self.answers[waiting.index] = Some(Err(error.clone())));
            }
            Some(WriteRefusal::TooLarge) if count > 1 && bytes > FEWEST_BYTES => {
                batch_size.refused(bytes);
                self.again(failed);
            }
            Some(_) if count > 1 => {
                self.unbatched = self.unbatched.max(failed.len());
                self.again(failed);
            }
            Some(_) => failed.into_iter().for_each(|waiting| self.fit(waiting, &error, fit)),
        }
    }

    /// Puts records back to the front, in order.
    fn again(&mut self, failed: Vec<UnansweredRecord<'a>>) {
        failed.into_iter().rev().for_each(|waiting| self.waiting.push_front(waiting));
    }

    /// A record was refused alone.
    fn fit(
        &mut self,
        UnansweredRecord { index, record, .. }: UnansweredRecord<'a>,
        error: &WriteError,
        fit: &dyn FitRecord,
    ) {
        match fit.fit(record, error) {
            Some(record) => {
                self.waiting.push_front(UnansweredRecord { index, record, fitted: true });
                self.unbatched = self.unbatched.max(1);
            }
            None => {
                self.answers[index] = Some(Err(error.clone()));
                self.unbatched = self.unbatched.saturating_sub(1);
            }
        }
    }

    fn answers(self) -> Vec<Result<WriteOutcome, WriteError>> {
        self.answers.into_iter().map(|answer| answer.expect("all work is done")).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A topic that accepts batches and records up to a size, and no old records.
    struct FakeTopic {
        most_bytes: usize,
        log: Vec<i64>,
    }

    impl FakeTopic {
        fn refusal(&self, batch: &[UnansweredRecord<'_>]) -> Option<WriteRefusal> {
            let old = batch.iter().any(|waiting| waiting.record.timestamp_ms.is_some_and(|time| time < 0));
            let bytes: usize = batch.iter().map(|waiting| waiting.record.size()).sum();
            if bytes > self.most_bytes {
                Some(WriteRefusal::TooLarge)
            } else {
                old.then_some(WriteRefusal::Timestamp)
            }
        }

        fn write(&mut self, batch: &[UnansweredRecord<'_>]) -> Vec<Result<(), WriteError>> {
            let refusal = self.refusal(batch);
            let error = WriteError { topic: "t".into(), reason: "no".into(), refusal };
            if refusal.is_some() {
                return batch.iter().map(|_| Err(error.clone())).collect();
            }
            let number =
                |waiting: &UnansweredRecord<'_>| waiting.record.timestamp_ms.unwrap_or_default().abs();
            self.log.extend(batch.iter().map(number));
            batch.iter().map(|_| Ok(())).collect()
        }
    }

    /// A record with its number as timestamp; negative for an old record.
    fn record(number: usize, size: usize, old: bool) -> OutgoingRecord<'static> {
        let number = number as i64 + 1;
        OutgoingRecord {
            value: Some(vec![0; size].into()),
            timestamp_ms: Some(if old { -number } else { number }),
            ..OutgoingRecord::default()
        }
    }

    /// Removes an old record's timestamp, or a large one's value; gives up on one without a value.
    struct TestAdapter;

    impl FitRecord for TestAdapter {
        fn fit<'a>(&self, mut record: OutgoingRecord<'a>, error: &WriteError) -> Option<OutgoingRecord<'a>> {
            match error.refusal? {
                WriteRefusal::Timestamp => record.timestamp_ms = record.timestamp_ms.map(i64::abs),
                _ => drop(record.value.take()?),
            }
            Some(record)
        }
    }

    fn run(topic: &mut FakeTopic, records: Vec<OutgoingRecord<'_>>) -> Vec<Result<WriteOutcome, WriteError>> {
        let (mut work, mut batch_size) = (OrderedWrite::new(records), BatchSize::default());
        while let Some(batch) = work.next_batch(&batch_size) {
            let answers = topic.write(batch);
            work.take(answers, &mut batch_size, &TestAdapter);
        }
        work.answers()
    }

    #[test]
    fn other_failures_end_the_attempt_in_order() {
        let mut work = OrderedWrite::new((0..3).map(|n| record(n, 1, false)).collect());
        let away = WriteError { topic: "t".into(), reason: "away".into(), refusal: None };
        assert_eq!(work.next_batch(&BatchSize::default()).map(<[_]>::len), Some(3));
        work.take(vec![Ok(()), Err(away.clone()), Err(away)], &mut BatchSize::default(), &TestAdapter);
        assert!(work.next_batch(&BatchSize::default()).is_none());
        let answers = work.answers();
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false]);
    }

    proptest! {
        #[test]
        fn records_are_written_once_in_order_and_rarely_adapted(
            records in vec((prop_oneof![0..200usize, 2_000..9_000usize], prop::bool::weighted(0.1)), 0..80),
            most_bytes in 200..20_000usize,
        ) {
            let mut topic = FakeTopic { most_bytes, log: Vec::new() };
            let given = records.iter().enumerate().map(|(n, (size, old))| record(n, *size, *old)).collect();
            let answers = run(&mut topic, given);
            prop_assert!(topic.log.iter().eq((1..=records.len() as i64).collect::<Vec<_>>().iter()));
            for ((size, old), answer) in records.iter().zip(answers) {
                let whole = !old && record(0, *size, *old).size() <= most_bytes;
                prop_assert_eq!(answer.expect("written"), if whole { WriteOutcome::Whole } else { WriteOutcome::Fitted });
            }
        }
    }
}
