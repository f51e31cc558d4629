//! Who receives a message: rooms, users, everyone, absent users; in both dialects.

use std::collections::BTreeMap;

use halley::message::MESSAGE_ID;
use tonic::Code;

use crate::support::comet::{Behaviour, Dialect, FakeComet, To};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{eventually, eventually_eq};

fn room(name: &str) -> To {
    To::Room(name.to_owned())
}

fn keys(keys: &[&str]) -> To {
    To::Keys(keys.iter().map(|key| (*key).to_owned()).collect())
}

#[tokio::test]
async fn a_room_takes_one_call_for_each_comet() {
    let (redis, a, b) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("video_123", "conn_1", "user_1", a.address()).await;
    redis.join("video_123", "conn_2", "user_2", a.address()).await;
    redis.join("video_123", "conn_3", "user_3", b.address()).await;
    let topic = kafka().topic("video", 1).await;
    let gateway = gateway(&topic).redis(&redis).set("log", "level", quoted("debug")).start().await;

    let id = kafka().produce_room(&topic, "video_123", "hello").await;
    gateway.wait_until_settled(&topic).await;

    for comet in [&a, &b] {
        let calls = comet.calls();
        assert_eq!(calls.len(), 1, "exactly one call");
        assert_eq!(calls[0].to, room("video_123"));
        let proto = calls[0].proto.as_ref().expect("a Proto");
        assert_eq!((proto.ver, proto.op, proto.seq, &proto.body[..]), (1, 4, 0, &b"hello"[..]));
        assert_eq!(calls[0].messages, std::slice::from_ref(&id), "{MESSAGE_ID}");
    }
    let line = gateway.wait_for_log("message settled").await;
    let story = |key: &str| line[key].clone();
    assert_eq!(
        (story("sent"), story("failed"), story("comets"), story("connections")),
        (3.into(), 0.into(), 2.into(), 3.into()),
        "{line}"
    );
    for comet in [&a, &b] {
        let series = format!("job_dispatch_success_total{{comet=\"{}\"}}", comet.address());
        assert_eq!(gateway.metric(&series).await, Some(1.0));
    }
}

#[tokio::test]
async fn push_reaches_connections_users_and_named_servers() {
    let (redis, a, b) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", a.address()).await;
    redis.join("lobby", "conn_2", "user_2", a.address()).await;
    redis.join("lobby", "conn_3", "user_3", b.address()).await;
    let topic = kafka().topic("push", 1).await;
    let servers = format!("{{ edge-7 = {} }}", quoted(b.address().as_str()));
    let gateway = gateway(&topic).redis(&redis).set("comets", "addresses", servers).start().await;

    kafka().produce_keys(&topic, None, &["conn_1", "user_2", "user_3"], "by key").await;
    kafka().produce_keys(&topic, Some("edge-7"), &["k1", "k2"], "by name").await;
    kafka().produce_keys(&topic, Some(a.address().as_str()), &["k3"], "by address").await;
    gateway.wait_until_settled(&topic).await;

    let of = |comet: &FakeComet| {
        let mut calls: Vec<_> = comet.deliveries().into_iter().map(|(to, _, body)| (body, to)).collect();
        calls.sort_by(|a, b| a.0.cmp(&b.0));
        calls
    };
    assert_eq!(
        of(&a),
        [("by address".into(), keys(&["k3"])), ("by key".into(), keys(&["conn_1", "conn_2"]))]
    );
    assert_eq!(of(&b), [("by key".into(), keys(&["conn_3"])), ("by name".into(), keys(&["k1", "k2"]))]);
}

#[tokio::test]
async fn broadcast_reaches_every_comet_and_divides_its_speed() {
    let (redis, named, learned) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", learned.address()).await;
    let topic = kafka().topic("broadcast", 1).await;
    let gateway = gateway(&topic).redis(&redis).node(&named).start().await;

    // A comet that is not configured becomes known with the first message to it.
    kafka().produce_room(&topic, "lobby", "first").await;
    learned.wait_for(1).await;
    kafka().produce_everyone(&topic, 100, "to all").await;
    gateway.wait_until_settled(&topic).await;

    let everyone = (To::Everyone { speed: 50 }, 4, "to all".to_owned());
    assert_eq!(named.deliveries(), std::slice::from_ref(&everyone));
    assert_eq!(learned.deliveries(), [(room("lobby"), 4, "first".to_owned()), everyone]);
}

#[tokio::test]
async fn a_broadcast_without_comets_becomes_a_dead_letter() {
    let topic = kafka().topic("nobody", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let gateway = gateway(&topic).start().await;
    kafka().produce_everyone(&topic, 0, "anybody there?").await;
    gateway.wait_until_settled(&topic).await;
    let letters = kafka().read_all(&dead_letters);
    assert!(letters[0].header("halley-reason").is_some_and(|r| r.contains("[comets] nodes")), "{letters:?}");
}

#[tokio::test]
async fn a_room_over_ten_thousand_connections_is_eight_calls() {
    let redis = Redis::start().await;
    let mut comets = Vec::new();
    for _ in 0..8 {
        comets.push(FakeComet::start().await);
    }
    let member = |n: usize| (format!("conn_{n}"), format!("user_{n}"), comets[n % 8].address().to_string());
    let members: Vec<_> = (0..12_000).map(member).collect();
    redis.join_many("stadium", &members).await;
    let topic = kafka().topic("stadium", 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;

    kafka().produce_room(&topic, "stadium", "goal!").await;
    gateway.wait_until_settled(&topic).await;

    for comet in &comets {
        assert_eq!(comet.deliveries(), [(room("stadium"), 4, "goal!".to_owned())]);
    }
    let delivered = r#"halley_recipients_total{outcome="delivered"}"#;
    assert_eq!(gateway.metric(delivered).await, Some(12_000.0));
    let route = gateway.get("/v1/routes/stadium").await.json();
    assert_eq!((&route["connections"], route["shares"].as_array().map(Vec::len)), (&12_000.into(), Some(8)));
}

#[tokio::test]
async fn stale_members_are_skipped_and_counted() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    redis.join("lobby", "conn_2", "user_2", comet.address()).await;
    redis.forget("conn_2").await;
    let topic = kafka().topic("stale", 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;

    kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;

    comet.wait_for_deliveries(&[(room("lobby"), 4, "hello")]).await;
    assert_eq!(gateway.metric("halley_directory_stale_members_total").await, Some(1.0));
    assert_eq!(gateway.get("/v1/routes/lobby").await.json()["stale"], 1);
}

#[tokio::test]
async fn an_absent_user_gets_the_message_in_the_inbox() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    redis.join("lobby", "conn_2", "user_2", comet.address()).await;
    redis.offline("user_2").await;
    let topic = kafka().topic("away", 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;

    let id = kafka().produce_room(&topic, "lobby", "hello").await;
    kafka().produce_keys(&topic, None, &["user_9"], "are you there?").await;
    gateway.wait_until_settled(&topic).await;

    comet.wait_for_deliveries(&[(room("lobby"), 4, "hello")]).await;
    let kept = redis.stream("halley:inbox:user_2").await;
    let fields: BTreeMap<_, _> = kept[0].iter().cloned().collect();
    assert_eq!(
        (kept.len(), fields["id"].as_slice(), fields["body"].as_slice()),
        (1, id.as_bytes(), &b"hello"[..])
    );
    assert_eq!(redis.stream("halley:inbox:user_9").await.len(), 1, "an unknown key is an absent user");
    assert_eq!(redis.stream("halley:inbox:user_1").await.len(), 0);
}

#[tokio::test]
async fn without_checking_everyone_with_a_connection_is_online() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    redis.offline("user_1").await;
    let topic = kafka().topic("unchecked", 1).await;
    let gateway = gateway(&topic).redis(&redis).set("routing", "check_online", false).start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries(), [(room("lobby"), 4, "hello".to_owned())]);
}

#[tokio::test]
async fn the_goim_dialect_frames_what_goim_comets_expect() {
    let (redis, comet) = (Redis::start().await, FakeComet::start_speaking(Dialect::Goim).await);
    redis.join("live://1", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("goim", 1).await;
    let gateway =
        gateway(&topic).redis(&redis).node(&comet).set("comets", "dialect", quoted("goim")).start().await;

    let mut ids = vec![kafka().produce_room(&topic, "live://1", "in a room").await];
    ids.push(kafka().produce_keys(&topic, None, &["conn_1"], "to one").await);
    ids.push(kafka().produce_everyone(&topic, 0, "to all").await);
    gateway.wait_until_settled(&topic).await;

    let calls = comet.calls();
    assert!(calls.iter().all(|call| call.proto.as_ref().is_some_and(|proto| proto.op == 9)), "{calls:#?}");
    let mut deliveries = comet.deliveries();
    deliveries.sort_by(|a, b| a.2.cmp(&b.2));
    let expected = [
        (room("live://1"), 4, "in a room".to_owned()),
        (To::Everyone { speed: 0 }, 4, "to all".to_owned()),
        (keys(&["conn_1"]), 4, "to one".to_owned()),
    ];
    assert_eq!(deliveries, expected);
    let mut seen: Vec<_> = calls.into_iter().flat_map(|call| call.messages).collect();
    seen.sort();
    ids.sort();
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn goim_without_room_sets_calls_every_comet() {
    let comets =
        [FakeComet::start_speaking(Dialect::Goim).await, FakeComet::start_speaking(Dialect::Goim).await];
    let topic = kafka().topic("every-comet", 1).await;
    let gateway = gateway(&topic)
        .node(&comets[0])
        .node(&comets[1])
        .set("comets", "dialect", quoted("goim"))
        .set("routing", "rooms", quoted("every-comet"))
        .start()
        .await;
    kafka().produce_room(&topic, "live://1", "hello").await;
    gateway.wait_until_settled(&topic).await;
    for comet in &comets {
        assert_eq!(comet.deliveries(), [(room("live://1"), 4, "hello".to_owned())]);
    }
}

#[tokio::test]
async fn one_room_s_messages_reach_a_slow_comet_in_order() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("order", 4).await;
    let gateway = gateway(&topic).redis(&redis).start().await;
    comet.fail_next(3, Code::Unavailable);
    let mut sent = Vec::new();
    for number in 0..300 {
        sent.push(number.to_string());
        kafka().produce_room(&topic, "lobby", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    let mut bodies: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    bodies.dedup();
    assert_eq!(bodies, sent, "failed calls were repeated in place");
}

#[tokio::test]
async fn invalid_records_become_dead_letters_and_block_nothing() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("poison", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;

    let garbage = kafka().produce_record(&topic, Some("k"), Some(b"\xff\xff"), &[("trace", "7")]).await;
    kafka().produce_record(&topic, None, None, &[]).await;
    kafka().produce_record(&topic, None, Some(b"\x08\x01"), &[]).await;
    kafka().produce_room(&topic, "lobby", "after the poison").await;
    gateway.wait_until_settled(&topic).await;

    assert_eq!(comet.deliveries(), [(room("lobby"), 4, "after the poison".to_owned())]);
    let letters = kafka().read_all(&dead_letters);
    assert_eq!(letters.len(), 3, "{letters:#?}");
    let first = letters.iter().find(|l| l.header(MESSAGE_ID) == Some(garbage.clone())).expect("the garbage");
    assert_eq!((first.key.as_deref(), first.value.as_deref()), (Some(&b"k"[..]), Some(&b"\xff\xff"[..])));
    let header = |name: &str| first.header(name).unwrap_or_default();
    assert_eq!((header("trace"), header("halley-stage")), ("7".into(), "decode".into()));
    assert!(header("halley-reason").contains("not a PushMsg"), "{first:?}");
    assert_eq!(header("halley-origin-topic"), topic);
}

#[tokio::test]
async fn a_permanent_rejection_becomes_a_dead_letter() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("refused", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let gateway = gateway(&topic).redis(&redis).start().await;
    comet.behave(Behaviour::Fail(Code::InvalidArgument));
    kafka().produce_room(&topic, "lobby", "malformed").await;
    gateway.wait_until_settled(&topic).await;

    assert_eq!(comet.calls().len(), 1, "a retry cannot fix it");
    let letters = kafka().read_all(&dead_letters);
    assert_eq!(letters[0].header("halley-stage").as_deref(), Some("deliver"));
    assert_eq!(letters[0].header("halley-failed-comets"), Some(comet.address().to_string()));
}

#[tokio::test]
async fn a_dead_comet_s_users_get_inbox_entries_others_live_ones() {
    let (redis, alive, dead) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", alive.address()).await;
    redis.join("lobby", "conn_2", "user_2", dead.address()).await;
    dead.behave(Behaviour::Hang);
    let topic = kafka().topic("dead-comet", 1).await;
    let gateway = gateway(&topic)
        .redis(&redis)
        .set("delivery", "request_timeout", quoted("300ms"))
        .set("delivery", "delivery_timeout", quoted("1s"))
        .start()
        .await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    alive.wait_for_deliveries(&[(room("lobby"), 4, "hello")]).await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(redis.stream("halley:inbox:user_2").await.len(), 1);
}

#[tokio::test]
async fn a_comet_that_comes_up_late_gets_the_message() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    comet.stop().await;
    let topic = kafka().topic("late-comet", 1).await;
    let gateway =
        gateway(&topic).redis(&redis).set("delivery", "delivery_timeout", quoted("60s")).start().await;
    kafka().produce_room(&topic, "lobby", "patience").await;
    let retries = format!("halley_comet_retries_total{{comet=\"{}\"}}", comet.address());
    let tried = async || gateway.metric(&retries).await.filter(|tries| *tries >= 1.0);
    eventually("a first try", crate::support::PATIENCE, tried).await;
    comet.restart().await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries(), [(room("lobby"), 4, "patience".to_owned())]);
}

#[tokio::test]
async fn records_wait_for_a_redis_that_comes_up_late() {
    let (mut redis, comet) = (Redis::not_started(), FakeComet::start().await);
    let topic = kafka().topic("late-redis", 1).await;
    let gateway = gateway(&topic).redis(&redis).start_unready().await;
    kafka().produce_room(&topic, "lobby", "patience").await;
    let reasons = async || {
        let answer = gateway.get("/readyz").await;
        (answer.status == 503 && answer.body.contains("redis")).then_some(())
    };
    eventually("/readyz to name redis", crate::support::PATIENCE, reasons).await;

    redis.restart().await;
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    gateway.wait_until_ready().await;
    // The room may have been looked up before anyone joined; the next message is certain.
    kafka().produce_room(&topic, "lobby", "at last").await;
    gateway.wait_until_settled(&topic).await;
    let bodies: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies.last().map(String::as_str), Some("at last"), "{bodies:?}");
}

#[tokio::test]
async fn two_gateways_share_a_group() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let rooms: Vec<String> = (0..40).map(|n| format!("room-{n}")).collect();
    for room in &rooms {
        redis.join(room, &format!("conn-{room}"), &format!("user-{room}"), comet.address()).await;
    }
    let topic = kafka().topic("shared", 4).await;
    let first = gateway(&topic).redis(&redis).start().await;
    let second = gateway(&topic).redis(&redis).group(first.group()).start().await;
    let assigned = async |gateway: &crate::support::gateway::RunningGateway| {
        gateway.metric("halley_partitions_assigned").await.unwrap_or_default()
    };
    eventually_eq("partitions of each", (2.0, 2.0), async || {
        (assigned(&first).await, assigned(&second).await)
    })
    .await;

    for room in &rooms {
        kafka().produce_room(&topic, room, format!("to {room}")).await;
    }
    first.wait_until_settled(&topic).await;
    let mut bodies: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    bodies.sort();
    let mut expected: Vec<_> = rooms.iter().map(|room| format!("to {room}")).collect();
    expected.sort();
    assert_eq!(bodies, expected, "every message once");

    // One leaves: the other takes over its partitions, and nothing is delivered twice.
    assert!(second.sigterm().await.success());
    comet.forget();
    for room in &rooms {
        kafka().produce_room(&topic, room, format!("to {room}")).await;
    }
    first.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), rooms.len());
}
