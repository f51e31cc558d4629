//! A client view of Kafka: the content of topics, and committed offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use halley::message::{Origin, Record};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::{ANSWER, client, raw};
use crate::support::{eventually, unique};

/// A record as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    /// Names need not be UTF-8.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
    /// Milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
}

impl ConsumedRecord {
    /// The id that the gateway gives the record, unless it carries one.
    pub fn id(&self, topic: &str) -> String {
        let record = Record {
            origin: Origin { topic: topic.into(), partition: self.partition, offset: self.offset },
            timestamp_ms: self.timestamp_ms,
            key: self.key.clone(),
            value: self.value.clone(),
            headers: Vec::new(),
            trusted: false,
        };
        record.message_id().to_string()
    }

    /// The first header of this name as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.iter().find(|(n, _)| n == name)?.1.as_ref()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

/// A view of the broker at this address. Cheap to clone.
#[derive(Debug, Clone)]
pub struct View {
    brokers: String,
}

impl View {
    pub(super) fn new(brokers: String) -> Self {
        Self { brokers }
    }

    /// For `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The committed offsets of a group by partition, without partitions that have none or are at
    /// their beginning.
    pub async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let all = self.committed_marks(group, topic).await;
        all.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect()
    }

    /// The same with the metadata: the topic's incarnation according to the gateway.
    pub async fn committed_marks(&self, group: &str, topic: &str) -> BTreeMap<i32, (i64, String)> {
        let consumer: BaseConsumer =
            client(&self.brokers).set("group.id", group).create().expect("a consumer");
        let list = self.partitions(&consumer, topic, Offset::Invalid);
        // A new broker returns NotCoordinator for a moment.
        let committed = eventually(format!("the offsets of group {group}"), ANSWER, async || {
            consumer.committed_offsets(list.clone(), ANSWER).ok()
        });
        let committed = committed.await;
        let offsets = committed.elements_for_topic(topic);
        offsets
            .iter()
            .filter_map(|partition| match partition.offset() {
                Offset::Offset(offset) if offset > 0 => {
                    Some((partition.partition(), (offset, partition.metadata().to_owned())))
                }
                _ => None,
            })
            .collect()
    }

    /// Commits an offset for a group without members.
    pub async fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let consumer: BaseConsumer =
            client(&self.brokers).set("group.id", group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, partition);
        element.set_offset(Offset::Offset(offset)).expect("a valid offset");
        element.set_metadata(metadata);
        eventually(format!("a commit of group {group}"), ANSWER, async || {
            consumer.commit(&list, CommitMode::Sync).ok()
        })
        .await;
    }

    /// The offset after the last record, by partition, without empty partitions. Equal to
    /// [`Self::committed`] if a group has settled everything.
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = client(&self.brokers).create().expect("a consumer");
        let list = self.partitions(&consumer, topic, Offset::Beginning);
        let mut ends = BTreeMap::new();
        for partition in list.elements() {
            let marks = consumer.fetch_watermarks(topic, partition.partition(), ANSWER);
            let (_, end) = marks.expect("the broker answers");
            if end > 0 {
                ends.insert(partition.partition(), end);
            }
        }
        ends
    }

    /// All records that a consumer currently gets from a topic, by partition and offset, without
    /// aborted transactions.
    pub fn read_all(&self, topic: &str) -> Vec<ConsumedRecord> {
        let consumer: BaseConsumer = client(&self.brokers)
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            // The end is reported in the response to a fetch without records.
            .set("fetch.wait.max.ms", "10")
            .create()
            .expect("a consumer");
        // Offsets do not count records: transactions and retention leave gaps.
        let ends = self.ends(topic);
        let mut unread: BTreeSet<i32> = ends.keys().copied().collect();
        let list = self.partitions(&consumer, topic, Offset::Beginning);
        consumer.assign(&list).expect("partitions that exist can be assigned");
        let until = Instant::now() + ANSWER;
        let mut records = Vec::new();
        while !unread.is_empty() {
            let so_far = records.len();
            assert!(
                Instant::now() < until,
                "topic {topic}: read {so_far} records up to {ends:?} in {ANSWER:?}"
            );
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message))
                    if message.offset() < ends.get(&message.partition()).copied().unwrap_or(0) =>
                {
                    records.push(read(&message));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
                _ => {}
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    fn partitions(&self, consumer: &BaseConsumer, topic: &str, offset: Offset) -> TopicPartitionList {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER).expect("the broker answers");
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            list.add_partition_offset(topic, partition.id(), offset).expect("a valid offset");
        }
        list
    }
}

fn read(message: &BorrowedMessage<'_>) -> ConsumedRecord {
    ConsumedRecord {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: raw::read(message),
        timestamp_ms: message.timestamp().to_millis(),
    }
}
