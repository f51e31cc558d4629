//! The Kafka of the stories: one broker for the whole test binary, started on first use.
//!
//! In this order: a broker named by `HALLEY_TEST_KAFKA`; Apache Kafka 4 as a single KRaft node
//! from `KAFKA_HOME` or from the cache that `fetch-kafka.sh` fills; and when neither is to be
//! had, librdkafka's built-in mock broker, which says so loudly: it keeps about 5 MiB per
//! partition and forgets the rest. Stories that it cannot prove ask [`Kafka::can_prove`].

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use halley::message::{Audience, encode};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::leash::Leash;
use super::{eventually, kafka_node, loudly, unique};

/// How long the broker may take for one request.
const ANSWER: Duration = Duration::from_secs(30);

/// A broker, and one producer to it.
pub struct Kafka {
    brokers: String,
    kind: Kind,
    producer: FutureProducer,
}

enum Kind {
    /// Somebody else's.
    Named,
    /// Our own node; the leash ends it with the test process.
    Node(#[allow(dead_code, reason = "held, so that the node lives")] Leash),
    /// librdkafka's mock, which lives in this client.
    Mock(BaseProducer),
}

/// A record as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Read {
    /// The first header of this name as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.iter().find(|(n, _)| n == name)?.1.as_ref()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

/// The one Kafka of this test process. Blocks while it starts.
pub fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

impl Kafka {
    fn start() -> Self {
        let (brokers, kind) = match std::env::var("HALLEY_TEST_KAFKA") {
            Ok(brokers) => (brokers, Kind::Named),
            Err(_) => match kafka_node::start() {
                Ok((brokers, node)) => (brokers, Kind::Node(node)),
                Err(why) => start_mock(&why),
            },
        };
        let producer = client(&brokers)
            .set("message.timeout.ms", "30000")
            .set("partitioner", "murmur2_random")
            .create()
            .expect("a producer");
        Self { brokers, kind, producer }
    }

    /// For `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Whether this is a real Kafka; says loudly which story stays unproven when not.
    pub fn can_prove(&self, story: &str) -> bool {
        let real = !matches!(self.kind, Kind::Mock(_));
        if !real {
            loudly(format_args!("NOT PROVEN: `{story}` needs a real Kafka, and this is librdkafka's mock"));
        }
        real
    }

    /// Makes a topic with a unique name.
    pub async fn topic(&self, prefix: &str, partitions: i32) -> String {
        let name = unique(prefix);
        self.create_topic(&name, partitions).await;
        name
    }

    /// Makes a topic.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        if let Kind::Mock(owner) = &self.kind {
            let mock = owner.client().mock_cluster().expect("this client owns the mock");
            mock.create_topic(name, partitions, 1).expect("the mock makes topics");
            return;
        }
        let admin: AdminClient<DefaultClientContext> =
            client(&self.brokers).create().expect("an admin client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let results = admin.create_topics([&topic], &options).await.expect("the broker answers");
        for result in results {
            result.unwrap_or_else(|(topic, e)| panic!("topic {topic} cannot be made: {e}"));
        }
    }

    /// Produces a message as `logic` does and waits until the broker has it. Returns the id
    /// that the gateway gives it.
    ///
    /// A room's messages carry the room as the record's key, so that they share a partition.
    pub async fn produce(
        &self,
        topic: &str,
        audience: Audience,
        operation: i32,
        body: impl AsRef<[u8]>,
    ) -> String {
        let key = match &audience {
            Audience::Room(room) => Some(room.to_string()),
            Audience::Keys { keys, .. } => keys.first().map(|key| key.to_string()),
            Audience::Everyone { .. } => None,
        };
        let value = encode(&audience, operation, body.as_ref());
        self.produce_record(topic, key.as_deref(), Some(&value), &[]).await
    }

    /// Produces a ROOM message.
    pub async fn produce_room(&self, topic: &str, room: &str, body: impl AsRef<[u8]>) -> String {
        self.produce(topic, Audience::Room(room.into()), 4, body).await
    }

    /// Produces a PUSH message for connection or user ids, with or without the comet's name.
    pub async fn produce_keys(
        &self,
        topic: &str,
        server: Option<&str>,
        keys: &[&str],
        body: impl AsRef<[u8]>,
    ) -> String {
        let keys = keys.iter().map(|key| (*key).into()).collect();
        self.produce(topic, Audience::Keys { server: server.map(Into::into), keys }, 4, body).await
    }

    /// Produces a BROADCAST message.
    pub async fn produce_everyone(&self, topic: &str, speed: i32, body: impl AsRef<[u8]>) -> String {
        self.produce(topic, Audience::Everyone { speed }, 4, body).await
    }

    /// Produces any record, a tombstone too; returns `<topic>/<partition>/<offset>`.
    pub async fn produce_record(
        &self,
        topic: &str,
        key: Option<&str>,
        value: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> String {
        let mut all = OwnedHeaders::new();
        for (name, value) in headers {
            all = all.insert(Header { key: name, value: Some(*value) });
        }
        let record = FutureRecord { headers: Some(all), ..FutureRecord::<str, [u8]>::to(topic) };
        let record = FutureRecord { key, payload: value, ..record };
        let sent = self.producer.send(record, ANSWER).await;
        let at = sent.unwrap_or_else(|(e, _)| panic!("topic {topic} does not take the record: {e}"));
        format!("{topic}/{}/{}", at.partition, at.offset)
    }

    /// The offsets that a group has committed, by partition; a partition without one is left out.
    pub async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer =
            client(&self.brokers).set("group.id", group).create().expect("a consumer");
        let list = self.partitions(&consumer, topic, Offset::Invalid);
        // A young broker says NotCoordinator for a moment.
        let committed = eventually(format!("the offsets of group {group}"), ANSWER, async || {
            consumer.committed_offsets(list.clone(), ANSWER).ok()
        });
        let committed = committed.await;
        let offsets = committed.elements_for_topic(topic);
        offsets
            .iter()
            .filter_map(|partition| match partition.offset() {
                Offset::Offset(offset) => Some((partition.partition(), offset)),
                _ => None,
            })
            .collect()
    }

    /// The offset after the last record, by partition; a partition without records is left out.
    /// Equal to [`Self::committed`] when a group has settled everything.
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

    /// Everything that a topic holds right now, by partition and offset.
    pub fn read_all(&self, topic: &str) -> Vec<Read> {
        let consumer: BaseConsumer = client(&self.brokers)
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        let wanted: i64 = self.ends(topic).values().sum();
        let list = self.partitions(&consumer, topic, Offset::Beginning);
        consumer.assign(&list).expect("partitions that exist can be assigned");
        let until = Instant::now() + ANSWER;
        let mut records = Vec::new();
        while (records.len() as i64) < wanted {
            let so_far = records.len();
            assert!(Instant::now() < until, "topic {topic}: read {so_far} of {wanted} records in {ANSWER:?}");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                records.push(read(&message));
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

fn start_mock(why: &str) -> (String, Kind) {
    loudly(format_args!(
        "
######## NO REAL KAFKA: {why}
######## The stories run against librdkafka's mock broker; those marked NOT PROVEN are skipped.
######## Set HALLEY_TEST_KAFKA=host:port or KAFKA_HOME, or run tests/support/fetch-kafka.sh.
"
    ));
    let owner: BaseProducer =
        ClientConfig::new().set("test.mock.num.brokers", "1").create().expect("a client with a mock");
    let brokers = owner.client().mock_cluster().expect("this client owns the mock").bootstrap_servers();
    (brokers, Kind::Mock(owner))
}

/// A client's configuration, with quick reconnects.
fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "200");
    config
}

fn read(message: &impl Message) -> Read {
    let headers = message.headers().map(|headers| {
        let own =
            |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(Bytes::copy_from_slice));
        headers.iter().map(own).collect()
    });
    Read {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers.unwrap_or_default(),
    }
}
