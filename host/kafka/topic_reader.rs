//! Reads a topic from its beginning, or from a time on, to the end that it had when reading started:
//! one partition after the other, each in order, so two readings return the same.
//!
//! Reading joins no group and commits nothing. librdkafka's calls block; they run on tokio's
//! blocking threads, a poll for at most half a second.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::blocking::run_blocking;
use crate::kafka::{Config, record, refused};
use crate::message::{Record, RecordLimits};

/// Timeout of one request to Kafka.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one poll blocks.
const POLL: Duration = Duration::from_millis(500);
/// The maximum number of records of one batch.
const BATCH_RECORDS: usize = 500;
/// A batch ends after this many bytes of record content.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Reads a topic up to the end that the topic had when it was opened.
pub struct TopicReader {
    consumer: Arc<BaseConsumer>,
    brokers: String,
    topic: String,
    /// What remains to be read; the first is being read if `assigned`.
    ranges: VecDeque<OffsetRange>,
    assigned: bool,
}

/// A part of a partition.
#[derive(Clone, Debug)]
pub(crate) struct OffsetRange {
    /// Its number.
    pub(crate) partition: i32,
    /// The offset to be read next.
    pub(crate) next: i64,
    /// The offset after the last.
    pub(crate) end: i64,
}

impl TopicReader {
    /// Finds out what there is to read. `None` if the topic does not exist.
    ///
    /// # Errors
    /// If Kafka does not answer within 8 s, or refuses.
    pub async fn open(config: &Config, topic: &str, group: &str) -> anyhow::Result<Option<Self>> {
        let consumer = client(config, group).create::<BaseConsumer>().map_err(refused)?;
        let consumer = Arc::new(consumer);
        let (brokers, topic) = (config.brokers.clone(), topic.to_owned());
        let found = blocking(&consumer, {
            let topic = topic.clone();
            move |consumer| find_ranges(consumer, &topic)
        });
        let found = found.await.with_context(|| no_answer(&brokers))?;
        let Some(ranges) = found else { return Ok(None) };
        Ok(Some(Self { consumer, brokers, topic, ranges: ranges.into(), assigned: false }))
    }

    /// Skips records before the first one at `from_ms`, and from the first one at `to_ms` on; in
    /// milliseconds since 1970. If a topic's timestamps are not in order, records outside of that
    /// time may remain in between.
    ///
    /// # Errors
    /// If Kafka does not answer within 8 s.
    pub async fn narrow(&mut self, from_ms: i64, to_ms: Option<i64>) -> anyhow::Result<()> {
        let (topic, ranges) = (self.topic.clone(), self.ranges.clone());
        let narrowed =
            blocking(&self.consumer, move |consumer| narrowed(consumer, &topic, ranges, from_ms, to_ms));
        self.ranges = narrowed.await.with_context(|| no_answer(&self.brokers))?;
        Ok(())
    }

    /// The next records, in order and of one partition; empty at the end.
    ///
    /// # Errors
    /// When Kafka returns nothing for 8 s.
    pub async fn read(&mut self) -> anyhow::Result<Vec<Record>> {
        let mut deadline = Instant::now() + REQUEST_TIMEOUT;
        while let Some(range) = self.ranges.front().cloned() {
            let assign = (!self.assigned).then(|| at(&self.topic, &range));
            let batch = blocking(&self.consumer, move |consumer| read_batch(consumer, range, assign)).await?;
            self.assigned = true;
            if let Some(range) = self.ranges.front_mut() {
                range.next = batch.next;
            }
            if batch.finished {
                self.ranges.pop_front();
                self.assigned = false;
                deadline = Instant::now() + REQUEST_TIMEOUT;
            }
            if !batch.records.is_empty() {
                return Ok(batch.records);
            }
            let why = batch.problem.unwrap_or_else(|| "no record and no error".into());
            anyhow::ensure!(Instant::now() < deadline, "{}: {why}", no_answer(&self.brokers));
        }
        Ok(Vec::new())
    }

    /// How many offsets remain to be read; an upper bound on the records.
    pub fn left(&self) -> u64 {
        self.ranges.iter().map(|range| u64::try_from(range.end - range.next).unwrap_or_default()).sum()
    }

    /// The record at this offset; `None` if there is none. Does not change what is read next.
    ///
    /// # Errors
    /// When Kafka returns nothing for 8 s.
    pub(crate) async fn read_at(&mut self, partition: i32, offset: i64) -> anyhow::Result<Option<Record>> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let range = OffsetRange { partition, next: offset, end: offset + 1 };
        let mut assign = Some(at(&self.topic, &range));
        self.assigned = false;
        loop {
            let (range, assign) = (range.clone(), assign.take());
            let batch = blocking(&self.consumer, move |consumer| read_batch(consumer, range, assign)).await?;
            if batch.finished || !batch.records.is_empty() {
                return Ok(batch.records.into_iter().next());
            }
            let why = batch.problem.unwrap_or_else(|| "no record and no error".into());
            anyhow::ensure!(Instant::now() < deadline, "{}: {why}", no_answer(&self.brokers));
        }
    }

    /// The client, for other requests to Kafka.
    pub(crate) fn consumer(&self) -> &Arc<BaseConsumer> {
        &self.consumer
    }

    /// What remains to be read.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = &OffsetRange> {
        self.ranges.iter()
    }

    /// Starts a partition at this offset, or at its first record if that is later.
    pub(crate) fn begin_at(&mut self, partition: i32, offset: i64) {
        for range in self.ranges.iter_mut().filter(|range| range.partition == partition) {
            range.next = range.next.max(offset);
        }
        self.ranges.retain(|range| range.next < range.end);
    }
}

/// The client configuration of a reader.
pub(super) fn client(config: &Config, group: &str) -> ClientConfig {
    let mut client = config.client();
    client
        // librdkafka requires a group name even if no group is joined.
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("queued.max.messages.kbytes", "16384")
        // A slow redrive polls rarely.
        .set("max.poll.interval.ms", "86400000");
    client
}

/// Runs a blocking call on a blocking thread.
pub(crate) async fn blocking<C: Send + Sync + 'static, T: Send + 'static>(
    consumer: &Arc<C>,
    call: impl FnOnce(&C) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let consumer = Arc::clone(consumer);
    run_blocking("a call to kafka", move || call(&consumer)).await?
}

/// The partitions of a topic; `None` if it does not exist.
pub(crate) fn partitions<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
) -> anyhow::Result<Option<Vec<i32>>> {
    let metadata = consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(Some(found.partitions().iter().map(|partition| partition.id()).collect())),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(error) => Err(KafkaError::MetadataFetch(error).into()),
    }
}

pub(crate) fn no_answer(brokers: &str) -> String {
    format!("kafka unreachable at `{brokers}`; check `[kafka] brokers` and `properties`")
}

fn find_ranges(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Option<Vec<OffsetRange>>> {
    let Some(partitions) = partitions(consumer, topic)? else { return Ok(None) };
    let mut ranges = Vec::new();
    for partition in partitions {
        let (next, end) = consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)?;
        if next < end {
            ranges.push(OffsetRange { partition, next, end });
        }
    }
    ranges.sort_by_key(|range| range.partition);
    Ok(Some(ranges))
}

fn at(topic: &str, range: &OffsetRange) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, range.partition, Offset::Offset(range.next))
        .expect("an offset of a record is a valid offset");
    list
}

/// Narrows the ranges to the records between two times.
fn narrowed(
    consumer: &BaseConsumer,
    topic: &str,
    ranges: VecDeque<OffsetRange>,
    from_ms: i64,
    to_ms: Option<i64>,
) -> anyhow::Result<VecDeque<OffsetRange>> {
    let firsts = first_at(consumer, topic, &ranges, from_ms)?;
    let lasts = to_ms.map(|to| first_at(consumer, topic, &ranges, to)).transpose()?.unwrap_or_default();
    let mut narrowed = VecDeque::with_capacity(ranges.len());
    for mut range in ranges {
        // No record at that time or later: nothing to read.
        range.next = firsts.get(&range.partition).map_or(range.end, |first| range.next.max(*first));
        range.end = lasts.get(&range.partition).map_or(range.end, |last| range.end.min(*last));
        if range.next < range.end {
            narrowed.push_back(range);
        }
    }
    Ok(narrowed)
}

/// The first record of each partition at or after a time; partitions without one are omitted.
fn first_at(
    consumer: &BaseConsumer,
    topic: &str,
    ranges: &VecDeque<OffsetRange>,
    at_ms: i64,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let mut asked = TopicPartitionList::new();
    for range in ranges {
        // Kafka interprets negative times as logical offsets, such as "the end".
        asked.add_partition_offset(topic, range.partition, Offset::Offset(at_ms.max(0)))?;
    }
    if ranges.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut found = BTreeMap::new();
    for answer in consumer.offsets_for_times(asked, REQUEST_TIMEOUT)?.elements() {
        answer.error()?;
        if let Offset::Offset(offset) = answer.offset() {
            found.insert(answer.partition(), offset);
        }
    }
    Ok(found)
}

/// The result of one read.
struct ReadBatch {
    records: Vec<Record>,
    next: i64,
    finished: bool,
    problem: Option<String>,
}

fn read_batch(
    consumer: &BaseConsumer,
    range: OffsetRange,
    assign: Option<TopicPartitionList>,
) -> anyhow::Result<ReadBatch> {
    if let Some(list) = assign {
        consumer.assign(&list)?;
    }
    let mut batch = ReadBatch { records: Vec::new(), next: range.next, finished: false, problem: None };
    let mut bytes = 0;
    while batch.records.len() < BATCH_RECORDS && bytes < BATCH_BYTES && !batch.finished {
        // Ready records are taken at once; only the first one is waited for.
        match consumer.poll(if batch.records.is_empty() { POLL } else { Duration::ZERO }) {
            Some(Ok(message)) if message.partition() == range.partition => {
                if message.offset() < range.end {
                    batch.next = message.offset() + 1;
                    let record = record::copy(&message, &RecordLimits::NONE, &mut None);
                    bytes += record.size();
                    batch.records.push(record);
                }
                batch.finished = message.offset() + 1 >= range.end;
            }
            // Also if the last offsets hold no records, as after a transaction.
            Some(Err(KafkaError::PartitionEOF(partition))) => batch.finished = partition == range.partition,
            Some(Err(error)) => {
                batch.problem = Some(error.to_string());
                break;
            }
            Some(Ok(_)) => {}
            None => break,
        }
    }
    Ok(batch)
}
