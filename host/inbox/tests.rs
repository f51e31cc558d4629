//! Contract tests of the inbox, for memory and Redis.

use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::registry::Registry;

use super::*;
use crate::decision::AbsenceCause;
use crate::message::{Audience, MessageId, Origin, Record};
use crate::redis_client::RedisClient;
use crate::redis_client::testing::{RedisCluster, RedisServer, client_of, eventually};
use crate::time::now_record_ms;
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
        cause: Some(AbsenceCause::NotOnline),
        failed: None,
        message: message(offset),
        retention,
        in_history: None,
    }
}

/// What a complete store could not store.
fn not_stored(result: Result<Stored, PartialStore>) -> Vec<NotStored> {
    result.expect("complete").not_stored
}

/// The messages of the first page.
async fn read(inbox: &dyn InboxReader, user: &str) -> Vec<StoredMessage> {
    let query = PageQuery { limit: 500, ..PageQuery::default() };
    let page = inbox.page(&user.into(), &query).await.expect("reads");
    page.entries.into_iter().map(|entry| entry.message).collect()
}

async fn offsets(inbox: &dyn InboxReader, user: &str) -> Vec<String> {
    // Without the trailing fingerprint.
    let place =
        |id: MessageId| id.as_str().rsplit_once('/').map_or_else(String::new, |(at, _)| at.to_owned());
    read(inbox, user).await.into_iter().map(|kept| place(kept.id)).collect()
}

/// For an inbox with `max_per_user` 200 and a retention of an hour.
async fn inbox_behaves(inbox: &dyn Inbox, reader: &dyn InboxReader) {
    assert_eq!(not_stored(inbox.store(&[]).await), []);
    assert_eq!(offsets(reader, "nobody").await, [""; 0]);

    let entries =
        [entry("ann", 1, None), entry("bob", 1, None), entry("ann", 2, None), entry("ann", 1, None)];
    assert_eq!(not_stored(inbox.store(&entries).await), []);
    assert_eq!(offsets(reader, "ann").await, ["push/0/1", "push/0/2"], "in order, repeats dropped");
    let kept = read(reader, "bob").await.remove(0);
    let expires_ms = kept.expires_ms;
    assert!((now_record_ms()..=now_record_ms() + HOUR.as_millis() as i64).contains(&expires_ms));
    let expected = StoredMessage::new(&entry("bob", 1, None), 0, HOUR);
    assert_eq!(kept, StoredMessage { expires_ms, ..expected }, "as it was stored");

    let longer = [entry("cid", 1, Some(HOUR * 1000)), entry("cid", 2, Some(Duration::from_millis(30)))];
    assert_eq!(not_stored(inbox.store(&longer).await), []);
    eventually("the short one expires", async || offsets(reader, "cid").await == ["push/0/1"]).await;
    let kept = read(reader, "cid").await.remove(0);
    assert!(kept.expires_ms <= now_record_ms() + HOUR.as_millis() as i64, "the ceiling holds");

    let many: Vec<_> = (0..1500).map(|offset| entry("dan", offset, None)).collect();
    assert_eq!(not_stored(inbox.store(&many).await), []);
    let kept = offsets(reader, "dan").await;
    assert_eq!(kept.len(), 200, "the limit holds exactly");
    assert_eq!(kept.last().map(String::as_str), Some("push/0/1499"), "the newest stay");
}

fn redis_inbox(client: &RedisClient, config: &Config) -> (RedisInbox, RedisInboxReader) {
    let inbox = RedisInbox::new(client.clone(), config, metrics());
    (inbox, RedisInboxReader::new(client.clone(), config, None))
}

/// Stores this many messages for a user.
async fn store(inbox: &dyn Inbox, user: &str, messages: std::ops::Range<i64>) {
    let entries: Vec<_> = messages.map(|offset| entry(user, offset, None)).collect();
    assert_eq!(not_stored(inbox.store(&entries).await), []);
}

/// The offsets of a page.
fn of_page(page: &Page) -> Vec<i64> {
    page.entries.iter().map(|entry| entry.message.sent_ms - 1_700_000_000_000).collect()
}

async fn reader_behaves(inbox: &dyn Inbox, reader: &dyn InboxReader) {
    let (user, phone, tablet) = (UserId::from("eve"), device("phone"), device("tablet"));
    let nothing = reader.page(&user, &PageQuery::default()).await.expect("reads");
    assert_eq!(nothing, Page::default(), "an unknown user has an empty page");
    assert_eq!(reader.standing(&user, Some(&phone)).await, Ok(Standing::default()));

    store(inbox, "eve", 0..150).await;
    // Forward in pages, and backward.
    let (mut query, mut seen) = (PageQuery { limit: 60, ..PageQuery::default() }, Vec::new());
    let mut pages = Vec::new();
    loop {
        let page = reader.page(&user, &query).await.expect("reads");
        assert!(!page.truncated, "nothing is gone");
        seen.extend(of_page(&page));
        (query.after, query.limit) = (page.next, 60);
        let more = page.more;
        pages.push(page);
        if !more {
            break;
        }
    }
    assert_eq!((seen, pages.len()), ((0..150).collect::<Vec<_>>(), 3));
    let end = reader.page(&user, &query).await.expect("reads");
    assert_eq!((of_page(&end), end.next, end.more, end.truncated), (vec![], query.after, false, false));
    let newest = PageQuery { limit: 20, backwards: true, ..PageQuery::default() };
    let newest = reader.page(&user, &newest).await.expect("reads");
    assert_eq!(of_page(&newest), (130..150).rev().collect::<Vec<_>>());
    let before = PageQuery { before: newest.next, limit: 1, backwards: true, ..PageQuery::default() };
    assert_eq!(of_page(&reader.page(&user, &before).await.expect("reads")), [129]);

    // Positions of devices move forward only, each on its own.
    let standing = reader.standing(&user, Some(&phone)).await.expect("reads");
    assert_eq!((standing.kept, standing.acknowledged, standing.last), (150, None, pages[2].next));
    let from_first = PageQuery { after: standing.first, limit: 1, ..PageQuery::default() };
    let from_first = reader.page(&user, &from_first).await.expect("reads");
    assert_eq!((of_page(&from_first), from_first.truncated), (vec![0], false));
    let [first, second] = [&pages[0], &pages[1]].map(|page| page.next.expect("a place"));
    let acknowledge = async |device, at: Cursor| {
        reader.acknowledge(&user, device, at.position()).await.expect("stored").acknowledged
    };
    assert_eq!(acknowledge(&phone, second).await, Some(second));
    assert_eq!(acknowledge(&phone, first).await, Some(second), "backward is ignored");
    assert_eq!(acknowledge(&tablet, first).await, Some(first));
    assert_eq!(reader.standing(&user, Some(&phone)).await.expect("reads").acknowledged, Some(second));
    assert_eq!(reader.standing(&user, None).await.expect("reads").kept, 150, "nothing is deleted");

    // What is dropped by length is reported.
    store(inbox, "eve", 150..300).await;
    let after = |after| PageQuery { after: Some(after), limit: 1, ..PageQuery::default() };
    let page = reader.page(&user, &after(first)).await.expect("reads");
    assert_eq!((of_page(&page), page.truncated), (vec![100], true));
    let page = reader.page(&user, &after(second)).await.expect("reads");
    assert_eq!((of_page(&page), page.truncated), (vec![120], false));
    assert!(reader.page(&user, &PageQuery::default()).await.expect("reads").truncated, "the oldest is gone");

    assert_eq!(reader.erase(&user).await, Ok(200));
    assert_eq!(reader.standing(&user, Some(&phone)).await, Ok(Standing::default()));
    assert_eq!(reader.erase(&user).await, Ok(0));
}

async fn queue_behaves(inbox: &dyn Inbox, reader: &dyn InboxReader) {
    let (user, phone, tablet) = (UserId::from("fay"), device("phone"), device("tablet"));
    store(inbox, "fay", 0..20).await;
    let page = reader.page(&user, &PageQuery::default()).await.expect("reads");
    let place = |index: usize| page.entries[index].position;
    let standing = reader.acknowledge(&user, &phone, place(9)).await.expect("stored");
    assert_eq!(standing.kept, 11, "what the only device has seen is dropped, except for the last of it");
    reader.acknowledge(&user, &tablet, place(4)).await.expect("stored");
    let standing = reader.acknowledge(&user, &phone, place(15)).await.expect("stored");
    assert_eq!(standing.kept, 11, "the other device is behind");
    let after = PageQuery { after: standing.acknowledged, ..PageQuery::default() };
    let page = reader.page(&user, &after).await.expect("reads");
    assert_eq!((of_page(&page), page.truncated), (vec![16, 17, 18, 19], false));
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

fn config() -> Config {
    Config { retention: HOUR, max_per_user: 200, ..Config::default() }
}

#[tokio::test]
async fn an_inbox_in_memory_behaves() {
    let inbox = MemoryInbox::new(&config(), metrics(), Box::new(|_| None));
    inbox_behaves(&inbox, &inbox).await;
    reader_behaves(&inbox, &inbox).await;
    let config = Config { mode: Mode::Queue, ..config() };
    let inbox = MemoryInbox::new(&config, metrics(), Box::new(|_| None));
    queue_behaves(&inbox, &inbox).await;
}

#[tokio::test]
async fn an_inbox_in_redis_behaves() {
    let server = RedisServer::start().await;
    let (inbox, reader) = redis_inbox(&server.client(), &config());
    inbox_behaves(&inbox, &reader).await;
    reader_behaves(&inbox, &reader).await;
    let config = Config { mode: Mode::Queue, ..config() };
    let (inbox, reader) = redis_inbox(&server.client(), &config);
    queue_behaves(&inbox, &reader).await;
    let Value::Int(left) = server.run(&["PTTL", "halley:inbox:ann"]).await else { panic!("no time") };
    assert!((1..=3_600_000).contains(&left), "the key expires: {left}");
}

#[tokio::test]
async fn an_inbox_in_a_cluster_behaves() {
    let cluster = RedisCluster::start().await;
    let (inbox, reader) = redis_inbox(&client_of(&cluster.url()), &config());
    inbox_behaves(&inbox, &reader).await;
    reader_behaves(&inbox, &reader).await;
    let users: Vec<String> = (0..500).map(|n| format!("user {n}")).collect();
    let both = users.iter().flat_map(|user| [entry(user, 1, None), entry(user, 2, None)]);
    assert_eq!(not_stored(inbox.store(&both.collect::<Vec<_>>()).await), []);
    for user in users {
        assert_eq!(offsets(&reader, &user).await, ["push/0/1", "push/0/2"], "{user}");
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
    let (inbox, reader) = redis_inbox(&server.client(), &config());
    // Not bob by the connection that has just failed.
    let expected = [(0, "a1".to_owned()), (2, "b1".to_owned()), (4, "a1".to_owned())];
    assert_eq!(who_is_back(&inbox).await, expected);
    server.run(&["ACL", "SETUSER", "default", "-mget"]).await;
    assert_eq!(who_is_back(&inbox).await, [], "stored without the look");
    assert_eq!(offsets(&reader, "ann").await, ["push/0/1", "push/0/2"]);
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
    let (inbox, reader) = redis_inbox(&server.client(), &config());
    let body = Bytes::from(vec![7; 700_000]);
    let large = Arc::new(Message { body: body.clone(), ..(*message(1)).clone() });
    let entry = |number| InboxEntry { message: large.clone(), ..entry(&format!("u{number}"), 1, None) };
    let entries: Vec<_> = (0..20).map(entry).collect();
    assert_eq!(not_stored(inbox.store(&entries).await), []);
    for entry in entries {
        let kept = read(&reader, entry.user.as_str()).await;
        assert_eq!(kept.iter().map(|kept| kept.body == body).collect::<Vec<_>>(), [true], "{}", entry.user);
    }
}

#[tokio::test]
async fn a_corrupt_inbox_affects_no_other() {
    let server = RedisServer::start().await;
    server.run(&["SET", "halley:inbox:bob", "spoilt"]).await;
    let metrics = metrics();
    let inbox = RedisInbox::new(server.client(), &config(), metrics.clone());
    let reader = RedisInboxReader::new(server.client(), &config(), None);
    let entries = [entry("ann", 1, None), entry("bob", 1, None), entry("cid", 1, None)];
    let not_stored = inbox.store(&entries).await.expect("Redis answers").not_stored;
    assert_eq!(not_stored.iter().map(|n| n.entry).collect::<Vec<_>>(), [1]);
    assert!(not_stored[0].reason.contains("halley:inbox:bob"), "{}", not_stored[0].reason);
    assert_eq!((metrics.stored.get(), metrics.not_stored.get()), (2, 1));
    assert_eq!(offsets(&reader, "cid").await, ["push/0/1"]);
    assert_eq!(offsets(&reader, "bob").await, [""; 0]);
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
    let (_, reader) = redis_inbox(&server.client(), &config());
    assert_eq!(offsets(&reader, "ann").await, [""; 0]);
}

#[tokio::test]
async fn nothing_is_stored_while_redis_is_unreachable() {
    let mut server = RedisServer::unreachable();
    let (inbox, reader) = redis_inbox(&server.client(), &config());
    let entries = [entry("ann", 1, None)];
    inbox.store(&entries).await.expect_err("nobody listens");
    server.restart().await;
    eventually("storing succeeds", async || inbox.store(&entries).await.is_ok()).await;
    assert_eq!(offsets(&reader, "ann").await, ["push/0/1"]);
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
