//! The Kafka of the stories: one broker for the whole test binary, started on first use.
//!
//! In this order: the broker in `HALLEY_TEST_KAFKA`; Apache Kafka 4 as a single KRaft node from
//! `KAFKA_HOME` or from the cache of `fetch-kafka.sh`; or else librdkafka's mock broker, with a
//! warning: it keeps about 5 MiB per partition. Stories that it cannot prove ask
//! [`Kafka::can_prove`].
//!
//! A story that stops its broker starts its own Apache Kafka: [`Kafka::own`].

pub mod acl;
mod node;
mod produce;
mod raw;
mod topics;
mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, FutureProducer, Producer};

use super::proxy::Proxy;
use super::redis_nodes::free_port;
use super::{print_uncaptured, unique};
use node::{Node, SecondListener};

pub use view::{ConsumedRecord, View};

/// Timeout of one request.
const ANSWER: Duration = Duration::from_secs(30);

/// A broker and a producer for it.
pub struct Kafka {
    view: View,
    kind: BrokerKind,
    producer: FutureProducer,
}

enum BrokerKind {
    /// An external broker.
    Named,
    /// The node that all stories share; it ends with the test process.
    Shared(#[allow(dead_code, reason = "held, so that the node lives")] Node),
    /// A node of one story.
    Own(Arc<Mutex<Node>>),
    /// librdkafka's mock, which lives in this client.
    Mock(BaseProducer),
}

/// The shared Kafka of this test process. Blocks while it starts.
pub fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

impl Kafka {
    fn start() -> Self {
        let (brokers, kind) = match std::env::var("HALLEY_TEST_KAFKA") {
            Ok(brokers) => (brokers, BrokerKind::Named),
            Err(_) => match Node::start(None) {
                Ok(node) => (node.brokers().to_owned(), BrokerKind::Shared(node)),
                Err(why) => start_mock(&why),
            },
        };
        let producer = producer(&brokers, &[("message.timeout.ms", "30000")]);
        Self { view: View::new(brokers), kind, producer }
    }

    /// Starts a broker for one story, which can be stopped and ends with this value. `None` if there
    /// is no Apache Kafka; prints what is not proven then.
    pub async fn own() -> Option<Self> {
        Self::own_with(None).await
    }

    /// The same behind a proxy. Clients of [`Proxy::address`] reach the broker only through the
    /// proxy, clients of [`Self::brokers`] directly.
    pub async fn own_behind_proxy(seed: u64) -> Option<(Self, Proxy)> {
        let listen = format!("127.0.0.1:{}", free_port());
        let proxy = Proxy::start(listen.as_str(), seed).await;
        let second_listener = SecondListener { listen, advertise: proxy.address(), secured: false };
        Some((Self::own_with(Some(second_listener)).await?, proxy))
    }

    /// The same with a second listener, whose address is returned: clients that log in there may only
    /// do what was granted.
    pub async fn own_secured() -> Option<(Self, String)> {
        let listen = format!("127.0.0.1:{}", free_port());
        let second_listener =
            SecondListener { listen: listen.clone(), advertise: listen.clone(), secured: true };
        Some((Self::own_with(Some(second_listener)).await?, listen))
    }

    async fn own_with(second_listener: Option<SecondListener>) -> Option<Self> {
        let story = std::thread::current().name().unwrap_or("a story").to_owned();
        let node = match blocking(move || Node::start(second_listener.as_ref())).await {
            Ok(node) => node,
            Err(why) => {
                print_uncaptured(format_args!("NOT PROVEN: `{story}` needs its own Apache Kafka: {why}"));
                return None;
            }
        };
        let brokers = node.brokers().to_owned();
        // Records produced while it is stopped wait, and are written once.
        let producer =
            producer(&brokers, &[("message.timeout.ms", "300000"), ("enable.idempotence", "true")]);
        Some(Self { view: View::new(brokers), kind: BrokerKind::Own(Arc::new(Mutex::new(node))), producer })
    }

    /// Kills it (SIGKILL). Written data is kept.
    ///
    /// # Panics
    /// If the broker is not this story's own.
    pub async fn stop(&self) {
        self.with_node(Node::stop).await;
    }

    /// Kills it if it runs, restarts it on the same port with its data, and waits until it answers
    /// and leads its partitions.
    ///
    /// # Panics
    /// If the broker is not this story's own, or does not restart.
    pub async fn restart(&self) {
        self.with_node(Node::restart).await.unwrap_or_else(|why| panic!("no restart: {why}"));
    }

    async fn with_node<T: Send + 'static>(&self, act: impl FnOnce(&mut Node) -> T + Send + 'static) -> T {
        let BrokerKind::Own(node) = &self.kind else { panic!("only a broker of one's own can be stopped") };
        let node = node.clone();
        blocking(move || act(&mut node.lock())).await
    }

    /// For `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        self.view.brokers()
    }

    /// A client view of the broker.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// See [`View::committed`].
    pub async fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        self.view.committed(group, topic).await
    }

    /// See [`View::commit`].
    pub async fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &str) {
        self.view.commit(group, topic, partition, offset, metadata).await;
    }

    /// See [`View::ends`].
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.view.ends(topic)
    }

    /// See [`View::read_all`].
    pub fn read_all(&self, topic: &str) -> Vec<ConsumedRecord> {
        self.view.read_all(topic)
    }

    /// Whether this is a real Kafka; otherwise prints which story is not proven.
    pub fn can_prove(&self, story: &str) -> bool {
        let real = !matches!(self.kind, BrokerKind::Mock(_));
        if !real {
            print_uncaptured(format_args!(
                "NOT PROVEN: `{story}` needs a real Kafka, and this is librdkafka's mock"
            ));
        }
        real
    }

    /// Creates a topic with a unique name.
    pub async fn topic(&self, prefix: &str, partitions: i32) -> String {
        let name = unique(prefix);
        self.create_topic(&name, partitions).await;
        name
    }

    /// Creates a topic.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]).await;
    }

    /// Creates a topic with settings such as `("max.message.bytes", "200000")`, which the mock does
    /// not support.
    pub async fn create_topic_with(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        if let BrokerKind::Mock(owner) = &self.kind {
            assert!(settings.is_empty(), "the mock knows no topic settings; ask `can_prove` first");
            let mock = owner.client().mock_cluster().expect("this client owns the mock");
            mock.create_topic(name, partitions, 1).expect("the mock makes topics");
            return;
        }
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let results =
            self.admin().create_topics([&topic], &topics::options()).await.expect("the broker answers");
        for result in results {
            result.unwrap_or_else(|(topic, e)| panic!("topic {topic} cannot be made: {e}"));
        }
    }
}

fn start_mock(why: &str) -> (String, BrokerKind) {
    print_uncaptured(format_args!(
        "
######## NO REAL KAFKA: {why}
######## The stories run against librdkafka's mock broker; those marked NOT PROVEN are skipped.
######## Set HALLEY_TEST_KAFKA=host:port or KAFKA_HOME, or run tests/support/fetch-kafka.sh.
"
    ));
    let owner: BaseProducer =
        ClientConfig::new().set("test.mock.num.brokers", "1").create().expect("a client with a mock");
    let brokers = owner.client().mock_cluster().expect("this client owns the mock").bootstrap_servers();
    (brokers, BrokerKind::Mock(owner))
}

/// A client's configuration, with quick reconnects.
fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "200");
    config
}

fn producer(brokers: &str, settings: &[(&str, &str)]) -> FutureProducer {
    let mut config = client(brokers);
    // The same partitioner as `logic`'s client.
    config.set("partitioner", "murmur2_random");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create().expect("a producer")
}

/// Runs blocking code without blocking the story's other futures.
async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}
