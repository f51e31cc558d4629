//! Topics that change while they are read: new groups, added partitions, removed records, and topics
//! that are deleted and created again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339;

use crate::support::comet::{Behaviour, FakeComet};
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq};

/// A room on one comet, and a gateway that commits immediately and recovers fast after a crash.
pub struct Lobby {
    pub comet: FakeComet,
    pub topic: String,
    pub settings: Gateway,
    _redis: Redis,
}

impl Lobby {
    /// `None` if there is no Kafka for this story.
    pub async fn new(story: &'static str, partitions: i32) -> Option<Self> {
        if !kafka().can_prove(story) {
            return None;
        }
        let (redis, comet) = (Redis::start().await, FakeComet::start().await);
        redis.join("lobby", "conn_1", "user_1", comet.address()).await;
        let topic = kafka().topic("topics", partitions).await;
        let settings = gateway(&topic)
            .redis(&redis)
            .set("kafka", "instance_id", quoted("gateway-0"))
            .set("kafka", "session_timeout", quoted("6s"))
            .set("kafka", "commit_interval", quoted("100ms"));
        Some(Self { comet, topic, settings, _redis: redis })
    }

    /// Produces messages without a key, so that all partitions get some.
    pub async fn say(&self, words: impl IntoIterator<Item = String>) {
        for word in words {
            kafka().produce_room_anywhere(&self.topic, "lobby", word).await;
        }
    }

    /// The delivered bodies, sorted, with their number of deliveries.
    pub fn heard(&self) -> BTreeMap<String, usize> {
        let mut heard = BTreeMap::new();
        for (_, _, body) in self.comet.deliveries() {
            *heard.entry(body).or_default() += 1;
        }
        heard
    }

    /// Waits until each of these was delivered.
    pub async fn wait_for(&self, words: &[String]) {
        eventually("all messages to be delivered", PATIENCE, async || {
            let heard = self.heard();
            words.iter().all(|word| heard.contains_key(word)).then_some(())
        })
        .await;
    }
}

pub fn words(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}-{number}")).collect()
}

/// Puts records on one partition, also on one that producers which know the topic already have not
/// heard of.
async fn fill(topic: &str, partition: i32, records: usize) {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{FutureProducer, FutureRecord};

    let mut client = ClientConfig::new();
    let producer: FutureProducer =
        client.set("bootstrap.servers", kafka().brokers()).create().expect("a producer");
    for _ in 0..records {
        let record = FutureRecord::<(), _>::to(topic).partition(partition).payload("any");
        producer.send(record, PATIENCE).await.expect("the broker takes it");
    }
}

async fn lost(gateway: &RunningGateway, topic: &str) -> Option<f64> {
    gateway.metric(&format!("halley_records_lost_total{{topic=\"{topic}\"}}")).await
}

#[tokio::test]
async fn newest_is_decided_once_also_for_partitions_without_traffic() {
    let Some(lobby) = Lobby::new("newest_is_decided_once", 3).await else { return };
    lobby.say(words("before", 9)).await;
    let settings = lobby.settings.clone().set("kafka", "start", quoted("newest"));
    let first = settings.clone().start().await;
    // No partition has traffic; records that arrive while the gateway is down still belong to it.
    assert!(first.sigterm().await.success(), "{first:?}");
    let missed = words("missed", 9);
    lobby.say(missed.clone()).await;
    let second = settings.group(first.group()).start().await;
    lobby.wait_for(&missed).await;
    second.wait_until_settled(&lobby.topic).await;
    assert_eq!(lobby.heard(), missed.into_iter().map(|word| (word, 1)).collect(), "nothing from before");
}

#[tokio::test]
async fn added_partitions_are_read_from_the_beginning() {
    let Some(lobby) = Lobby::new("partitions_that_are_added", 1).await else { return };
    let settings = lobby.settings.clone().set("kafka", "start", quoted("newest"));
    // Far longer than it takes until the new partitions have their first records.
    let settings =
        settings.set("kafka", "properties", "{ \"topic.metadata.refresh.interval.ms\" = \"3000\" }");
    let gateway = settings.start().await;
    kafka().add_partitions(&lobby.topic, 4).await;
    let all = words("early", 40);
    lobby.say(all.clone()).await;
    lobby.wait_for(&all).await;
    gateway.wait_until_settled(&lobby.topic).await;
    assert_eq!(lobby.heard(), all.into_iter().map(|word| (word, 1)).collect());
}

#[tokio::test]
async fn partitions_that_no_static_member_reads_are_reported() {
    let Some(lobby) = Lobby::new("partitions_that_no_static_member_reads", 1).await else { return };
    let settings = lobby.settings.clone().set("kafka", "session_timeout", quoted("60s"));
    let settings =
        settings.set("kafka", "properties", "{ \"topic.metadata.refresh.interval.ms\" = \"1000\" }");
    let first = settings.clone().start().await;
    assert!(first.sigterm().await.success(), "{first:?}");
    kafka().add_partitions(&lobby.topic, 3).await;
    // It comes back as the same member: Kafka gives it what it had, and asks nobody about the rest.
    let settings = settings.group(first.group());
    let second = settings.clone().start().await;
    let warned = async || second.get("/readyz").await.body.contains("no member of the group reads");
    eventually("readiness to warn", PATIENCE, async || warned().await.then_some(())).await;
    assert_eq!(second.metric("halley_partitions_unassigned").await, Some(2.0));
    let topic = &lobby.topic;
    second.wait_for_log_that(&format!("kafka: no member of the group reads {topic}/1 {topic}/2")).await;

    // What the warning advises.
    let _third = settings.set("kafka", "instance_id", quoted("gateway-1")).start().await;
    let all = words("all", 30);
    lobby.say(all.clone()).await;
    lobby.wait_for(&all).await;
    eventually("the warning to end", PATIENCE, async || (!warned().await).then_some(())).await;
    assert_eq!(second.metric("halley_partitions_unassigned").await, Some(0.0));
}

#[tokio::test]
async fn a_new_group_logs_the_backlog_at_its_start() {
    let Some(lobby) = Lobby::new("a_new_group_says_what_waits", 1).await else { return };
    let ago = |minutes: u64| SystemTime::now() - Duration::from_secs(60 * minutes);
    for (word, time) in [("old", ago(180)), ("due", ago(60))] {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        kafka().produce_room_at(&lobby.topic, "lobby", word, since.as_millis() as i64).await;
    }
    let start = quoted(&format_rfc3339(ago(120)).to_string());
    let settings = lobby.settings.clone().set("kafka", "instance_id", quoted(""));
    let timed = settings.clone().set("kafka", "start", start).start().await;
    lobby.wait_for(&["due".to_owned()]).await;
    let told = "a new consumer group starts with a backlog";
    let warning = async |gateway: &RunningGateway| {
        let lines = gateway.log_lines();
        let line = lines.iter().find(|line| line["message"].as_str().is_some_and(|m| m.starts_with(told)));
        line.map(|line| (line["topic"].clone(), line["records"].clone()))
    };
    assert_eq!(warning(&timed).await, Some((lobby.topic.clone().into(), 1.into())), "{timed:?}");
    assert_eq!(lobby.heard().get("old"), None);

    // Another group, and messages that are too old for it.
    lobby.comet.forget();
    let aged = settings.group(&format!("{}-aged", timed.group())).set("delivery", "max_age", quoted("30m"));
    let aged = aged.start().await;
    aged.wait_until_settled(&lobby.topic).await;
    assert_eq!(warning(&aged).await, Some((lobby.topic.clone().into(), 2.into())), "{aged:?}");
    assert_eq!(aged.metric("halley_messages_total{outcome=\"expired\"}").await, Some(2.0));
    assert_eq!(lobby.heard(), BTreeMap::new());
}

#[tokio::test]
async fn a_topic_recreated_before_a_crash_is_read_from_the_start() {
    let Some(lobby) = Lobby::new("a_topic_created_again_before_a_crash", 1).await else { return };
    let first = lobby.settings.clone().start().await;
    lobby.say(words("old", 50)).await;
    first.wait_until_settled(&lobby.topic).await;
    lobby.comet.behave(Behaviour::Hang);
    let before = lobby.comet.count();
    lobby.say(words("under-way", 1)).await;
    lobby.comet.wait_for(before + 1).await;

    kafka().recreate_topic(&lobby.topic, 1).await;
    let new = words("new", 60);
    lobby.say(new.clone()).await;
    // Records in flight of the old topic finish while the new one already exists.
    lobby.comet.behave(Behaviour::Ok);
    eventually("something to be delivered", PATIENCE, async || {
        lobby.heard().contains_key("new-59").then_some(())
    })
    .await;
    first.kill();

    let second = lobby.settings.clone().group(first.group()).start().await;
    lobby.wait_for(&new).await;
    second.wait_until_settled(&lobby.topic).await;
}

#[tokio::test]
async fn a_recreated_topic_is_committed_and_repeats_nothing() {
    let Some(lobby) = Lobby::new("a_topic_created_again_is_committed", 1).await else { return };
    let first = lobby.settings.clone().start().await;
    lobby.say(words("old", 90)).await;
    first.wait_until_settled(&lobby.topic).await;
    kafka().recreate_topic(&lobby.topic, 1).await;
    let new = words("new", 60);
    lobby.say(new.clone()).await;
    lobby.wait_for(&new).await;
    first.wait_until_settled(&lobby.topic).await;
    assert!(first.metric("halley_topics_recreated_total").await >= Some(1.0), "{first:?}");
    assert_eq!(lost(&first, &lobby.topic).await, Some(0.0));
    first.kill();

    lobby.comet.forget();
    let second = lobby.settings.clone().group(first.group()).start().await;
    lobby.say(words("last", 1)).await;
    second.wait_until_settled(&lobby.topic).await;
    assert_eq!(lobby.heard(), BTreeMap::from([("last-0".to_owned(), 1)]), "nothing twice");
}

#[tokio::test]
async fn records_removed_before_they_were_read_are_reported() {
    let Some(lobby) = Lobby::new("records_that_were_removed", 1).await else { return };
    let first = lobby.settings.clone().start().await;
    lobby.say(words("read", 10)).await;
    first.wait_until_settled(&lobby.topic).await;
    assert!(first.sigterm().await.success(), "{first:?}");
    lobby.say(words("lost", 40)).await;
    lobby.say(words("kept", 10)).await;
    kafka().delete_records(&lobby.topic, &BTreeMap::from([(0, 50)])).await;

    let second = lobby.settings.clone().group(first.group()).start().await;
    lobby.wait_for(&words("kept", 10)).await;
    eventually_eq("records lost", Some(40.0), async || lost(&second, &lobby.topic).await).await;
    let lines = second.log_lines();
    let line = lines.iter().find(|line| {
        line["level"] == "ERROR"
            && line["message"].as_str().is_some_and(|m| m.starts_with("records were removed"))
    });
    let line = line.unwrap_or_else(|| panic!("not reported: {second:?}"));
    assert_eq!((&line["topic"], &line["partition"]), (&lobby.topic.clone().into(), &0.into()), "{line}");
    assert_eq!((&line["from"], &line["to"]), (&10.into(), &50.into()), "{line}");

    // Even if no record follows them.
    second.wait_until_settled(&lobby.topic).await;
    lobby.comet.behave(Behaviour::Hang);
    assert!(second.sigterm().await.success(), "{second:?}");
    lobby.say(words("lost-too", 5)).await;
    kafka().delete_records(&lobby.topic, &BTreeMap::from([(0, 65)])).await;
    let third = lobby.settings.clone().group(first.group()).start().await;
    eventually_eq("records lost", Some(5.0), async || lost(&third, &lobby.topic).await).await;
}

#[tokio::test]
async fn records_lost_before_the_group_s_first_ones_are_counted_too() {
    let Some(lobby) = Lobby::new("records_lost_before_the_first", 1).await else { return };
    // The group has consumed an empty partition, and left. A static member would get its old assignment
    // back, without partitions that are new.
    let settings = lobby.settings.clone().set("kafka", "instance_id", quoted(""));
    let first = settings.clone().start().await;
    assert!(first.sigterm().await.success(), "{first:?}");
    lobby.say(words("lost", 40)).await;
    lobby.say(words("kept", 10)).await;
    kafka().delete_records(&lobby.topic, &BTreeMap::from([(0, 40)])).await;
    // The same for partitions that were added meanwhile, and whose first records were removed.
    kafka().add_partitions(&lobby.topic, 2).await;
    fill(&lobby.topic, 1, 3).await;
    kafka().delete_records(&lobby.topic, &BTreeMap::from([(1, 3)])).await;
    let second = settings.group(first.group()).start().await;
    lobby.wait_for(&words("kept", 10)).await;
    eventually_eq("records lost", Some(43.0), async || lost(&second, &lobby.topic).await).await;
}

#[tokio::test]
async fn an_offset_beyond_the_end_repeats_nothing() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};

    let Some(lobby) = Lobby::new("an_offset_beyond_the_end", 1).await else { return };
    lobby.say(words("before", 5)).await;
    // A dynamic member leaves when it stops: offsets can be set for groups without members.
    let settings = lobby.settings.clone().set("kafka", "instance_id", quoted(""));
    let first = settings.clone().start().await;
    lobby.wait_for(&words("before", 5)).await;
    first.wait_until_settled(&lobby.topic).await;
    let group = first.group().to_owned();
    assert!(first.sigterm().await.success());

    let (topic, of_group) = (lobby.topic.clone(), group.clone());
    let set = move || {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", kafka().brokers()).set("group.id", of_group);
        let consumer: BaseConsumer = client.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, 0);
        // The committed metadata names the topic it belongs to.
        let committed = consumer.committed_offsets(list, PATIENCE).expect("an answer");
        let metadata = committed.elements()[0].metadata().to_owned();
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&topic, 0);
        element.set_offset(Offset::Offset(50)).expect("an offset");
        element.set_metadata(metadata);
        consumer.commit(&list, CommitMode::Sync).expect("committed");
    };
    tokio::task::spawn_blocking(set).await.expect("no panic");

    let second = settings.group(&group).start().await;
    second.wait_for_log_that("the log ends before the group's offset").await;
    lobby.say(words("after", 5)).await;
    lobby.wait_for(&words("after", 5)).await;
    second.wait_until_settled(&lobby.topic).await;
    assert!(lobby.heard().values().all(|times| *times == 1), "{:?}", lobby.heard());
}

#[tokio::test]
async fn a_topic_that_is_deleted_is_named_as_the_cause() {
    let Some(lobby) = Lobby::new("a_topic_that_is_deleted", 1).await else { return };
    let settings = lobby.settings.clone().set(
        "kafka",
        "properties",
        "{ \"topic.metadata.refresh.interval.ms\" = \"1000\" }",
    );
    let gateway = settings.start().await;
    lobby.say(words("before", 5)).await;
    gateway.wait_until_settled(&lobby.topic).await;
    kafka().delete_topic(&lobby.topic).await;
    gateway.wait_for_log_that("partitions lost: their topic was deleted").await;
}
