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

use tokio::sync::OnceCell;

use crate::kafka::sender::{NotWritten, Outgoing, Refusal, Sender};
use crate::kafka::{Config, refused};

/// The maximum number of records in a batch.
const MOST_RECORDS: usize = 500;
/// The maximum size of a batch, if the topic accepts it; a larger record is sent alone.
const MOST_BYTES: usize = 512 * 1024;
/// If a topic refuses batches of this size, its records are sent one by one.
const FEWEST_BYTES: usize = 4 * 1024;

/// How a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// As it was given.
    Whole,
    /// Adapted, so that the topic accepts it.
    Fitted,
}

/// Adapts records that their topic refuses.
pub(crate) trait Fit: Sync {
    /// An adapted record that the topic may accept; `None` if nothing more can be done. Called until
    /// the topic accepts it.
    fn fit<'a>(&self, record: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>>;
}

/// Writes in order, with one batch in flight at a time.
pub(crate) struct OrderedSender {
    config: Config,
    batching: Sender,
    /// Created when a batch is refused for the first time.
    alone: OnceCell<Sender>,
    sizes: Sizes,
}

impl OrderedSender {
    /// Creates it. It connects and reconnects automatically.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let batching = Sender::batching(config).map_err(refused)?;
        Ok(Self { config: config.clone(), batching, alone: OnceCell::new(), sizes: Sizes::default() })
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// When the broker does not answer within five seconds.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<i32, NotWritten> {
        self.batching.partitions(topic).await
    }

    /// Writes these records; returns one result for each, in order. An error with a refusal is about
    /// that record alone; one without applies to all remaining records.
    pub(crate) async fn write(
        &mut self,
        topic: &str,
        records: Vec<Outgoing<'_>>,
        fit: &dyn Fit,
    ) -> Vec<Result<Written, NotWritten>> {
        let mut work = Work::new(records);
        while let Some(batch) = work.next_batch(&self.sizes) {
            let sender = match batch.len() {
                1 => {
                    let made = self.alone.get_or_try_init(async || Sender::one_by_one(&self.config)).await;
                    made.unwrap_or(&self.batching)
                }
                _ => &self.batching,
            };
            let records: Vec<_> = batch.iter().map(|waiting| &waiting.record).collect();
            let answers = sender.send_all(topic, &records).await;
            work.take(answers, &mut self.sizes, fit);
        }
        work.answers()
    }
}

/// The batch size: halved after the topic refused a batch for its size, then slowly increased.
#[derive(Debug)]
struct Sizes {
    bytes: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { bytes: MOST_BYTES }
    }
}

impl Sizes {
    fn refused(&mut self, bytes: usize) {
        self.bytes = (bytes.min(self.bytes) / 2).max(FEWEST_BYTES);
    }

    fn taken(&mut self) {
        self.bytes = (self.bytes + self.bytes / 16).min(MOST_BYTES);
    }
}

/// A record without a result.
struct Waiting<'a> {
    index: usize,
    record: Outgoing<'a>,
    fitted: bool,
}

/// The records of one write.
struct Work<'a> {
    answers: Vec<Option<Result<Written, NotWritten>>>,
    /// In order.
    waiting: VecDeque<Waiting<'a>>,
    /// How many records at the front are sent one by one.
    alone: usize,
    /// How many are in flight.
    sent: usize,
}

impl<'a> Work<'a> {
    fn new(records: Vec<Outgoing<'a>>) -> Self {
        let answers = records.iter().map(|_| None).collect();
        let waiting = records.into_iter().enumerate();
        let waiting = waiting.map(|(index, record)| Waiting { index, record, fitted: false }).collect();
        Self { answers, waiting, alone: 0, sent: 0 }
    }

    /// The next batch; `None` if every record has a result.
    fn next_batch(&mut self, sizes: &Sizes) -> Option<&[Waiting<'a>]> {
        if self.waiting.is_empty() {
            return None;
        }
        let waiting = self.waiting.make_contiguous();
        let (mut count, mut bytes) = (1, waiting[0].record.size());
        if self.alone == 0 {
            let rest = waiting.iter().skip(1).take(MOST_RECORDS - 1);
            for size in rest.map(|waiting| waiting.record.size()) {
                bytes += size;
                if bytes > sizes.bytes {
                    break;
                }
                count += 1;
            }
        }
        self.sent = count;
        Some(&waiting[..count])
    }

    /// Handles the results of the last batch.
    fn take(&mut self, answers: Vec<Result<(), NotWritten>>, sizes: &mut Sizes, fit: &dyn Fit) {
        let sent: Vec<_> = self.waiting.drain(..self.sent).collect();
        let (count, bytes) = (sent.len(), sent.iter().map(|waiting| waiting.record.size()).sum());
        let (mut failed, mut first) = (Vec::new(), None);
        for (waiting, answer) in sent.into_iter().zip(answers) {
            match answer {
                Ok(()) => {
                    let written = if waiting.fitted { Written::Fitted } else { Written::Whole };
                    self.answers[waiting.index] = Some(Ok(written));
                }
                Err(error) => {
                    first.get_or_insert(error);
                    failed.push(waiting);
                }
            }
        }
        self.alone = self.alone.saturating_sub(count - failed.len());
        let Some(error) = first else {
            return if count > 1 {
                sizes.taken()
            };
        };
        match error.refusal {
            None => {
                let left = failed.into_iter().chain(self.waiting.drain(..));
                left.for_each(|waiting| self.answers[waiting.index] = Some(Err(error.clone())));
            }
            Some(Refusal::TooLarge) if count > 1 && bytes > FEWEST_BYTES => {
                sizes.refused(bytes);
                self.again(failed);
            }
            Some(_) if count > 1 => {
                self.alone = self.alone.max(failed.len());
                self.again(failed);
            }
            Some(_) => failed.into_iter().for_each(|waiting| self.fit(waiting, &error, fit)),
        }
    }

    /// Puts records back to the front, in order.
    fn again(&mut self, failed: Vec<Waiting<'a>>) {
        failed.into_iter().rev().for_each(|waiting| self.waiting.push_front(waiting));
    }

    /// A record was refused alone.
    fn fit(&mut self, Waiting { index, record, .. }: Waiting<'a>, error: &NotWritten, fit: &dyn Fit) {
        match fit.fit(record, error) {
            Some(record) => {
                self.waiting.push_front(Waiting { index, record, fitted: true });
                self.alone = self.alone.max(1);
            }
            None => {
                self.answers[index] = Some(Err(error.clone()));
                self.alone = self.alone.saturating_sub(1);
            }
        }
    }

    fn answers(self) -> Vec<Result<Written, NotWritten>> {
        self.answers.into_iter().map(|answer| answer.expect("all work is done")).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A topic that accepts batches and records up to a size, and no old records.
    struct Topic {
        most_bytes: usize,
        log: Vec<i64>,
    }

    impl Topic {
        fn refusal(&self, batch: &[Waiting<'_>]) -> Option<Refusal> {
            let old = batch.iter().any(|waiting| waiting.record.timestamp_ms.is_some_and(|time| time < 0));
            let bytes: usize = batch.iter().map(|waiting| waiting.record.size()).sum();
            if bytes > self.most_bytes { Some(Refusal::TooLarge) } else { old.then_some(Refusal::Timestamp) }
        }

        fn write(&mut self, batch: &[Waiting<'_>]) -> Vec<Result<(), NotWritten>> {
            let refusal = self.refusal(batch);
            let error = NotWritten { topic: "t".into(), reason: "no".into(), refusal };
            if refusal.is_some() {
                return batch.iter().map(|_| Err(error.clone())).collect();
            }
            let number = |waiting: &Waiting<'_>| waiting.record.timestamp_ms.unwrap_or_default().abs();
            self.log.extend(batch.iter().map(number));
            batch.iter().map(|_| Ok(())).collect()
        }
    }

    /// A record with its number as timestamp; negative for an old record.
    fn record(number: usize, size: usize, old: bool) -> Outgoing<'static> {
        let number = number as i64 + 1;
        Outgoing {
            value: Some(vec![0; size].into()),
            timestamp_ms: Some(if old { -number } else { number }),
            ..Outgoing::default()
        }
    }

    /// Removes an old record's timestamp, or a large one's value; gives up on one without a value.
    struct Mend;

    impl Fit for Mend {
        fn fit<'a>(&self, mut record: Outgoing<'a>, error: &NotWritten) -> Option<Outgoing<'a>> {
            match error.refusal? {
                Refusal::Timestamp => record.timestamp_ms = record.timestamp_ms.map(i64::abs),
                _ => drop(record.value.take()?),
            }
            Some(record)
        }
    }

    fn run(topic: &mut Topic, records: Vec<Outgoing<'_>>) -> Vec<Result<Written, NotWritten>> {
        let (mut work, mut sizes) = (Work::new(records), Sizes::default());
        while let Some(batch) = work.next_batch(&sizes) {
            let answers = topic.write(batch);
            work.take(answers, &mut sizes, &Mend);
        }
        work.answers()
    }

    #[test]
    fn other_failures_end_the_attempt_in_order() {
        let mut work = Work::new((0..3).map(|n| record(n, 1, false)).collect());
        let away = NotWritten { topic: "t".into(), reason: "away".into(), refusal: None };
        assert_eq!(work.next_batch(&Sizes::default()).map(<[_]>::len), Some(3));
        work.take(vec![Ok(()), Err(away.clone()), Err(away)], &mut Sizes::default(), &Mend);
        assert!(work.next_batch(&Sizes::default()).is_none());
        let answers = work.answers();
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false]);
    }

    proptest! {
        #[test]
        fn records_are_written_once_in_order_and_rarely_adapted(
            records in vec((prop_oneof![0..200usize, 2_000..9_000usize], prop::bool::weighted(0.1)), 0..80),
            most_bytes in 200..20_000usize,
        ) {
            let mut topic = Topic { most_bytes, log: Vec::new() };
            let given = records.iter().enumerate().map(|(n, (size, old))| record(n, *size, *old)).collect();
            let answers = run(&mut topic, given);
            prop_assert!(topic.log.iter().eq((1..=records.len() as i64).collect::<Vec<_>>().iter()));
            for ((size, old), answer) in records.iter().zip(answers) {
                let whole = !old && record(0, *size, *old).size() <= most_bytes;
                prop_assert_eq!(answer.expect("written"), if whole { Written::Whole } else { Written::Fitted });
            }
        }
    }
}
