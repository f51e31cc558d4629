//! Rooms whose changes Redis reports: what is fetched again, and what is forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use super::{
    CacheConfig, Directory, DirectoryReply, ForgetCause, Lookup, Metrics, RedisDirectory, RoomChanges,
    RoomReading,
};
use crate::message::RoomId;
use crate::redis_client::testing::{RedisCluster, RedisServer, eventually, run};
use crate::redis_client::{self, Config, RedisClient};

#[derive(Default)]
struct Changes(Mutex<Vec<String>>);

impl RoomChanges for Changes {
    fn room_changed(&self, room: &RoomId) {
        self.0.lock().push(room.to_string());
    }

    fn terms_ended(&self, cause: ForgetCause) {
        self.0.lock().push(format!("({})", cause.as_str()));
    }
}

fn directory(url: &str, cache: &CacheConfig) -> (RedisDirectory, Arc<Changes>) {
    let config = Config { url: url.to_owned(), ..Config::default() };
    let registry = &mut Registry::default();
    let metrics = redis_client::Metrics::register(registry);
    let client = RedisClient::with_tracking(&config, metrics, super::ROOM_KEYS).expect("a good URL");
    let directory =
        RedisDirectory::new(client, true, 1_000_000, Metrics::register(registry)).remembering(cache);
    let changes = Arc::new(Changes::default());
    directory.subscribe(changes.clone());
    (directory, changes)
}

/// A room of members `1..=size` on two comets; all users are online.
async fn fill(client: &RedisClient, room: &str, size: usize) {
    const SCRIPT: &str = "for n = 1, tonumber(ARGV[1]) do
        local id = KEYS[1] .. '-' .. n
        redis.call('HSET', 'connection:info:' .. id, 'comet_id', 'comet-' .. n % 2 .. ':1', 'user_id', 'u' .. id)
        redis.call('SET', 'user:online:u' .. id, id)
        redis.call('SADD', 'room:connections:' .. KEYS[1], id)
    end";
    run(client, &["EVAL", SCRIPT, "1", room, &size.to_string()]).await;
}

async fn read(directory: &RedisDirectory, room: &str) -> RoomReading {
    let found = directory.lookup(&[Lookup::Room(room.into())]).await.expect("Redis answers").remove(0);
    let DirectoryReply::Room(reading) = found else { panic!("{found:?}") };
    reading
}

/// The members as `id user comet online`, sorted.
fn members(reading: &RoomReading) -> Vec<String> {
    let membership = &reading.membership;
    let mut members: Vec<String> = membership
        .members
        .iter()
        .map(|member| {
            let user = member.user.as_ref().map_or("-", |user| user.as_str());
            format!("{} {user} {} {}", member.id, membership.comets[member.comet as usize], member.online)
        })
        .collect();
    members.sort_unstable();
    members
}

/// As if nothing were known.
async fn read_anew(url: &str, room: &str) -> RoomReading {
    read(&directory(url, &CacheConfig::default()).0, room).await
}

async fn only_newcomers_are_fetched(size: usize) {
    let server = RedisServer::start().await;
    let (writer, url) = (server.client(), server.config().url);
    fill(&writer, "r", size).await;
    let (directory, changes) = directory(&url, &CacheConfig::default());
    let first = read(&directory, "r").await;
    assert!(first.freshness.term.is_some() && first.freshness.complete);
    assert_eq!(first.membership.members.len(), size);
    for words in [
        &["HSET", "connection:info:new-1", "comet_id", "comet-7:1", "user_id", "u-new"][..],
        &["HSET", "connection:info:new-2", "comet_id", "comet-1:1", "user_id", "ur-1"],
        &["SET", "user:online:u-new", "new-1"],
        &["DEL", "user:online:ur-1"],
        &["SADD", "room:connections:r", "new-1", "new-2"],
        &["SREM", "room:connections:r", "r-5", "r-6"],
    ] {
        run(&writer, words).await;
    }
    eventually("a report", async || changes.0.lock().contains(&"r".to_owned())).await;
    let second = read(&directory, "r").await;
    assert_eq!(directory.metrics.newcomers.get(), 2);
    assert_eq!(members(&second), members(&read_anew(&url, "r").await), "also who of the others is offline");
    assert_eq!(second.freshness.details_since, first.freshness.details_since);

    // One that has no details yet is asked for again; nobody reports when they are there.
    run(&writer, &["SADD", "room:connections:r", "late"]).await;
    let third = read(&directory, "r").await;
    assert_eq!((third.membership.stale, third.freshness.complete), (1, false));
    run(&writer, &["HSET", "connection:info:late", "comet_id", "comet-0:1"]).await;
    let fourth = read(&directory, "r").await;
    assert_eq!((fourth.membership.stale, fourth.freshness.complete), (0, true));
    assert_eq!(directory.metrics.newcomers.get(), 4);

    // A comet that nobody is at any more is not named.
    run(&writer, &["SREM", "room:connections:r", "new-1"]).await;
    assert_eq!(read(&directory, "r").await.membership.comets.len(), 2);
    directory.forget(&"r".into());
    let last = read(&directory, "r").await;
    assert!(last.freshness.details_since > first.freshness.details_since, "all of it was read");
}

#[tokio::test]
async fn only_newcomers_of_a_room_are_fetched() {
    only_newcomers_are_fetched(200).await;
}

#[tokio::test]
async fn only_newcomers_of_a_large_room_are_fetched() {
    only_newcomers_are_fetched(12_000).await;
}

#[tokio::test]
async fn old_details_and_small_rooms_are_read_as_a_whole() {
    let server = RedisServer::start().await;
    fill(&server.client(), "r", 200).await;
    fill(&server.client(), "small", 20).await;
    let cache = CacheConfig { presence_max_age: Duration::from_millis(300), ..CacheConfig::default() };
    let (directory, _) = directory(&server.config().url, &cache);
    let first = read(&directory, "r").await.freshness.details_since;
    read(&directory, "small").await;
    run(&server.client(), &["DEL", "user:online:ur-1", "user:online:usmall-1"]).await;
    assert_eq!(read(&directory, "small").await.membership.members.iter().filter(|m| !m.online).count(), 1);
    eventually("another reading", async || read(&directory, "r").await.freshness.details_since != first)
        .await;
    let reading = read(&directory, "r").await;
    assert_eq!(reading.membership.members.iter().filter(|member| !member.online).count(), 1);
    assert!(first.elapsed() >= cache.presence_max_age);
}

#[tokio::test]
async fn a_flush_and_another_server_are_noticed() {
    let mut server = RedisServer::start().await;
    let (directory, changes) = directory(&server.config().url, &CacheConfig::default());
    fill(&server.client(), "r", 200).await;
    let term = read(&directory, "r").await.freshness.term.expect("it is tracked");
    server.run(&["FLUSHALL"]).await;
    eventually("the flush", async || term.is_over()).await;
    assert_eq!(read(&directory, "r").await.membership.members.len(), 0);
    fill(&server.client(), "r", 200).await;
    let term = read(&directory, "r").await.freshness.term.expect("it is tracked");
    server.kill();
    server.restart().await;
    eventually("the end of the connection", async || term.is_over()).await;
    eventually("Redis to answer", async || directory.check().await.is_ok()).await;
    assert_eq!(read(&directory, "r").await.membership.members.len(), 0);
    let causes = changes.0.lock().clone();
    assert!(causes.contains(&"(flushed)".to_owned()) && causes.contains(&"(disconnected)".to_owned()));
}

#[tokio::test]
async fn in_a_cluster_rooms_are_tracked_by_their_nodes() {
    let cluster = RedisCluster::start().await;
    let (directory, changes) = directory(&cluster.url(), &CacheConfig::default());
    let rooms = ["a", "b", "c", "d", "e"];
    for room in rooms {
        cluster.join(room, &format!("{room}-1"), &format!("u-{room}"), "comet:1").await;
        assert!(read(&directory, room).await.freshness.term.is_some());
    }
    assert!(read(&directory, "nobody").await.freshness.term.is_none(), "it may be created elsewhere");
    let before = Instant::now();
    for room in rooms {
        cluster.join(room, &format!("{room}-2"), &format!("u-{room}"), "comet:1").await;
    }
    assert!(directory.confirm_changes().await);
    let changed = changes.0.lock().clone();
    assert!(rooms.iter().all(|room| changed.iter().any(|changed| changed == room)), "{changed:?}");
    let reading = read(&directory, "a").await;
    assert_eq!(members(&reading), ["a-1 u-a comet:1 true", "a-2 u-a comet:1 true"]);
    assert!(reading.freshness.term.is_some_and(|term| term.covers(before)));
}
