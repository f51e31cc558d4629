//! Servers that refuse: a Redis that rejects writes, a Kafka that denies access. Readiness and logs
//! give the cause and the remedy; after the fix, delivery continues.

use std::path::PathBuf;

use crate::checks::connect;
use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::Kafka;
use crate::support::kafka::acl::{PASSWORD, Right};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, unique};

async fn set(redis: &Redis, key: &str, value: &str) {
    let mut config = redis::cmd("CONFIG");
    config.arg("SET").arg(key).arg(value);
    redis.run::<()>(config).await;
}

/// Has Redis save until it succeeds, or fails.
async fn save(redis: &Redis, well: bool) {
    eventually("Redis to have tried to save", PATIENCE, async || {
        let mut info = redis::cmd("INFO");
        info.arg("persistence");
        let text: String = redis.run(info).await;
        if text.contains("rdb_bgsave_in_progress:1") {
            return None;
        }
        if text.contains("rdb_last_bgsave_status:ok") == well {
            return Some(());
        }
        redis.run::<()>(redis::cmd("BGSAVE")).await;
        None
    })
    .await;
}

/// A directory at the path to which Redis saves.
async fn in_the_way(redis: &Redis) -> PathBuf {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg("dir");
    let dir: (String, String) = redis.run(get).await;
    PathBuf::from(dir.1).join("dump.rdb").join("folder")
}

async fn readiness(gateway: &RunningGateway, words: &[&str]) {
    eventually(format!("/readyz to say {words:?}"), PATIENCE, async || {
        let ready = gateway.get("/readyz").await;
        (ready.status == 503 && words.iter().all(|word| ready.body.contains(word))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_redis_is_reported_and_holds_only_absent_users() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    if !redis.can_stop("a_redis_that_does_not_write") {
        return;
    }
    redis.join("lobby", "conn_on", "on", comet.address()).await;
    redis.join("lobby", "conn_off", "off", comet.address()).await;
    redis.offline("off").await;
    let topic = kafka().topic("no-writes", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let settings = gateway(&topic).redis(&redis);
    let gateway = settings.clone().start().await;
    let heard = async || comet.count();

    set(&redis, "min-replicas-to-write", "1").await;
    kafka().produce_room(&topic, "lobby", "one").await;
    eventually_eq("calls", 1, heard).await;
    readiness(&gateway, &["NOREPLICAS", "reconnect its replicas, or lower its `min-replicas-to-write`"])
        .await;
    let stalled = async || gateway.metric("halley_stalled_partitions{stage=\"inbox\"}").await;
    eventually_eq("stalled partitions", Some(1.0), stalled).await;
    let (code, found) = connect(settings.clone()).await;
    assert!(
        code == Some(1) && found.iter().any(|(_, ok, text)| !ok && text.contains("NOREPLICAS")),
        "{found:#?}"
    );
    set(&redis, "min-replicas-to-write", "0").await;
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;

    let folder = in_the_way(&redis).await;
    std::fs::create_dir_all(&folder).expect("a folder of the story's");
    set(&redis, "save", "3600 1").await;
    save(&redis, false).await;
    kafka().produce_room(&topic, "lobby", "two").await;
    eventually_eq("calls", 2, heard).await;
    readiness(&gateway, &["MISCONF", "fix its disk"]).await;
    let (code, found) = connect(settings).await;
    assert!(
        code == Some(1) && found.iter().any(|(_, ok, text)| !ok && text.contains("MISCONF")),
        "{found:#?}"
    );
    std::fs::remove_dir_all(folder.parent().expect("above it")).expect("removed");
    save(&redis, true).await;
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;
    assert_eq!(redis.stream("halley:inbox:off").await.len(), 2);
    assert_eq!(kafka().read_all(&format!("{topic}.dead-letter")).len(), 0);
}

/// Logs in with this password.
fn login(settings: Gateway, password: &str) -> Gateway {
    let properties = format!(
        "{{ \"security.protocol\" = \"SASL_PLAINTEXT\", \"sasl.mechanisms\" = \"PLAIN\", \"sasl.username\" = \"halley\", \"sasl.password\" = {} }}",
        quoted(password)
    );
    settings.set("kafka", "properties", properties)
}

/// What `check --connect` says about a subject, in lower case.
fn about(found: &[(String, bool, String)], subject: &str) -> (bool, String) {
    let found = found.iter().find(|(about, ..)| about.starts_with(subject));
    found.map(|(_, ok, text)| (*ok, text.to_lowercase())).unwrap_or_else(|| panic!("nothing about {subject}"))
}

/// Grants everything but reading the topic and writing dead letters, which `check` names.
async fn reading_is_not_writing(kafka: &Kafka, settings: &Gateway, topic: &str, dead: &str) {
    kafka.grant_operation("topic", dead, "Describe").await;
    kafka.grant_operation("topic", dead, "Read").await;
    kafka.grant_operation("topic", topic, "Describe").await;
    let wanted = [
        (format!("dead-letter topic {dead}"), "not authorized to write it; grant the gateway's user write"),
        (format!("topic {topic}"), "not authorized to read it; grant the gateway's user read"),
    ];
    eventually("check to name what is missing", PATIENCE, async || {
        let (_, found) = connect(settings.clone()).await;
        let is_named = |(subject, text): &(String, &str)| {
            let (ok, said) = about(&found, subject);
            !ok && said.contains(text)
        };
        wanted.iter().all(is_named).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_kafka_permissions_are_named_until_granted() {
    let Some((kafka, secured)) = Kafka::own_secured().await else { return };
    let comet = FakeComet::start().await;
    let (topic, group) = (unique("secured"), unique("group"));
    let dead = format!("{topic}.dead-letter");
    kafka.create_topic(&topic, 1).await;
    kafka.create_topic(&dead, 1).await;
    let notify = format!("{topic}.offline");
    kafka.create_topic(&notify, 1).await;
    let plain =
        gateway(&topic).kafka(&kafka).set("kafka", "brokers", quoted(&secured)).group(&group).node(&comet);
    let settings = login(plain.clone(), PASSWORD);

    for (wrong, word) in
        [(plain, "security.protocol"), (login(settings.clone(), "another"), "SASL authentication error")]
    {
        let gateway = wrong.clone().start_unready().await;
        readiness(&gateway, &["kafka: no broker reachable", word]).await;
        gateway.kill();
        let (code, found) = connect(wrong).await;
        let (ok, text) = about(&found, "kafka at");
        assert!(code == Some(1) && !ok && text.contains(&word.to_lowercase()), "{word}: {found:#?}");
    }

    // Logged in, without any permission: the topic first, then the group.
    let gateway = settings.clone().start_unready().await;
    let (_, found) = connect(settings.clone()).await;
    for subject in [format!("topic {topic}"), format!("dead-letter topic {dead}"), format!("group {group}")] {
        let (ok, text) = about(&found, &subject);
        let named = text.contains("authorization failed") && text.contains("not authorized for the");
        assert!(!ok && named, "{subject}: {text}");
    }
    readiness(&gateway, &["not authorized for", "grant the gateway's user READ"]).await;
    reading_is_not_writing(&kafka, &settings, &topic, &dead).await;
    for topic in [&topic, &dead, &notify] {
        kafka.grant(Right::Topic(topic)).await;
    }
    readiness(
        &gateway,
        &["not authorized for the consumer group", "grant the gateway's user READ on the group"],
    )
    .await;
    let (_, found) = connect(settings.clone()).await;
    assert!(about(&found, &format!("topic {topic}")).0 && !about(&found, "group ").0, "{found:#?}");

    kafka.grant(Right::Group(&group)).await;
    gateway.wait_until_ready().await;
    kafka.produce_everyone(&topic, 0, "hello").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 1);
    let (code, found) = connect(settings.set("admin", "listen", quoted("127.0.0.1:0"))).await;
    assert_eq!(code, Some(0), "{found:#?}");
}
