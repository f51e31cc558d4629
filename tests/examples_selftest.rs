//! The examples do what their documentation says.

use bytes::Bytes;
use halley::comets::proto::chatroom;
use halley::message::{Audience, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::browser::{Browser, example};
use crate::support::child_process::ChildProcess;
use crate::support::gateway::{RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, call, eventually, folder, free_port, http, peers, unique};

#[tokio::test]
async fn the_example_comet_shows_a_message_once_and_leaves_nothing_in_redis() {
    let redis = Redis::start().await;
    let (grpc, web) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let args = ["--listen", &grpc, "--http", &web, "--redis", redis.url()].map(str::to_owned);
    let mut comet = ChildProcess::start(&example("comet"), &args, folder("example")).expect("starts");
    let page = eventually("the page", PATIENCE, async || http::get(&web, "/").await.ok()).await;
    assert!(page.status == 200 && page.body.contains("<title>Example comet</title>"), "{page:?}");

    let (room, user) = (unique("video"), unique("user"));
    let mut browser = Browser::enter(&web, &room, &user).await;
    let hello = browser.next().await;
    let connection = hello["connection"].as_str().expect("the connection's id").to_owned();
    let wanted = [
        format!("connection:info:{connection}"),
        format!("room:connections:{room}"),
        format!("user:online:{user}"),
    ];
    eventually("the directory keys", PATIENCE, async || (redis.keys("*").await == wanted).then_some(()))
        .await;

    let proto = |body: &'static str| {
        Some(chatroom::Proto { ver: 1, op: 5, seq: 0, body: Bytes::from_static(body.as_bytes()) })
    };
    for _ in 0..2 {
        let request = chatroom::BroadcastRoomReq { room_id: room.clone(), proto: proto("hello") };
        call(&grpc, "/ChatRoom.Comet.Comet/BroadcastRoom", request, &["push/0/1"]).await.expect("OK");
    }
    let request = chatroom::PushMsgReq { keys: vec![connection], proto: proto("you"), proto_op: 5 };
    call(&grpc, "/ChatRoom.Comet.Comet/PushMsg", request, &["push/0/2"]).await.expect("OK");
    let once = json!({ "to": "room", "op": 5, "body": "hello", "id": "push/0/1" });
    assert_eq!(browser.next().await, once);
    assert_eq!(browser.next().await, json!({ "to": "you", "op": 5, "body": "you", "id": "push/0/2" }));

    comet.signal("TERM");
    let ended = comet.wait(PATIENCE).await;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", comet.log());
    assert_eq!(redis.keys("*").await, [""; 0]);
}

/// How messages reach the gateway's only comet.
async fn delivery(gateway: &RunningGateway) -> String {
    let comets = gateway.get("/v1/comets").await.json();
    comets["comets"][0]["delivery"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_example_comet_takes_messages_by_stream() {
    let redis = Redis::start().await;
    let (grpc, web) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let args = ["--listen", &grpc, "--http", &web, "--redis", redis.url()].map(str::to_owned);
    let mut comet = ChildProcess::start(&example("comet"), &args, folder("example")).expect("starts");
    eventually("the page", PATIENCE, async || http::get(&web, "/").await.ok()).await;
    let mut browser = Browser::enter(&web, "lobby", "user_1").await;
    browser.next().await;
    eventually("the directory", PATIENCE, async || (redis.keys("room:*").await.len() == 1).then_some(()))
        .await;
    redis.join("empty", "conn_2", "user_2", &grpc).await;
    let topic = kafka().topic("example-stream", 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    kafka().produce_room(&topic, "empty", "anybody?").await;
    gateway.wait_until_settled(&topic).await;
    let event = browser.next().await;
    assert_eq!((event["body"].as_str(), event["to"].as_str()), (Some("hello"), Some("room")), "{event}");
    assert_eq!(delivery(&gateway).await, "stream");
    assert_eq!(redis.stream("halley:inbox:user_2").await.len(), 1, "nobody of the room was there");
    comet.signal("TERM");
    let ended = comet.wait(PATIENCE).await;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", comet.log());
}

#[tokio::test]
async fn the_example_comet_shows_what_was_missed_first() {
    let redis = Redis::start().await;
    let (grpc, web) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let api = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{api}");
    let args =
        ["--listen", &grpc, "--http", &web, "--redis", redis.url(), "--inbox", &url].map(str::to_owned);
    let mut comet = ChildProcess::start(&example("comet"), &args, folder("example")).expect("starts");
    eventually("the page", PATIENCE, async || http::get(&web, "/").await.ok()).await;
    redis.join("lobby", "old", "ann", &grpc).await;
    redis.offline("ann").await;
    let topic = kafka().topic("example-inbox", 1).await;
    let settings = gateway(&topic).redis(&redis).set("api", "listen", quoted(&api));
    let gateway = settings.set("routing.cache", "max_age", quoted("50ms")).start().await;
    for number in 0..3 {
        kafka().produce_room(&topic, "lobby", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;

    let mut browser = Browser::enter(&web, "lobby", "ann").await;
    browser.next().await;
    for number in 0..3 {
        let event = browser.next().await;
        assert_eq!((&event["missed"], &event["body"]), (&json!(true), &json!(number.to_string())), "{event}");
    }
    let acknowledged = async || {
        let position =
            http::get(&api, "/v1/inbox/ann/position?device=browser").await.expect("an answer").json();
        (position["acknowledged"] == position["last"]).then_some(())
    };
    eventually("the device's position to follow", PATIENCE, acknowledged).await;
    kafka().produce_room(&topic, "lobby", "live").await;
    let event = browser.next().await;
    assert_eq!((&event["missed"], &event["body"]), (&Value::Null, &json!("live")), "{event}");
    comet.signal("TERM");
    let ended = comet.wait(PATIENCE).await;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", comet.log());
}

#[tokio::test]
async fn the_go_comet_takes_messages_by_stream() {
    let Some(program) = peers::program("comet-go").await else { return };
    let redis = Redis::start().await;
    let (grpc, lines) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let args = ["-listen", &grpc, "-clients", &lines].map(str::to_owned);
    let program = program.display().to_string();
    let mut comet = ChildProcess::start(&program, &args, folder("comet-go")).expect("starts");
    let mut client = LineClient::join(&lines, "lobby", "conn_1").await;
    for (room, connection, user) in
        [("lobby", "conn_1", "user_1"), ("lobby", "conn_2", "user_2"), ("empty", "conn_3", "user_3")]
    {
        redis.join(room, connection, user, &grpc).await;
    }
    let topic = kafka().topic("go-stream", 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;
    kafka().produce_room(&topic, "lobby", "to the room").await;
    kafka().produce_keys(&topic, None, &["conn_1", "conn_2"], "to both").await;
    kafka().produce_room(&topic, "empty", "to nobody").await;
    gateway.wait_until_settled(&topic).await;
    // Nothing orders a message to a room before one to connections.
    let mut received = [client.next().await, client.next().await];
    received.sort();
    assert_eq!(received, ["4 to both", "4 to the room"]);
    assert_eq!(delivery(&gateway).await, "stream");
    for (user, count) in [("user_1", 0), ("user_2", 1), ("user_3", 1)] {
        let kept = redis.stream(&format!("halley:inbox:{user}")).await.len();
        assert_eq!(kept, count, "{user}: who is missing has an inbox");
    }

    comet.signal("TERM");
    let ended = comet.wait(PATIENCE).await;
    assert!(ended.is_some_and(|status| status.success()), "it goes away: {ended:?}: {}", comet.log());
    comet.restart().expect("starts again");
    let mut client = LineClient::join(&lines, "lobby", "conn_1").await;
    kafka().produce_room(&topic, "lobby", "again").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(client.next().await, "4 again");
}

/// A client of the Go comet.
struct LineClient(BufReader<TcpStream>);

impl LineClient {
    async fn join(address: &str, room: &str, connection: &str) -> Self {
        let connected =
            eventually("the comet", PATIENCE, async || TcpStream::connect(address).await.ok()).await;
        let mut client = Self(BufReader::new(connected));
        let hello = format!("JOIN {room} {connection}\n");
        client.0.write_all(hello.as_bytes()).await.expect("is sent");
        assert_eq!(client.next().await, "joined");
        client
    }

    async fn next(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await;
        read.expect("a line in time").expect("a line");
        line.trim_end().to_owned()
    }
}

#[tokio::test]
async fn the_example_producer_prints_the_ids_of_what_it_sent() {
    let topic = kafka().topic("produce", 3).await;
    let room = ["room", "video_123", "number {number}", "--count", "3", "--op", "7", "--header", "from=test"];
    let printed = produce(&topic, &room).await;
    let records = kafka().read_all(&topic);
    let ids: Vec<String> = records.iter().map(|r| r.id(&topic)).collect();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..3], ids, "{printed}");
    let value = |n: usize| encode(&Audience::Room("video_123".into()), 7, format!("number {n}").as_bytes());
    for (n, record) in records.iter().enumerate() {
        assert_eq!(record.value, Some(value(n + 1)));
        assert_eq!(record.header("from").as_deref(), Some("test"));
    }

    let topic = kafka().topic("produce", 1).await;
    produce(&topic, &["keys", "k1", "k2", "--server", "s", "--", "body"]).await;
    produce(&topic, &["everyone", "body", "--speed", "9"]).await;
    let values: Vec<_> = kafka().read_all(&topic).into_iter().filter_map(|record| record.value).collect();
    let keys = Audience::Keys { server: Some("s".into()), keys: vec!["k1".into(), "k2".into()] };
    assert_eq!(values, [encode(&keys, 4, b"body"), encode(&Audience::Everyone { speed: 9 }, 4, b"body")]);
}

async fn produce(topic: &str, args: &[&str]) -> String {
    let mut all =
        vec!["--brokers".to_owned(), kafka().brokers().to_owned(), "--topic".to_owned(), topic.to_owned()];
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    let mut process = ChildProcess::start(&example("produce"), &all, folder("example")).expect("starts");
    let ended = process.wait(PATIENCE).await;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", process.log());
    process.log()
}
