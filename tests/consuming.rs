//! Consuming: transactions, batches that cannot be decompressed, patterns that match too much, and a
//! Kafka that refuses.

use std::process::Command;
use std::time::Duration;

use halley::message::{Audience, encode};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, FutureRecord, Producer as _};

use crate::support::gateway::{RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::{PATIENCE, eventually, eventually_eq, unique};
use crate::topics::{Lobby, words};

async fn reasons(gateway: &RunningGateway, text: &str) {
    eventually(format!("/readyz to say `{text}`"), PATIENCE, async || {
        let answer = gateway.get("/readyz").await;
        (answer.status == 503 && answer.body.contains(text)).then_some(())
    })
    .await;
}

/// Blocks until the broker knows the producer.
fn transactional_producer() -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka().brokers())
        .set("transactional.id", unique("transaction"))
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("transactions");
    producer
}

#[tokio::test]
async fn transactions_leave_no_lag_and_aborted_ones_no_messages() {
    let Some(lobby) = Lobby::new("transactions_leave_no_lag", 1).await else { return };
    let gateway = lobby.settings.clone().start().await;
    let topic = lobby.topic.clone();
    let work = move || {
        let producer = transactional_producer();
        for (word, commit) in [("first", true), ("aborted", false), ("second", true), ("aborted-too", false)]
        {
            producer.begin_transaction().expect("begins");
            let value = encode(&Audience::Room("lobby".into()), 4, word.as_bytes());
            producer.send(BaseRecord::<(), _>::to(&topic).payload(&value[..])).expect("is queued");
            producer.flush(PATIENCE).expect("is written");
            let ended = if commit {
                producer.commit_transaction(PATIENCE)
            } else {
                producer.abort_transaction(PATIENCE)
            };
            ended.expect("ends");
        }
    };
    tokio::task::spawn_blocking(work).await.expect("no panic");
    lobby.wait_for(&["first".to_owned(), "second".to_owned()]).await;
    // The end of the log is after the markers of all four.
    gateway.wait_until_settled(&lobby.topic).await;
    assert_eq!(lobby.heard().len(), 2, "{:?}", lobby.heard());
    let lag = format!("halley_consumer_lag{{topic=\"{}\",partition=\"0\"}}", lobby.topic);
    eventually_eq("the lag", Some(0.0), async || gateway.metric(&lag).await).await;
}

#[tokio::test]
async fn an_open_transaction_is_reported() {
    let Some(lobby) = Lobby::new("a_transaction_that_nobody_ends", 1).await else { return };
    let gateway = lobby.settings.clone().start().await;
    let (topic, (end, ended)) = (lobby.topic.clone(), std::sync::mpsc::channel::<()>());
    let (begun, begins) = tokio::sync::oneshot::channel();
    let producer = tokio::task::spawn_blocking(move || {
        let producer = transactional_producer();
        producer.begin_transaction().expect("begins");
        producer.send(BaseRecord::<(), _>::to(&topic).payload(&b"never"[..])).expect("is queued");
        producer.flush(PATIENCE).expect("is written");
        begun.send(()).expect("the story goes on");
        // Until the test has passed, or failed.
        let _ = ended.recv();
        producer.abort_transaction(PATIENCE).expect("ends");
    });
    begins.await.expect("a transaction");
    // It comes after the open transaction, although it belongs to none.
    lobby.say(words("behind", 1)).await;
    let lag = format!("halley_consumer_lag{{topic=\"{}\",partition=\"0\"}}", lobby.topic);
    eventually_eq("the lag", Some(2.0), async || gateway.metric(&lag).await).await;
    let stalled = async || gateway.metric("halley_stalled_partitions{stage=\"consume\"}").await;
    eventually_eq("stalled partitions", Some(1.0), stalled).await;
    reasons(&gateway, "transaction is open").await;
    assert_eq!(lobby.heard().len(), 0);

    drop(end);
    producer.await.expect("no panic");
    lobby.wait_for(&words("behind", 1)).await;
    eventually_eq("stalled partitions", Some(0.0), stalled).await;
    eventually_eq("the lag", Some(0.0), async || gateway.metric(&lag).await).await;
}

#[tokio::test]
async fn an_unreadable_batch_is_reported_and_can_be_skipped() {
    let Some(lobby) = Lobby::new("a_batch_that_cannot_be_unpacked", 2).await else { return };
    // As small as librdkafka allows: the decompressed size of a batch counts.
    let limits = "{ \"receive.message.max.bytes\" = \"1001024\", \"fetch.max.bytes\" = \"1000000\" }";
    let settings = lobby.settings.clone().set("kafka", "instance_id", quoted(""));
    let settings = settings.set("kafka", "properties", limits);
    let first = settings.clone().start().await;
    let group = first.group().to_owned();
    put_zeros(&lobby.topic, 2_000_000, 0).await;
    let more = words("more", 20);
    lobby.say(more.clone()).await;

    let stalled = async || first.metric("halley_stalled_partitions{stage=\"consume\"}").await;
    eventually_eq("stalled partitions", Some(1.0), stalled).await;
    reasons(&first, &format!("holding {}/0 at offset 0", lobby.topic)).await;
    reasons(&first, "halley offsets skip").await;
    assert!(lobby.heard().keys().any(|word| word.starts_with("more")), "the other partition goes on");

    let skip_in = async |topic: &str, partition: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.args(["offsets", "skip", "--topic", topic, "--partition", partition, "--config"]);
        command.arg(first.file());
        tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("no panic")
            .expect("the binary runs")
    };
    let skip = async || skip_in(&lobby.topic, "0").await;
    for (topic, partition, why) in [
        ("nowhere", "0", "topic `nowhere` not found"),
        (lobby.topic.as_str(), "7", "has no partition 7: it has 2, from 0 on"),
    ] {
        let wrong = skip_in(topic, partition).await;
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(wrong.status.code() == Some(1) && said.contains(why), "{said}");
    }
    let refused = skip().await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("members"), "{refused:?}");
    assert!(first.sigterm().await.success(), "{first:?}");
    let skipped = skip().await;
    assert!(skipped.status.success(), "{skipped:?}");
    let told = String::from_utf8_lossy(&skipped.stdout).into_owned();
    assert!(told.contains("at offset 1: skipped offsets 0 to 0"), "{told}");

    let second = settings.group(&group).start().await;
    lobby.wait_for(&more).await;
    second.wait_until_settled(&lobby.topic).await;
}

/// A record of zeros, compressed.
async fn put_zeros(topic: &str, bytes: usize, partition: i32) {
    let producer = kafka().producer_with(&[
        ("compression.codec", "zstd"),
        ("message.max.bytes", "200000000"),
        ("message.timeout.ms", "30000"),
    ]);
    let zeros = vec![0_u8; bytes];
    let record = FutureRecord::<(), _>::to(topic).partition(partition).payload(&zeros);
    producer.send(record, PATIENCE).await.unwrap_or_else(|(error, _)| panic!("zeros: {error}"));
}

#[tokio::test]
async fn a_batch_of_more_than_a_hundred_megabytes_is_read() {
    let Some(lobby) = Lobby::new("a_batch_of_more_than_a_hundred_megabytes", 1).await else { return };
    kafka().create_topic(&format!("{}.dead-letter", lobby.topic), 1).await;
    let gateway = lobby.settings.clone().start().await;
    // librdkafka's own limit is 100,000,000.
    put_zeros(&lobby.topic, 101_000_000, 0).await;
    let after = words("after", 3);
    lobby.say(after.clone()).await;
    lobby.wait_for(&after).await;
    gateway.wait_until_settled(&lobby.topic).await;
}

#[tokio::test]
async fn a_pattern_matching_the_dead_letter_topic_does_not_loop() {
    let Some(lobby) = Lobby::new("a_pattern_that_matches", 1).await else { return };
    let dead_letters = format!("{}.dead-letter", lobby.topic);
    kafka().create_topic(&dead_letters, 1).await;
    let pattern = format!("[{}]", quoted(&format!("^{}.*", lobby.topic)));
    let gateway = lobby.settings.clone().set("kafka", "topics", pattern).start().await;
    for value in [b"\xff\xff", b"\xfe\xfe"] {
        kafka().produce_record(&lobby.topic, None, Some(value), &[]).await;
    }
    lobby.say(words("after", 1)).await;
    gateway.wait_until_settled(&lobby.topic).await;
    assert_eq!(kafka().read_all(&dead_letters).len(), 2, "each once");
    assert_eq!(gateway.metric("halley_partitions_assigned").await, Some(1.0), "only the topic itself");

    // A dead letter that arrives in another way is not written again.
    let header = [("halley-origin-topic", "push"), ("halley-stage", "decode")];
    kafka().produce_record(&lobby.topic, None, Some(b"\xff\xff"), &header).await;
    gateway.wait_until_settled(&lobby.topic).await;
    assert_eq!(gateway.metric("halley_messages_total{outcome=\"dead-letter-again\"}").await, Some(1.0));
    assert_eq!(kafka().read_all(&dead_letters).len(), 2);
}

#[tokio::test]
async fn a_group_of_another_protocol_is_named_by_readiness() {
    let Some(lobby) = Lobby::new("a_group_of_another_protocol", 1).await else { return };
    let group = unique("other");
    let other: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka().brokers())
        .set("group.id", &group)
        .set("partition.assignment.strategy", "range")
        .create()
        .expect("a consumer");
    other.subscribe(&[&lobby.topic]).expect("subscribes");
    let member = std::thread::spawn(move || {
        let until = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < until
            && !matches!(other.poll(Duration::from_millis(100)), Some(Ok(_)))
        {}
    });
    eventually("the other member", PATIENCE, async || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", kafka().brokers()).create().expect("a consumer");
        let groups = consumer.fetch_group_list(Some(&group), PATIENCE).ok()?;
        groups.groups().iter().any(|group| group.state() == "Stable").then_some(())
    })
    .await;
    let gateway = lobby.settings.clone().group(&group).start_unready().await;
    reasons(&gateway, "members with another protocol or assignment strategy").await;
    // It ends with the first record.
    lobby.say(words("end", 1)).await;
    member.join().expect("no panic");
}

#[tokio::test]
async fn a_refused_kafka_login_is_named_by_readiness() {
    if !kafka().can_prove("a_login_that_kafka_does_not_take") {
        return;
    }
    let topic = kafka().topic("login", 1).await;
    let login = "{ \"security.protocol\" = \"SASL_PLAINTEXT\", \"sasl.mechanisms\" = \"PLAIN\", \"sasl.username\" = \"halley\", \"sasl.password\" = \"wrong\" }";
    let gateway = gateway(&topic).set("kafka", "properties", login).start_unready().await;
    reasons(&gateway, "SASL").await;
    reasons(&gateway, "`sasl.*` in [kafka.properties]").await;
}
