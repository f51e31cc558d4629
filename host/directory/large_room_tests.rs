//! Rooms that are too large for one command, and rooms that cannot be read.

use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Directory, DirectoryReply, Lookup, Metrics, RedisDirectory, RoomReading};
use crate::redis_client::testing::{RedisCluster, RedisServer, client, client_of, run};
use crate::redis_client::{Config, RedisClient};

const MEMBERS: usize = 12_000;

fn directory(client: RedisClient, max_room_size: usize) -> RedisDirectory {
    RedisDirectory::new(client, true, max_room_size, Metrics::register(&mut Registry::default()))
}

fn room(id: &str) -> Lookup {
    Lookup::Room(id.into())
}

/// Fills a room: four comets, two connections per user, every fourth user online; a few members are
/// stale.
async fn fill(client: &RedisClient, room: &str, members: usize) {
    let mut commands = Vec::new();
    for n in 0..members {
        let (id, user) = (format!("{room}-{n}"), format!("{room}-user{}", n / 2));
        commands.push(redis::cmd("SADD").arg(format!("room:connections:{room}")).arg(&id).take());
        if n % 1_000 != 7 {
            let info = [("comet_id", format!("comet-{}:1", n % 4)), ("user_id", user.clone())];
            let mut command = redis::cmd("HSET");
            command.arg(format!("connection:info:{id}"));
            for (field, value) in &info {
                command.arg(*field).arg(value);
            }
            commands.push(command);
        }
        if n % 8 == 0 {
            commands.push(redis::cmd("SET").arg(format!("user:online:{user}")).arg(&id).take());
        }
    }
    client.run_small("test", commands).await.expect("Redis answers");
}

fn assert_whole(found: Option<&DirectoryReply>, members: usize) {
    let Some(DirectoryReply::Room(RoomReading { membership, .. })) = found else {
        panic!("no room: {found:?}")
    };
    let stale = members.div_ceil(1_000);
    assert_eq!((membership.members.len(), membership.stale), (members - stale, stale));
    assert_eq!(membership.comets.len(), 4);
    let is_online = |n: &usize| n % 8 < 2 && n % 1_000 != 7;
    let online = membership.members.iter().filter(|member| member.online).count();
    assert_eq!(online, (0..members).filter(is_online).count());
}

/// Reads the room together with others, twice: first when it is not known to be large, then when it is.
async fn reads_everyone(filled: &RedisClient, client: RedisClient) {
    fill(filled, "large", MEMBERS).await;
    fill(filled, "small", 8).await;
    let directory = directory(client, 1_000_000);
    for _ in 0..2 {
        let lookups = [room("small"), room("large"), Lookup::Key("small-0".into()), room("empty")];
        let found = directory.lookup(&lookups).await.expect("answers");
        assert_whole(found.get(1), MEMBERS);
        assert!(
            matches!(&found[0], DirectoryReply::Room(small) if small.membership.members.len() == 7),
            "{:?}",
            found[0]
        );
        assert!(
            matches!(&found[2], DirectoryReply::Key(Some(_)))
                && matches!(&found[3], DirectoryReply::Room(none) if none.membership.members.is_empty())
        );
    }
}

#[tokio::test]
async fn a_large_room_is_read_in_pages() {
    let server = RedisServer::start().await;
    reads_everyone(&server.client(), server.client()).await;
}

#[tokio::test]
async fn a_large_room_is_read_in_pages_without_sort_ro() {
    let server = RedisServer::start().await;
    server.run(&["ACL", "SETUSER", "halley", "on", ">secret", "~*", "+@all", "-sort_ro"]).await;
    let url = server.config().url.replace("redis://", "redis://halley:secret@");
    reads_everyone(&server.client(), client(&Config { url, ..server.config() })).await;
}

#[tokio::test]
async fn a_large_room_of_a_cluster_is_read_in_pages() {
    let cluster = RedisCluster::start().await;
    let client = client_of(&cluster.url());
    reads_everyone(&client, client.clone()).await;
}

#[tokio::test]
async fn a_shrunken_room_is_read_at_once_and_an_oversized_one_never() {
    let server = RedisServer::start().await;
    fill(&server.client(), "r", MEMBERS).await;
    let directory = directory(server.client(), 11_000);
    let found = directory.lookup(&[room("r"), room("other")]).await.expect("answers");
    let DirectoryReply::Unreadable(why) = &found[0] else { panic!("{:?}", found[0]) };
    assert!(why.contains("more than 11000 members; see `[routing] max_room_size`"), "{why}");
    assert!(matches!(&found[1], DirectoryReply::Room(_)), "the others have their answers: {:?}", found[1]);
    assert_eq!(directory.lookup(&[room("r")]).await, Ok(found[..1].to_vec()), "and it is remembered");
    assert_eq!(directory.metrics.unreadable_rooms.get(), 1);

    let directory = self::directory(server.client(), 1_000_000);
    drop(directory.lookup(&[room("r")]).await.expect("answers"));
    assert!(!directory.room_hints.lock().is_empty());
    run(&server.client(), &["SPOP", "room:connections:r", "11000"]).await;
    drop(directory.lookup(&[room("r")]).await.expect("answers"));
    assert!(directory.room_hints.lock().is_empty(), "it is no longer a large room");
}

/// A server that never answers commands about one key.
async fn silent_about(key: &'static str) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, key));
        }
    });
    (format!("redis://{address}"), server)
}

async fn serve(stream: TcpStream, silent: &str) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let words = command(&mut stream).await?;
        let reply = match words[0].as_str() {
            _ if words.iter().any(|word| word == silent) => std::future::pending().await,
            "PING" => "+PONG\r\n",
            "SORT_RO" => "-ERR unknown command\r\n",
            "SSCAN" => "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nm\r\n",
            "HMGET" => "*2\r\n$3\r\na:1\r\n$1\r\nu\r\n",
            "MGET" => "*1\r\n$1\r\nm\r\n",
            _ => "+OK\r\n",
        };
        stream.write_all(reply.as_bytes()).await.ok()?;
    }
}

/// The words of one command; `None` when the connection ends.
async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut line = String::new();
    let count = (stream.read_line(&mut line).await.ok()? > 0).then(|| line.trim()[1..].parse().ok())??;
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let mut word = vec![0; line.trim()[1..].parse::<usize>().ok()? + 2];
        stream.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
    }
    Some(words)
}

#[tokio::test]
async fn a_room_that_alone_times_out_is_given_up() {
    let (url, _server) = silent_about("room:connections:stuck").await;
    let scan_timeout = Duration::from_millis(50);
    let directory = directory(client(&Config { url, scan_timeout, ..Config::default() }), 1_000_000);
    let lookups = [room("good"), room("stuck")];
    // The first attempt does not show which room is at fault; the caller retries.
    let slow = directory.lookup(&lookups).await.expect_err("timed out");
    assert!(slow.is_slow(), "{slow}");
    let found = directory.lookup(&lookups).await.expect("answers");
    assert!(
        matches!(&found[0], DirectoryReply::Room(good) if good.membership.members.len() == 1),
        "{:?}",
        found[0]
    );
    let DirectoryReply::Unreadable(why) = &found[1] else { panic!("{:?}", found[1]) };
    assert!(why.contains("could not be read in 3 attempts, while Redis answers"), "{why}");
}

#[tokio::test]
async fn oversized_values_affect_no_other_look_ups() {
    let server = RedisServer::start().await;
    let bounded = client(&Config { max_reply: bytesize::ByteSize::mib(1), ..server.config() });
    let (long, huge) = ("x".repeat(100_000), "x".repeat(3_000_000));
    for (id, comet) in
        [("w1", "a:1"), ("o1", "a:1"), ("o2", &long), ("h1", "a:1"), ("h2", &huge), ("k1", "b:1")]
    {
        server.run(&["HSET", &format!("connection:info:{id}"), "comet_id", comet]).await;
    }
    for (room, id) in [("well", "w1"), ("odd", "o1"), ("odd", "o2"), ("huge", "h1"), ("huge", "h2")] {
        server.run(&["SADD", &format!("room:connections:{room}"), id]).await;
    }
    let key = |key: &str| Lookup::Key(key.into());
    server.run(&["SADD", "room:connections:ids", &huge]).await;
    let lookups = [room("well"), key("k1"), room("odd"), room("huge"), key("h2"), key("o2"), room("ids")];
    let found = directory(bounded, 100).lookup(&lookups).await.expect("Redis is healthy");
    let comets = |found: &DirectoryReply| match found {
        DirectoryReply::Room(RoomReading { membership, .. }) => (membership.members.len(), membership.stale),
        other => panic!("{other:?}"),
    };
    assert_eq!((comets(&found[0]), comets(&found[2])), ((1, 0), (1, 1)));
    assert_eq!(comets(&found[3]), (1, 1), "one member that is too large is no reason to reach nobody");
    assert!(matches!(&found[1], DirectoryReply::Key(Some(connection)) if connection.comet == "b:1".into()));
    let DirectoryReply::Unreadable(why) = &found[6] else { panic!("{:?}", found[6]) };
    for told in ["room `ids`", "`room:connections:ids`", "3000000 bytes", "[redis] max_reply"] {
        assert!(why.contains(told), "{told} in {why}");
    }
    assert_eq!((&found[4], &found[5]), (&DirectoryReply::Key(None), &DirectoryReply::Key(None)));
}
