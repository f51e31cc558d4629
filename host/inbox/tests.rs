//! Contract tests of the inbox, for memory and Redis.

use prometheus_client::registry::Registry;

use super::*;
use crate::message::{Audience, Origin, Record};
use crate::redis_client::testing::{RedisCluster, RedisServer, client_of, eventually};
use ::redis::Value;

const HOUR: Duration = Duration::from_secs(3600);

fn metrics() -> Metrics {
    Metrics::register(&mut Registry::default())
}

fn message(offset: i64) -> Arc<Message> {
    let origin = Origin { topic: "push".into(), partition: 0, offset };
    let timestamp_ms = Some(1_700_000_000_000 + offset);
    let record = Record { origin, timestamp_ms, key: None, value: None, headers: Vec::new(), trusted: false };
    Arc::new(Message {
        id: record.message_id(),
        record: Arc::new(record),
        audience: Audience::Room("video_123".into()),
        operation: 4,
        body: Bytes::from(vec![0, 255, offset as u8]),
    })
}

pub(super) fn entry(user: &str, offset: i64, retention: Option<Duration>) -> InboxEntry {
    InboxEntry {
        user: user.into(),
        cause: AbsenceCause::NotOnline,
        failed: None,
        message: message(offset),
        retention,
    }
}

async fn offsets(inbox: &dyn Inbox, user: &str, limit: usize) -> Vec<String> {
    let kept = inbox.read(&user.into(), limit).await.expect("reads");
    // Without the trailing fingerprint.
    let place =
        |id: MessageId| id.as_str().rsplit_once('/').map_or_else(String::new, |(at, _)| at.to_owned());
    kept.into_iter().map(|kept| place(kept.id)).collect()
}

/// For an inbox with `max_per_user` 200 and a retention of an hour.
async fn inbox_behaves(inbox: &dyn Inbox) {
    assert_eq!(inbox.store(&[]).await, Ok(Stored::default()));
    assert_eq!(offsets(inbox, "nobody", 10).await, [""; 0]);

    let entries =
        [entry("ann", 1, None), entry("bob", 1, None), entry("ann", 2, None), entry("ann", 1, None)];
    assert_eq!(inbox.store(&entries).await, Ok(Stored::default()));
    assert_eq!(offsets(inbox, "ann", 10).await, ["push/0/1", "push/0/2"], "in order, repeats dropped");
    assert_eq!(offsets(inbox, "ann", 1).await, ["push/0/1"]);
    let kept = inbox.read(&"bob".into(), 10).await.expect("reads").remove(0);
    let expires_ms = kept.expires_ms;
    assert!((now_ms()..=now_ms() + HOUR.as_millis() as i64).contains(&expires_ms));
    let expected = StoredMessage::new(&entry("bob", 1, None), 0, HOUR);
    assert_eq!(kept, StoredMessage { expires_ms, ..expected }, "as it was stored");

    let longer = [entry("cid", 1, Some(HOUR * 1000)), entry("cid", 2, Some(Duration::from_millis(30)))];
    assert_eq!(inbox.store(&longer).await, Ok(Stored::default()));
    eventually("the short one expires", async || offsets(inbox, "cid", 10).await == ["push/0/1"]).await;
    let kept = inbox.read(&"cid".into(), 10).await.expect("reads").remove(0);
    assert!(kept.expires_ms <= now_ms() + HOUR.as_millis() as i64, "the ceiling holds");

    let many: Vec<_> = (0..1500).map(|offset| entry("dan", offset, None)).collect();
    assert_eq!(inbox.store(&many).await, Ok(Stored::default()));
    let kept = offsets(inbox, "dan", usize::MAX).await;
    assert_eq!(kept.len(), 200, "the limit holds exactly");
    assert_eq!(kept.last().map(String::as_str), Some("push/0/1499"), "the newest stay");
}

fn config() -> Config {
    Config { retention: HOUR, max_per_user: 200, ..Config::default() }
}

#[tokio::test]
async fn an_inbox_in_memory_behaves() {
    inbox_behaves(&MemoryInbox::new(&config(), metrics(), Box::new(|_| None))).await;
}

#[tokio::test]
async fn an_inbox_in_redis_behaves() {
    let server = RedisServer::start().await;
    inbox_behaves(&RedisInbox::new(server.client(), &config(), metrics())).await;
    let Value::Int(left) = server.run(&["PTTL", "halley:inbox:ann"]).await else { panic!("no time") };
    assert!((1..=3_600_000).contains(&left), "the key expires: {left}");
}

#[tokio::test]
async fn an_inbox_in_a_cluster_behaves() {
    let cluster = RedisCluster::start().await;
    let inbox = RedisInbox::new(client_of(&cluster.url()), &config(), metrics());
    inbox_behaves(&inbox).await;
    let users: Vec<String> = (0..500).map(|n| format!("user {n}")).collect();
    let both = users.iter().flat_map(|user| [entry(user, 1, None), entry(user, 2, None)]);
    assert_eq!(inbox.store(&both.collect::<Vec<_>>()).await, Ok(Stored::default()));
    for user in users {
        assert_eq!(offsets(&inbox, &user, 10).await, ["push/0/1", "push/0/2"], "{user}");
    }
}

/// Stores for users of whom some are registered, and returns who is back.
async fn who_is_back(inbox: &RedisInbox) -> Vec<(usize, String)> {
    let not_via = |mut entry: InboxEntry, connection: &str| {
        entry.failed = Some(connection.into());
        entry
    };
    let entries = [
        entry("ann", 1, None),
        not_via(entry("bob", 1, None), "b1"),
        not_via(entry("bob", 2, None), "b0"),
        entry("cid", 1, None),
        entry("ann", 2, None),
    ];
    let stored = inbox.store(&entries).await.expect("Redis answers");
    assert_eq!(stored.not_stored, []);
    stored.returned.into_iter().map(|back| (back.entry, back.connection.to_string())).collect()
}

#[tokio::test]
async fn who_is_registered_again_is_found_after_storing() {
    let server = RedisServer::start().await;
    server.run(&["MSET", "user:online:ann", "a1", "user:online:bob", "b1"]).await;
    let inbox = RedisInbox::new(server.client(), &config(), metrics());
    // Not bob by the connection that has just failed.
    let expected = [(0, "a1".to_owned()), (2, "b1".to_owned()), (4, "a1".to_owned())];
    assert_eq!(who_is_back(&inbox).await, expected);
    server.run(&["ACL", "SETUSER", "default", "-mget"]).await;
    assert_eq!(who_is_back(&inbox).await, [], "stored without the look");
    assert_eq!(offsets(&inbox, "ann", 10).await, ["push/0/1", "push/0/2"]);
}

#[tokio::test]
async fn who_is_registered_again_is_found_in_a_cluster() {
    let cluster = RedisCluster::start().await;
    for (user, connection) in [("ann", "a1"), ("bob", "b1")] {
        let key = format!("user:online:{user}");
        let owner = cluster.owner(&key).await;
        cluster.nodes()[owner].tell::<()>(&["SET", &key, connection]).await;
    }
    let inbox = RedisInbox::new(client_of(&cluster.url()), &config(), metrics());
    let expected = [(0, "a1".to_owned()), (2, "b1".to_owned()), (4, "a1".to_owned())];
    assert_eq!(who_is_back(&inbox).await, expected);
}

#[tokio::test]
async fn large_bodies_are_stored_for_many() {
    let server = RedisServer::start().await;
    let inbox = RedisInbox::new(server.client(), &config(), metrics());
    let body = Bytes::from(vec![7; 700_000]);
    let large = Arc::new(Message { body: body.clone(), ..(*message(1)).clone() });
    let entry = |number| InboxEntry { message: large.clone(), ..entry(&format!("u{number}"), 1, None) };
    let entries: Vec<_> = (0..20).map(entry).collect();
    assert_eq!(inbox.store(&entries).await, Ok(Stored::default()));
    for entry in entries {
        let kept = inbox.read(&entry.user, 10).await.expect("reads");
        assert_eq!(kept.iter().map(|kept| kept.body == body).collect::<Vec<_>>(), [true], "{}", entry.user);
    }
}

#[tokio::test]
async fn a_corrupt_inbox_affects_no_other() {
    let server = RedisServer::start().await;
    server.run(&["SET", "halley:inbox:bob", "spoilt"]).await;
    let metrics = metrics();
    let inbox = RedisInbox::new(server.client(), &config(), metrics.clone());
    let entries = [entry("ann", 1, None), entry("bob", 1, None), entry("cid", 1, None)];
    let not_stored = inbox.store(&entries).await.expect("Redis answers").not_stored;
    assert_eq!(not_stored.iter().map(|n| n.entry).collect::<Vec<_>>(), [1]);
    assert!(not_stored[0].reason.contains("halley:inbox:bob"), "{}", not_stored[0].reason);
    assert_eq!((metrics.stored.get(), metrics.not_stored.get()), (2, 1));
    assert_eq!(offsets(&inbox, "cid", 10).await, ["push/0/1"]);
    assert_eq!(offsets(&inbox, "bob", 10).await, [""; 0]);
}

#[tokio::test]
async fn a_full_page_without_ids_ends_the_read() {
    // A server that answers XRANGE with the requested number of strings, without ids.
    let renamed = ["--rename-command", "XRANGE", "STREAM", "--rename-command", "SUNION", "XRANGE"];
    let server = RedisServer::start_with(&renamed).await;
    for number in 0..500 {
        server.run(&["SADD", "halley:inbox:ann", &number.to_string()]).await;
    }
    let Value::Array(page) = server.run(&["XRANGE", "halley:inbox:ann"]).await else { panic!("no page") };
    assert_eq!(page.len(), 500);
    let inbox = RedisInbox::new(server.client(), &config(), metrics());
    assert_eq!(offsets(&inbox, "ann", 10).await, [""; 0]);
}

#[tokio::test]
async fn nothing_is_stored_while_redis_is_unreachable() {
    let mut server = RedisServer::unreachable();
    let inbox = RedisInbox::new(server.client(), &config(), metrics());
    let entries = [entry("ann", 1, None)];
    inbox.store(&entries).await.expect_err("nobody listens");
    server.restart().await;
    eventually("storing succeeds", async || inbox.store(&entries).await == Ok(Stored::default())).await;
    assert_eq!(offsets(&inbox, "ann", 10).await, ["push/0/1"]);
}

#[test]
fn the_configuration_parses_as_documented() {
    let text = r#"{ "default": "notify", "retention": "1d", "max_per_user": 5 }"#;
    let config: Config = serde_json::from_str(text).expect("reads");
    assert_eq!(config.disposition(), Disposition::Notify { channel: "default".to_owned() });
    assert_eq!(config.retention(Some(HOUR)), HOUR);
    assert_eq!(config.retention(Some(HOUR * 100)), HOUR * 24);
    assert_eq!(config.notify_topic, "push.offline");
}
