//! Reading the dead-letter topic from its beginning to the end that it had at the start:
//! one partition after the other, each in its order, so that two readings see the same.
//!
//! Reading joins no group and commits nothing. librdkafka's calls block; they run on tokio's
//! blocking threads, none longer than half a second.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::dead_letter::DeadLetter;
use crate::kafka;
use crate::message::{Header, Origin, Record};

/// How long Kafka may take for one answer.
pub(super) const ANSWER: Duration = Duration::from_secs(8);
/// How long one poll blocks.
const POLL: Duration = Duration::from_millis(500);
/// Records of one step.
const STEP: usize = 500;

/// Reads dead letters. Ends by itself at the end that the topic had when it was opened.
pub struct Reader {
    pub(super) consumer: Arc<BaseConsumer>,
    brokers: String,
    topic: String,
    /// What is still to be read; the first is being read when `assigned`.
    spans: VecDeque<Span>,
    assigned: bool,
}

/// A part of a partition.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) partition: i32,
    pub(super) next: i64,
    pub(super) end: i64,
}

impl Reader {
    /// Finds out what there is to read. `None`: there is no such topic.
    ///
    /// # Errors
    /// When Kafka does not answer within 8 s, or refuses.
    pub async fn open(config: &kafka::Config, group: &str) -> anyhow::Result<Option<Self>> {
        let mut client = config.client();
        client
            // librdkafka wants a group's name even where no group is joined.
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // A slow redrive polls seldom.
            .set("max.poll.interval.ms", "86400000");
        let consumer: Arc<BaseConsumer> = Arc::new(client.create()?);
        let (brokers, topic) = (config.brokers.clone(), config.dead_letter_topic.clone());
        let found = blocking(&consumer, {
            let topic = topic.clone();
            move |consumer| find_spans(consumer, &topic)
        });
        let found = found.await.with_context(|| away(&brokers))?;
        let Some(spans) = found else { return Ok(None) };
        Ok(Some(Self { consumer, brokers, topic, spans: spans.into(), assigned: false }))
    }

    /// The next dead letters, in order; none at the end.
    ///
    /// # Errors
    /// When Kafka gives nothing for 8 s.
    pub async fn read(&mut self) -> anyhow::Result<Vec<DeadLetter>> {
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
                return Ok(step.records.into_iter().map(DeadLetter::of).collect());
            }
            let why = step.problem.unwrap_or_else(|| "no record and no error".into());
            anyhow::ensure!(Instant::now() < deadline, "{}: {why}", away(&self.brokers));
        }
        Ok(Vec::new())
    }

    /// What is still to be read.
    pub(super) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter()
    }

    /// Begins a partition here, unless its first record stands later.
    pub(super) fn begin_at(&mut self, partition: i32, offset: i64) {
        for span in self.spans.iter_mut().filter(|span| span.partition == partition) {
            span.next = span.next.max(offset);
        }
        self.spans.retain(|span| span.next < span.end);
    }
}

/// Runs a call that blocks, away from the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(
    consumer: &Arc<BaseConsumer>,
    call: impl FnOnce(&BaseConsumer) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let consumer = Arc::clone(consumer);
    tokio::task::spawn_blocking(move || call(&consumer)).await?
}

/// The partitions of a topic; `None` when there is no such topic.
pub(super) fn partitions(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Option<Vec<i32>>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(Some(found.partitions().iter().map(|partition| partition.id()).collect())),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(error) => Err(KafkaError::MetadataFetch(error).into()),
    }
}

fn away(brokers: &str) -> String {
    format!("Kafka at `{brokers}` does not answer; check `[kafka] brokers` and `properties`")
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

/// What one step gave.
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
    while step.records.len() < STEP && !step.finished {
        // What is ready is taken at once; only the first record is waited for.
        match consumer.poll(if step.records.is_empty() { POLL } else { Duration::ZERO }) {
            Some(Ok(message)) if message.partition() == span.partition => {
                if message.offset() < span.end {
                    step.next = message.offset() + 1;
                    step.records.push(record(&message));
                }
                step.finished = message.offset() + 1 >= span.end;
            }
            // Also where the last offsets hold no records, as after a transaction.
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

/// Copies a record out of librdkafka's memory.
fn record(message: &BorrowedMessage<'_>) -> Record {
    let copy = Bytes::copy_from_slice;
    let own =
        |h: rdkafka::message::Header<'_, &[u8]>| Header { name: h.key.to_owned(), value: h.value.map(copy) };
    let (topic, partition, offset) = (message.topic().into(), message.partition(), message.offset());
    Record {
        origin: Origin { topic, partition, offset },
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(copy),
        value: message.payload().map(copy),
        headers: message.headers().map_or_else(Vec::new, |headers| headers.iter().map(own).collect()),
    }
}
