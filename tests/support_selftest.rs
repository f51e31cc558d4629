//! Tests of the test support: Kafka, Redis and the fake comets behave as the other stories assume.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use halley::comets::proto::{chatroom, goim};
use halley::message::{Audience, encode};
use tonic::Code;

use crate::support::call;
use crate::support::child_process::ChildProcess;
use crate::support::comet::{Behaviour, Dialect, FakeComet, To};
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::{Kafka, kafka};
use crate::support::redis::Redis;
use crate::support::{eventually, folder, unique};

#[tokio::test]
async fn kafka_returns_what_was_produced() {
    let topic = kafka().topic("round-trip", 4).await;
    let id = kafka().produce_room(&topic, "video_123", "hello").await;
    let headers = [("first", "1"), ("first", "2")];
    let bare = kafka().produce_record(&topic, Some("video_123"), None, &headers).await;

    let records = kafka().read_all(&topic);
    let ids: Vec<String> = records.iter().map(|r| r.id(&topic)).collect();
    assert_eq!(ids, [id, bare], "one room's records share a partition, in order");
    let value = encode(&Audience::Room("video_123".into()), 4, b"hello");
    assert_eq!((records[0].key.clone(), records[0].value.clone()), (Some("video_123".into()), Some(value)));
    assert_eq!(records[1].value, None);
    let text = |name: &'static str, value: &'static str| {
        (Bytes::from(name), Some(Bytes::from_static(value.as_bytes())))
    };
    assert_eq!(records[1].headers, [text("first", "1"), text("first", "2")]);
}

#[tokio::test]
async fn committed_offsets_can_be_seen() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};

    let topic = kafka().topic("committed", 1).await;
    let group = unique("group");
    for body in ["a", "b", "c"] {
        kafka().produce_everyone(&topic, 0, body).await;
    }
    assert_eq!(kafka().committed(&group, &topic).await, BTreeMap::new());
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(3)).expect("a valid offset");
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", kafka().brokers()).set("group.id", &group);
    let consumer: BaseConsumer = config.create().expect("a consumer");
    consumer.commit(&list, CommitMode::Sync).expect("commits");
    assert_eq!(kafka().committed(&group, &topic).await, BTreeMap::from([(0, 3)]));
    assert_eq!(kafka().ends(&topic), BTreeMap::from([(0, 3)]));
}

#[tokio::test]
async fn an_own_kafka_keeps_its_data_across_a_crash() {
    let Some(own) = Kafka::own().await else { return };
    let topic = own.topic("own", 2).await;
    for n in 0..10 {
        own.produce_room(&topic, &format!("room_{n}"), n.to_string()).await;
    }
    own.stop().await;
    // Records produced meanwhile wait.
    let produce = async {
        for n in 10..20 {
            own.produce_room(&topic, &format!("room_{n}"), n.to_string()).await;
        }
    };
    tokio::join!(produce, own.restart());
    let mut keys: Vec<_> = own.read_all(&topic).into_iter().map(|record| record.key).collect();
    keys.sort();
    let mut wanted: Vec<_> = (0..20).map(|n| Some(Bytes::from(format!("room_{n}")))).collect();
    wanted.sort();
    assert_eq!(keys, wanted);
    assert_eq!(own.ends(&topic).values().sum::<i64>(), 20);
}

#[tokio::test]
async fn a_gateway_reads_from_an_own_kafka_through_a_proxy() {
    let Some((own, proxy)) = Kafka::own_behind_proxy(1).await else { return };
    let comet = FakeComet::start().await;
    let topic = own.topic("detour", 1).await;
    let settings = gateway(&topic).kafka(&own).node(&comet).set("kafka", "brokers", quoted(&proxy.address()));
    let gateway = settings.start().await;
    own.produce_everyone(&topic, 0, "one").await;
    gateway.wait_until_settled(&topic).await;
    let before = proxy.connections();
    assert!(before > 0, "it bypasses the proxy");

    proxy.cut();
    own.produce_everyone(&topic, 0, "two").await;
    gateway.wait_until_settled(&topic).await;
    assert!(proxy.connections() > before, "it bypasses the proxy");
    own.restart().await;
    own.produce_everyone(&topic, 0, "three").await;
    gateway.wait_until_settled(&topic).await;
    let bodies: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies, ["one", "two", "three"]);
}

#[tokio::test]
async fn redis_holds_what_comets_write() {
    let mut redis = Redis::start().await;
    redis.join("video_123", "c1", "u1", "localhost:50051").await;
    redis.join("video_123", "c2", "u2", "localhost:50052").await;
    redis.leave("video_123", "c2").await;
    redis.offline("u2").await;

    let keys = ["connection:info:c1", "room:connections:video_123", "user:online:u1"];
    assert_eq!(redis.keys("*").await, keys);
    let info: BTreeMap<String, String> = redis.run(redis::Cmd::hgetall("connection:info:c1")).await;
    let info: Vec<(&str, &str)> =
        info.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
    assert_eq!(info, [("comet_id", "localhost:50051"), ("room_id", "video_123"), ("user_id", "u1")]);
    let left: i64 = redis.run(redis::Cmd::ttl("user:online:u1")).await;
    assert!((290..=300).contains(&left), "{left} s");

    if redis.can_stop("redis_holds_what_comets_write") {
        redis.restart().await;
        assert_eq!(redis.keys("*").await, [""; 0], "a server that was killed starts empty");
    }
}

#[tokio::test]
async fn a_chatroom_comet_records_its_calls() {
    let comet = FakeComet::start().await;
    let room = chatroom::BroadcastRoomReq { room_id: "video_123".into(), proto: Some(proto(5, "hello")) };
    call(comet.address(), "/ChatRoom.Comet.Comet/BroadcastRoom", room, &["push/0/1"]).await.expect("OK");
    let keys = chatroom::PushMsgReq { keys: vec!["c1".into()], proto: Some(proto(6, "you")), proto_op: 6 };
    call(comet.address(), "/ChatRoom.Comet.Comet/PushMsg", keys, &["push/0/2"]).await.expect("OK");
    let everyone = chatroom::BroadcastReq { proto_op: 7, proto: Some(proto(7, "all")), speed: 3 };
    call(comet.address(), "/ChatRoom.Comet.Comet/Broadcast", everyone, &["push/0/3"]).await.expect("OK");

    let calls = comet.wait_for(3).await;
    let seen: Vec<_> = calls.iter().map(|call| (call.proto_op, call.messages.join(" "))).collect();
    assert_eq!(seen, [(0, "push/0/1".to_owned()), (6, "push/0/2".to_owned()), (7, "push/0/3".to_owned())]);
    let wanted = [
        (To::Room("video_123".into()), 5, "hello"),
        (To::Keys(vec!["c1".into()]), 6, "you"),
        (To::Everyone { speed: 3 }, 7, "all"),
    ];
    comet.wait_for_deliveries(&wanted).await;
}

#[tokio::test]
async fn a_goim_comet_reads_the_frames_of_a_call() {
    let comet = FakeComet::start_speaking(Dialect::Goim).await;
    // Two handwritten frames: op 5 "hi", op 6 "yo!".
    let body = b"\0\0\0\x12\0\x10\0\x01\0\0\0\x05\0\0\0\0hi\0\0\0\x13\0\x10\0\x01\0\0\0\x06\0\0\0\0yo!";
    let proto = goim::Proto { ver: 1, op: 9, seq: 0, body: Bytes::from_static(body) };
    let room = goim::BroadcastRoomReq { room_id: "live://1".into(), proto: Some(proto) };
    call(comet.address(), "/goim.comet.Comet/BroadcastRoom", room, &["push/0/1", "push/0/2"])
        .await
        .expect("OK");

    let calls = comet.wait_for(1).await;
    assert_eq!(calls[0].messages, ["push/0/1", "push/0/2"]);
    let to = To::Room("live://1".into());
    comet.wait_for_deliveries(&[(to.clone(), 5, "hi"), (to, 6, "yo!")]).await;
}

#[tokio::test]
async fn a_comet_fails_hangs_crashes_and_restarts() {
    let comet = FakeComet::start().await;
    let path = "/ChatRoom.Comet.Comet/Rooms";
    comet.fail_next(1, Code::Unavailable);
    let refused = call(comet.address(), path, chatroom::RoomsReq {}, &[]).await.expect_err("fails");
    assert_eq!(refused.code(), Code::Unavailable);
    call(comet.address(), path, chatroom::RoomsReq {}, &[]).await.expect("OK again");

    comet.behave(Behaviour::Hang);
    let hanging = call(comet.address(), path, chatroom::RoomsReq {}, &[]);
    let crash = async {
        comet.wait_for(3).await;
        comet.stop().await;
    };
    let (cut, ()) = tokio::join!(hanging, crash);
    cut.expect_err("the connection was cut");
    call(comet.address(), path, chatroom::RoomsReq {}, &[]).await.expect_err("nobody listens");

    comet.behave(Behaviour::Ok);
    comet.restart().await;
    call(comet.address(), path, chatroom::RoomsReq {}, &[]).await.expect("back on the same port");
    assert_eq!(comet.calls().len(), 4);
}

#[tokio::test]
async fn a_child_process_ends_with_its_handle_and_directory() {
    let child_process = ChildProcess::start("sleep", &["1000".to_owned()], folder("leash")).expect("starts");
    let place = child_process.folder().to_owned();
    let pid = child_process.pid();
    assert!(place.exists());
    drop(child_process);
    let gone = format!("process {pid} and {}", place.display());
    eventually(gone, Duration::from_secs(10), async || {
        (!place.exists() && !std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_child_process_restarts_in_its_directory() {
    let script = ["-c", "echo started; exec sleep 1000"].map(str::to_owned);
    let mut child_process = ChildProcess::start("sh", &script, folder("leash")).expect("starts");
    let place = child_process.folder().to_owned();
    let started = async |child_process: &ChildProcess, times: usize| {
        let what = format!("start {times}");
        eventually(what, Duration::from_secs(10), async || {
            (child_process.log().lines().count() == times).then_some(())
        })
        .await;
    };
    started(&child_process, 1).await;
    let first = child_process.pid();
    child_process.restart().expect("starts again");
    started(&child_process, 2).await;
    assert_ne!(child_process.pid(), first);
    assert!(child_process.ended().is_none());

    child_process.kill();
    child_process.restart().expect("starts again");
    started(&child_process, 3).await;
    drop(child_process);
    eventually("the folder's end", Duration::from_secs(10), async || (!place.exists()).then_some(())).await;
}

#[tokio::test]
async fn the_gateways_configuration_is_toml() {
    let comet = FakeComet::start().await;
    let plugin = Plugin::new("keyword-filter", "a \"b\".wasm")
        .set("on_error", quoted("drop"))
        .config(&serde_json::json!({ "words": ["spam", "eggs"], "limits": { "each": 3 }, "no": null }));
    let text =
        gateway("push").node(&comet).set("delivery", "request_timeout", quoted("1s")).plugin(plugin).toml();

    let read: serde_json::Value = toml::from_str(&text).expect("TOML");
    let wanted = serde_json::json!([{
        "name": "keyword-filter",
        "path": "a \"b\".wasm",
        "on_error": "drop",
        "config": { "words": ["spam", "eggs"], "limits": { "each": 3 } },
    }]);
    assert_eq!(read["plugin"], wanted);
    assert_eq!(read["comets"]["nodes"], serde_json::json!([comet.address().as_str()]));
    assert_eq!(read["delivery"]["request_timeout"], "1s");
}

fn proto(op: i32, body: &'static str) -> chatroom::Proto {
    chatroom::Proto { ver: 1, op, seq: 0, body: Bytes::from_static(body.as_bytes()) }
}
