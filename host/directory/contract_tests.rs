//! Contract tests: what every directory promises. Run against memory and Redis; in Redis with both
//! ways of reading rooms, with sentinels, and in a cluster.

use std::time::Duration;

use prometheus_client::registry::Registry;

use super::{Directory, DirectoryReply, Lookup, MemoryDirectory, Metrics, RedisDirectory, RoomReading};
use crate::membership::{Connection, Member, Membership};
use crate::redis_client::testing::{
    RedisCluster, RedisSentinel, RedisServer, client, client_of, eventually, run,
};
use crate::redis_client::{Config, RedisClient};

/// What a check says of a server that permits `SORT_RO`.
const SORT_RO: &str = "rooms are read with SORT_RO, one command each";

/// Writes the directory as comets do.
trait CometWrites {
    async fn join(&self, room: &str, connection: &str);
    async fn connect(&self, connection: &str, comet: &str, user: Option<&str>);
    async fn online(&self, user: &str, connection: &str);
}

impl CometWrites for MemoryDirectory {
    async fn join(&self, room: &str, connection: &str) {
        MemoryDirectory::join(self, room, connection);
    }

    async fn connect(&self, connection: &str, comet: &str, user: Option<&str>) {
        MemoryDirectory::connect(self, connection, comet, user);
    }

    async fn online(&self, user: &str, connection: &str) {
        MemoryDirectory::online(self, user, connection);
    }
}

impl CometWrites for RedisClient {
    async fn join(&self, room: &str, connection: &str) {
        run(self, &["SADD", &format!("room:connections:{room}"), connection]).await;
    }

    async fn connect(&self, connection: &str, comet: &str, user: Option<&str>) {
        let key = format!("connection:info:{connection}");
        run(self, &["HSET", &key, "comet_id", comet, "room_id", "whatever"]).await;
        if let Some(user) = user {
            run(self, &["HSET", &key, "user_id", user]).await;
        }
    }

    async fn online(&self, user: &str, connection: &str) {
        run(self, &["SET", &format!("user:online:{user}"), connection, "EX", "300"]).await;
    }
}

fn room(id: &str) -> Lookup {
    Lookup::Room(id.into())
}

fn key(id: &str) -> Lookup {
    Lookup::Key(id.into())
}

fn connection(id: &str, comet: &str, user: Option<&str>, online: bool) -> Connection {
    Connection { id: id.into(), user: user.map(Into::into), comet: comet.into(), online }
}

/// Sorts rooms, which have no order, for comparison.
fn sorted(found: Vec<DirectoryReply>) -> Vec<DirectoryReply> {
    let sort = |found| match found {
        DirectoryReply::Unreadable(why) => DirectoryReply::Unreadable(why),
        DirectoryReply::Room(reading) => {
            DirectoryReply::Room(RoomReading::untracked(in_order((*reading.membership).clone())))
        }
        DirectoryReply::Key(connection) => DirectoryReply::Key(connection),
    };
    found.into_iter().map(sort).collect()
}

fn in_order(membership: Membership) -> Membership {
    let comet = |member: &Member| membership.comets[member.comet as usize].clone();
    let connection = |member: &Member| Connection {
        comet: comet(member),
        id: member.id.clone(),
        user: member.user.clone(),
        online: member.online,
    };
    let mut connections: Vec<_> = membership.members.iter().map(connection).collect();
    connections.sort_by(|a, b| a.id.cmp(&b.id));
    Membership::new(connections, membership.stale)
}

async fn fill(comets: &impl CometWrites) {
    // The room of the specification: three connections on two comets.
    for (number, comet) in [(1, "localhost:50051"), (2, "localhost:50051"), (3, "localhost:50052")] {
        let (id, user) = (format!("c{number}"), format!("u{number}"));
        comets.connect(&id, comet, Some(&user)).await;
        comets.join("video_123", &id).await;
        comets.online(&user, &id).await;
    }
    // One whose user is not online, one without a user, and three stale ones.
    comets.connect("c4", "localhost:50051", Some("u4")).await;
    comets.connect("c5", "localhost:50052", None).await;
    comets.connect("c6", "", Some("u6")).await;
    for id in ["c4", "c5", "c6", "c7", ""] {
        comets.join("mixed", id).await;
    }
    // Names with characters that are special in commands and patterns.
    comets.connect("c*8 \r\n->x", "localhost:50051", Some("ü*8")).await;
    comets.join("a*b ?[x] 房间\r\n->", "c*8 \r\n->x").await;
    comets.online("ü*8", "c*8 \r\n->x").await;
    // Users whose connection is gone, belongs to another user, or has no user.
    comets.online("u-gone", "c-gone").await;
    comets.online("u-robbed", "c1").await;
    comets.online("u-plain", "c5").await;
}

async fn finds_what_comets_wrote(directory: &dyn Directory, check_online: bool) {
    let video = [("c1", 1, "localhost:50051"), ("c2", 2, "localhost:50051"), ("c3", 3, "localhost:50052")];
    let video = video.map(|(id, n, comet)| connection(id, comet, Some(&format!("u{n}")), true));
    let c4 = connection("c4", "localhost:50051", Some("u4"), !check_online);
    let c5 = connection("c5", "localhost:50052", None, true);
    let odd = connection("c*8 \r\n->x", "localhost:50051", Some("ü*8"), true);
    let expected = [
        (room("video_123"), DirectoryReply::Room(RoomReading::untracked(Membership::new(video.clone(), 0)))),
        (key("c1"), DirectoryReply::Key(Some(video[0].clone()))),
        (
            room("mixed"),
            DirectoryReply::Room(RoomReading::untracked(Membership::new([c4.clone(), c5.clone()], 3))),
        ),
        (room("nobody-here"), DirectoryReply::Room(RoomReading::untracked(Membership::default()))),
        (key("c4"), DirectoryReply::Key(Some(c4))),
        (key("u3"), DirectoryReply::Key(Some(video[2].clone()))),
        (key("u4"), DirectoryReply::Key(None)),
        (key("c6"), DirectoryReply::Key(None)),
        (key("unheard-of"), DirectoryReply::Key(None)),
        (
            room("a*b ?[x] 房间\r\n->"),
            DirectoryReply::Room(RoomReading::untracked(Membership::new([odd.clone()], 0))),
        ),
        (key("ü*8"), DirectoryReply::Key(Some(odd))),
        (key("u-gone"), DirectoryReply::Key(None)),
        (key("u-robbed"), DirectoryReply::Key(None)),
        (key("u-plain"), DirectoryReply::Key(Some(Connection { user: Some("u-plain".into()), ..c5 }))),
        (room("video_123"), DirectoryReply::Room(RoomReading::untracked(Membership::new(video, 0)))),
    ];
    let (lookups, found): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
    assert_eq!(directory.lookup(&lookups).await.map(sorted), Ok(found.clone()), "all together");
    for (lookup, found) in lookups.into_iter().zip(found) {
        assert_eq!(directory.lookup(&[lookup]).await.map(sorted), Ok(vec![found]), "alone");
    }
    assert_eq!(directory.lookup(&[]).await, Ok(vec![]));
}

async fn finds_everyone_in_a_large_room(comets: &impl CometWrites, directory: &dyn Directory) {
    for number in 0..2500 {
        let (id, user) = (format!("l{number}"), format!("l-user{}", number / 2));
        comets.connect(&id, &format!("comet-{}:1", number % 8), Some(&user)).await;
        comets.join("large", &id).await;
        if number % 4 == 0 {
            comets.online(&user, &id).await;
        }
    }
    let found = directory.lookup(&[room("large"), room("large")]).await.expect("answers");
    for found in found {
        let DirectoryReply::Room(RoomReading { membership, .. }) = found else {
            panic!("a room was asked for")
        };
        assert_eq!((membership.members.len(), membership.comets.len()), (2500, 8));
        assert_eq!(membership.members.iter().filter(|member| member.online).count(), 1250);
    }
}

fn metrics() -> Metrics {
    Metrics::register(&mut Registry::default())
}

fn in_redis(client: RedisClient) -> RedisDirectory {
    RedisDirectory::new(client, true, 1_000_000, metrics())
}

/// A client whose user may not use `SORT_RO`.
async fn without_sort(server: &RedisServer) -> RedisClient {
    let acl = ["ACL", "SETUSER", "halley", "on", ">secret", "~*", "+@all", "-sort_ro"];
    server.run(&acl).await;
    let url = server.config().url.replace("redis://", "redis://halley:secret@");
    client(&Config { url, ..server.config() })
}

#[tokio::test]
async fn the_directory_in_memory_behaves() {
    for check_online in [true, false] {
        let directory = MemoryDirectory::new(check_online);
        fill(&directory).await;
        finds_what_comets_wrote(&directory, check_online).await;
    }
    let directory = MemoryDirectory::new(true);
    finds_everyone_in_a_large_room(&directory, &directory).await;
    directory.set_unreachable(true);
    directory.lookup(&[room("large")]).await.expect_err("simulated outage");
    assert_eq!(directory.check().await.ok(), None);
}

#[tokio::test]
async fn the_directory_in_redis_behaves() {
    let server = RedisServer::start().await;
    fill(&server.client()).await;
    for check_online in [true, false] {
        let directory = RedisDirectory::new(server.client(), check_online, 1_000_000, metrics());
        assert_eq!(directory.check().await.as_deref(), Ok(SORT_RO));
        finds_what_comets_wrote(&directory, check_online).await;
    }
    finds_everyone_in_a_large_room(&server.client(), &in_redis(server.client())).await;
}

#[tokio::test]
async fn the_directory_in_redis_behaves_without_sort_ro() {
    let server = RedisServer::start().await;
    fill(&server.client()).await;
    let client = without_sort(&server).await;
    for check_online in [true, false] {
        let directory = RedisDirectory::new(client.clone(), check_online, 1_000_000, metrics());
        let how = directory.check().await.expect("answers");
        assert!(how.contains("SSCAN + HMGET") && how.contains("NOPERM"), "{how}");
        finds_what_comets_wrote(&directory, check_online).await;
    }
    finds_everyone_in_a_large_room(&server.client(), &in_redis(client)).await;
}

#[tokio::test]
async fn the_directory_in_a_cluster_behaves() {
    let cluster = RedisCluster::start().await;
    let client = client_of(&cluster.url());
    fill(&client).await;
    for check_online in [true, false] {
        let directory = RedisDirectory::new(client.clone(), check_online, 1_000_000, metrics());
        let how = directory.check().await.expect("answers");
        assert!(how.contains("SSCAN + HMGET") && how.contains("Cluster"), "{how}");
        finds_what_comets_wrote(&directory, check_online).await;
    }
    finds_everyone_in_a_large_room(&client, &in_redis(client.clone())).await;
}

#[tokio::test]
async fn the_directory_behind_sentinels_behaves() {
    let sentinels = RedisSentinel::start().await;
    let client = client_of(&sentinels.url());
    fill(&client).await;
    let directory = in_redis(client.clone());
    assert_eq!(directory.check().await.as_deref(), Ok(SORT_RO));
    finds_what_comets_wrote(&directory, true).await;
    finds_everyone_in_a_large_room(&client, &directory).await;

    sentinels.failover().await;
    eventually("the new primary is read", async || directory.check().await.is_ok()).await;
    finds_what_comets_wrote(&directory, true).await;
}

#[tokio::test]
async fn keys_of_the_wrong_type_in_a_cluster_are_skipped() {
    let cluster = RedisCluster::start().await;
    let client = client_of(&cluster.url());
    fill(&client).await;
    run(&client, &["DEL", "user:online:u1"]).await;
    run(&client, &["LPUSH", "user:online:u1", "x"]).await;
    run(&client, &["SET", "connection:info:c2", "x"]).await;
    let metrics = metrics();
    let directory = RedisDirectory::new(client, true, 1_000_000, metrics.clone());
    let found = directory.lookup(&[room("video_123")]).await.map(sorted);
    let offline = connection("c1", "localhost:50051", Some("u1"), false);
    let c3 = connection("c3", "localhost:50052", Some("u3"), true);
    assert_eq!(
        found,
        Ok(vec![DirectoryReply::Room(RoomReading::untracked(Membership::new([offline, c3], 1)))])
    );
    assert_eq!(metrics.stale_members.get(), 1);
}

#[tokio::test]
async fn a_server_that_stops_allowing_sort_ro_is_still_read() {
    let server = RedisServer::start().await;
    fill(&server.client()).await;
    let directory = in_redis(server.client());
    assert_eq!(directory.check().await.as_deref(), Ok(SORT_RO));
    server.run(&["ACL", "SETUSER", "default", "-sort_ro"]).await;
    finds_what_comets_wrote(&directory, true).await;
    let how = directory.check().await.expect("answers");
    assert!(how.contains("SSCAN + HMGET"), "{how}");

    server.run(&["ACL", "SETUSER", "default", "+sort_ro"]).await;
    server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    let how = directory.check().await;
    assert_eq!(how.as_deref(), Ok(SORT_RO), "a new connection is probed again");
}

#[tokio::test]
async fn keys_of_the_wrong_type_are_skipped_and_counted() {
    let server = RedisServer::start().await;
    fill(&server.client()).await;
    for key in ["room:connections:spoilt", "connection:info:spoilt", "connection:info:c-bad"] {
        server.run(&["SET", key, "x"]).await;
    }
    server.run(&["LPUSH", "user:online:spoilt", "x"]).await;
    server.run(&["SADD", "room:connections:half", "c1", "c-bad"]).await;
    for client in [server.client(), without_sort(&server).await] {
        let metrics = metrics();
        let directory = RedisDirectory::new(client, true, 1_000_000, metrics.clone());
        let lookups = [room("spoilt"), room("half"), key("spoilt"), key("c1")];
        let found = directory.lookup(&lookups).await.expect("answers");
        let c1 = connection("c1", "localhost:50051", Some("u1"), true);
        let half = Membership::new([c1.clone()], 1);
        let expected = [
            DirectoryReply::Room(RoomReading::untracked(Membership::default())),
            DirectoryReply::Room(RoomReading::untracked(half)),
            DirectoryReply::Key(None),
            DirectoryReply::Key(Some(c1)),
        ];
        assert_eq!(found, expected);
        assert_eq!((metrics.wrong_type_keys.get(), metrics.stale_members.get()), (3, 1));
    }
}

#[tokio::test]
async fn names_that_are_not_utf8_are_stale() {
    let server = RedisServer::start().await;
    server.client().connect("good", "a:1", None).await;
    let mut commands = Vec::new();
    for id in [&b"good"[..], &b"\xff\xfe"[..], &b"bad-comet"[..]] {
        commands.push(redis::cmd("SADD").arg("room:connections:r").arg(id).take());
    }
    commands.push(redis::cmd("HSET").arg(b"connection:info:\xff\xfe").arg("comet_id").arg("a:1").take());
    commands.push(redis::cmd("HSET").arg("connection:info:bad-comet").arg("comet_id").arg(b"\xff").take());
    server.client().run_small("test", commands).await.expect("answers");
    let expected = DirectoryReply::Room(RoomReading::untracked(Membership::new(
        [connection("good", "a:1", None, true)],
        2,
    )));
    for client in [server.client(), without_sort(&server).await] {
        assert_eq!(in_redis(client).lookup(&[room("r")]).await, Ok(vec![expected.clone()]));
    }
}

#[tokio::test]
async fn the_directory_recovers_after_outages() {
    let mut server = RedisServer::unreachable();
    let directory = in_redis(server.client());
    let asked = std::time::Instant::now();
    let unavailable = directory.lookup(&[room("mixed")]).await.expect_err("nobody listens");
    assert!(asked.elapsed() < Duration::from_secs(5), "it does not wait for long");
    assert!(unavailable.to_string().contains("redis://127.0.0.1:"), "{unavailable}");
    for _ in 0..2 {
        server.restart().await;
        fill(&server.client()).await;
        let back = std::time::Instant::now();
        // Each connection has its own back-off; the check uses both.
        eventually("the directory is read", async || directory.check().await.is_ok()).await;
        assert!(back.elapsed() < Duration::from_secs(5), "noticed soon: {:?}", back.elapsed());
        finds_what_comets_wrote(&directory, true).await;
        server.kill();
        directory.lookup(&[room("mixed")]).await.expect_err("killed");
        assert_eq!(directory.check().await.ok(), None);
    }
}
