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
pub(crate) const ANSWER: Duration = Duration::from_secs(8);
/// How long one poll blocks.
const POLL: Duration = Duration::from_millis(500);
/// The maximum number of records of one batch.
const STEP: usize = 500;
/// A batch ends after this many bytes of record content.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// Reads a topic up to the end that the topic had when it was opened.
pub struct Reader {
    consumer: Arc<BaseConsumer>,
    brokers: String,
    topic: String,
    /// What remains to be read; the first is being read if `assigned`.
    spans: VecDeque<Span>,
    assigned: bool,
}

/// A part of a partition.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Its number.
    pub(crate) partition: i32,
    /// The offset to be read next.
    pub(crate) next: i64,
    /// The offset after the last.
    pub(crate) end: i64,
}

impl Reader {
    /// Finds out what there is to read. `None` if the topic does not exist.
    ///
    /// # Errors
    /// When Kafka does not answer within 8 s, or refuses.
    pub async fn open(config: &Config, topic: &str, group: &str) -> anyhow::Result<Option<Self>> {
        let consumer = client(config, group).create::<BaseConsumer>().map_err(refused)?;
        let consumer = Arc::new(consumer);
        let (brokers, topic) = (config.brokers.clone(), topic.to_owned());
        let found = blocking(&consumer, {
            let topic = topic.clone();
            move |consumer| find_spans(consumer, &topic)
        });
        let found = found.await.with_context(|| away(&brokers))?;
        let Some(spans) = found else { return Ok(None) };
        Ok(Some(Self { consumer, brokers, topic, spans: spans.into(), assigned: false }))
    }

    /// Skips records before the first one at `from_ms`, and from the first one at `to_ms` on; in
    /// milliseconds since 1970. If a topic's timestamps are not in order, records outside of that
    /// time may remain in between.
    ///
    /// # Errors
    /// When Kafka does not answer within 8 s.
    pub async fn narrow(&mut self, from_ms: i64, to_ms: Option<i64>) -> anyhow::Result<()> {
        let (topic, spans) = (self.topic.clone(), self.spans.clone());
        let narrowed =
            blocking(&self.consumer, move |consumer| narrowed(consumer, &topic, spans, from_ms, to_ms));
        self.spans = narrowed.await.with_context(|| away(&self.brokers))?;
        Ok(())
    }

    /// The next records, in order and of one partition; empty at the end.
    ///
    /// # Errors
    /// When Kafka returns nothing for 8 s.
    pub async fn read(&mut self) -> anyhow::Result<Vec<Record>> {
        let mut deadline = Instant::now() + ANSWER;
        while let Some(span) = self.spans.front().cloned() {
            let assign = (!self.assigned).then(|| at(&self.topic, &span));
            let step = blocking(&self.consumer, move |consumer| read_step(consumer, span, assign)).await?;
            self.assigned = true;
            if let Some(span) = self.spans.front_mut() {
                span.next = step.next;
            }
            if step.finished {
                self.spans.pop_front();
                self.assigned = false;
                deadline = Instant::now() + ANSWER;
            }
            if !step.records.is_empty() {
                return Ok(step.records);
            }
            let why = step.problem.unwrap_or_else(|| "no record and no error".into());
            anyhow::ensure!(Instant::now() < deadline, "{}: {why}", away(&self.brokers));
        }
        Ok(Vec::new())
    }

    /// How many offsets remain to be read; an upper bound on the records.
    pub fn left(&self) -> u64 {
        self.spans.iter().map(|span| u64::try_from(span.end - span.next).unwrap_or_default()).sum()
    }

    /// The record at this offset; `None` if there is none. Does not change what is read next.
    ///
    /// # Errors
    /// When Kafka returns nothing for 8 s.
    pub(crate) async fn read_at(&mut self, partition: i32, offset: i64) -> anyhow::Result<Option<Record>> {
        let deadline = Instant::now() + ANSWER;
        let span = Span { partition, next: offset, end: offset + 1 };
        let mut assign = Some(at(&self.topic, &span));
        self.assigned = false;
        loop {
            let (span, assign) = (span.clone(), assign.take());
            let step = blocking(&self.consumer, move |consumer| read_step(consumer, span, assign)).await?;
            if step.finished || !step.records.is_empty() {
                return Ok(step.records.into_iter().next());
            }
            let why = step.problem.unwrap_or_else(|| "no record and no error".into());
            anyhow::ensure!(Instant::now() < deadline, "{}: {why}", away(&self.brokers));
        }
    }

    /// The client, for other requests to Kafka.
    pub(crate) fn consumer(&self) -> &Arc<BaseConsumer> {
        &self.consumer
    }

    /// What remains to be read.
    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter()
    }

    /// Starts a partition at this offset, or at its first record if that is later.
    pub(crate) fn begin_at(&mut self, partition: i32, offset: i64) {
        for span in self.spans.iter_mut().filter(|span| span.partition == partition) {
            span.next = span.next.max(offset);
        }
        self.spans.retain(|span| span.next < span.end);
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
        // A slow redrive polls seldom.
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
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(Some(found.partitions().iter().map(|partition| partition.id()).collect())),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(error) => Err(KafkaError::MetadataFetch(error).into()),
    }
}

fn away(brokers: &str) -> String {
    format!("kafka unreachable at `{brokers}`; check `[kafka] brokers` and `properties`")
}

fn find_spans(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Option<Vec<Span>>> {
    let Some(partitions) = partitions(consumer, topic)? else { return Ok(None) };
    let mut spans = Vec::new();
    for partition in partitions {
        let (next, end) = consumer.fetch_watermarks(topic, partition, ANSWER)?;
        if next < end {
            spans.push(Span { partition, next, end });
        }
    }
    spans.sort_by_key(|span| span.partition);
    Ok(Some(spans))
}

fn at(topic: &str, span: &Span) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, span.partition, Offset::Offset(span.next))
        .expect("an offset of a record is a valid offset");
    list
}

/// Narrows the ranges to the records between two times.
fn narrowed(
    consumer: &BaseConsumer,
    topic: &str,
    spans: VecDeque<Span>,
    from_ms: i64,
    to_ms: Option<i64>,
) -> anyhow::Result<VecDeque<Span>> {
    let firsts = first_at(consumer, topic, &spans, from_ms)?;
    let lasts = to_ms.map(|to| first_at(consumer, topic, &spans, to)).transpose()?.unwrap_or_default();
    let mut narrowed = VecDeque::with_capacity(spans.len());
    for mut span in spans {
        // No record at that time or later: nothing to read.
        span.next = firsts.get(&span.partition).map_or(span.end, |first| span.next.max(*first));
        span.end = lasts.get(&span.partition).map_or(span.end, |last| span.end.min(*last));
        if span.next < span.end {
            narrowed.push_back(span);
        }
    }
    Ok(narrowed)
}

/// The first record of each partition at or after a time; partitions without one are omitted.
fn first_at(
    consumer: &BaseConsumer,
    topic: &str,
    spans: &VecDeque<Span>,
    at_ms: i64,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let mut asked = TopicPartitionList::new();
    for span in spans {
        // Kafka interprets negative times as logical offsets, such as "the end".
        asked.add_partition_offset(topic, span.partition, Offset::Offset(at_ms.max(0)))?;
    }
    if spans.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut found = BTreeMap::new();
    for answer in consumer.offsets_for_times(asked, ANSWER)?.elements() {
        answer.error()?;
        if let Offset::Offset(offset) = answer.offset() {
            found.insert(answer.partition(), offset);
        }
    }
    Ok(found)
}

/// The result of one read.
struct Step {
    records: Vec<Record>,
    next: i64,
    finished: bool,
    problem: Option<String>,
}

fn read_step(
    consumer: &BaseConsumer,
    span: Span,
    assign: Option<TopicPartitionList>,
) -> anyhow::Result<Step> {
    if let Some(list) = assign {
        consumer.assign(&list)?;
    }
    let mut step = Step { records: Vec::new(), next: span.next, finished: false, problem: None };
    let mut bytes = 0;
    while step.records.len() < STEP && bytes < STEP_BYTES && !step.finished {
        // Ready records are taken at once; only the first one is waited for.
        match consumer.poll(if step.records.is_empty() { POLL } else { Duration::ZERO }) {
            Some(Ok(message)) if message.partition() == span.partition => {
                if message.offset() < span.end {
                    step.next = message.offset() + 1;
                    let record = record::copy(&message, &RecordLimits::NONE);
                    bytes += record.size();
                    step.records.push(record);
                }
                step.finished = message.offset() + 1 >= span.end;
            }
            // Also if the last offsets hold no records, as after a transaction.
            Some(Err(KafkaError::PartitionEOF(partition))) => step.finished = partition == span.partition,
            Some(Err(error)) => {
                step.problem = Some(error.to_string());
                break;
            }
            Some(Ok(_)) => {}
            None => break,
        }
    }
    Ok(step)
}
