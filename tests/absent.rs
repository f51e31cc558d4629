//! Absent users at scale: backlogs, limits, a Redis that refuses writes, several devices.

use halley::message::{Audience, encode};
use serde_json::json;

use crate::support::comet::{Dialect, FakeComet};
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, free_port, repository, resident_kib};

/// A topic with its dead-letter and notify topics, and the settings of a gateway.
async fn start_topic(name: &str, redis: &Redis) -> (String, Gateway) {
    let topic = kafka().topic(name, 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    kafka().create_topic(&format!("{topic}.offline"), 1).await;
    let settings = gateway(&topic).redis(redis);
    (topic, settings)
}

/// A room of users who are all offline.
async fn absent_room(redis: &Redis, room: &str, users: usize) {
    let member = |n: usize| (format!("conn_{n}"), format!("user_{n}"), "127.0.0.1:1".to_owned());
    redis.join_many(room, &(0..users).map(member).collect::<Vec<_>>()).await;
    for n in 0..users {
        redis.offline(&format!("user_{n}")).await;
    }
}

/// At the start, a gateway probes its permission to write once.
const PROBED: u64 = 1;

/// How often Redis has run a command.
async fn calls(redis: &Redis, command: &str) -> u64 {
    let mut info = redis::cmd("INFO");
    info.arg("commandstats");
    let text: String = redis.run(info).await;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap_or_default().parse().expect("a number"))
}

async fn messages(gateway: &RunningGateway, outcome: &str) -> Option<f64> {
    gateway.metric(&format!("halley_messages_total{{outcome=\"{outcome}\"}}")).await
}

fn bodies(comet: &FakeComet) -> Vec<String> {
    comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
}

#[tokio::test]
async fn a_backlog_for_absent_users_is_stored_once() {
    let redis = Redis::start().await;
    absent_room(&redis, "lobby", 200).await;
    let (topic, settings) = start_topic("absent-backlog", &redis).await;
    let body = "x".repeat(200);
    for _ in 0..300 {
        kafka().produce_room(&topic, "lobby", &body).await;
    }
    let gateway = settings.start().await;
    // It stays ready while it works: its own load is not an outage of Redis.
    let all = [(0, 300)].into_iter().collect();
    let settled = async || {
        let ready = gateway.get("/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.body);
        (kafka().committed(gateway.group(), &topic).await == all).then_some(())
    };
    eventually("everything to be stored", PATIENCE * 2, settled).await;
    assert_eq!(calls(&redis, "xadd").await, 60_000 + PROBED, "each entry is written once");
    assert_eq!(messages(&gateway, "stored").await, Some(300.0));
    assert_eq!(redis.stream("halley:inbox:user_7").await.len(), 300);
    let resident = resident_kib(gateway.pid());
    assert!(resident < 250 * 1024, "{resident} KiB");
}

#[tokio::test]
async fn policies_decide_about_many_recipients_in_parts() {
    let redis = Redis::start().await;
    absent_room(&redis, "stadium", 9_000).await;
    let (topic, settings) = start_topic("absent-many", &redis).await;
    let file = repository("plugins/dist/offline_rules.wasm");
    let rules = json!({ "rules": [{ "rooms": ["*"], "action": "store", "retention": "1h" }] });
    let plugin = Plugin::new("offline-rules", file).set("deadline", quoted("5s")).config(&rules);
    let gateway = settings.set("log", "level", quoted("debug")).plugin(plugin).start().await;
    kafka().produce_room(&topic, "stadium", "goal!").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(calls(&redis, "xadd").await, 9_000 + PROBED);
    let line = gateway.wait_for_log("message settled").await;
    assert!(
        line["decisions"].as_str().is_some_and(|text| text.contains("decided about 9000 of 9000")),
        "{line}"
    );
    assert_eq!((line["kind"].as_str(), line["offline"].as_u64()), (Some("ROOM"), Some(9_000)), "{line}");
}

#[tokio::test]
async fn notifications_of_a_backlog_are_written_once() {
    let redis = Redis::start().await;
    absent_room(&redis, "lobby", 150).await;
    let (topic, settings) = start_topic("absent-notify", &redis).await;
    for number in 0..20 {
        kafka().produce_room(&topic, "lobby", number.to_string()).await;
    }
    let gateway = settings.set("offline", "default", quoted("notify")).start().await;
    gateway.wait_until_settled(&topic).await;
    let notified = kafka().read_all(&format!("{topic}.offline"));
    let mut once: Vec<_> = notified.iter().map(|read| (read.key.clone(), read.value.clone())).collect();
    once.sort();
    once.dedup();
    assert_eq!((notified.len(), once.len()), (3_000, 3_000));
}

#[tokio::test]
async fn missed_messages_are_kept_in_order() {
    let redis = Redis::start().await;
    let (topic, settings) = start_topic("absent-order", &redis).await;
    let file = repository("plugins/dist/offline_rules.wasm");
    let rules = json!({ "rules": [{ "operations": [9], "action": "notify", "channel": "sms" }] });
    let plugin = Plugin::new("offline-rules", file).set("deadline", quoted("5s")).config(&rules);
    let users: Vec<_> = (0..20).map(|n| format!("user_{n}")).collect();
    for number in 0..600_usize {
        // Some are stored and some notified, some for one user and some for many.
        let (operation, many) = (if number % 3 == 0 { 9 } else { 4 }, number % 2 * 19);
        let keys: Vec<_> = ["user_0"].into_iter().chain(users[1..=many].iter().map(String::as_str)).collect();
        let keys = Audience::Keys { keys: keys.iter().map(|key| (*key).into()).collect(), server: None };
        kafka().produce(&topic, keys, operation, number.to_string()).await;
    }
    let gateway = settings.plugin(plugin).start().await;
    gateway.wait_until_settled(&topic).await;
    let body = |fields: Vec<(String, Vec<u8>)>| {
        let field = fields.into_iter().find(|(name, _)| name == "body").expect("a body");
        String::from_utf8(field.1).expect("text")
    };
    let kept: Vec<_> = redis.stream("halley:inbox:user_0").await.into_iter().map(body).collect();
    let expected = |notified: bool| (0..600).filter(move |n| (n % 3 == 0) == notified).map(|n| n.to_string());
    assert_eq!(kept, expected(false).collect::<Vec<_>>());
    let notified = kafka().read_all(&format!("{topic}.offline"));
    let of_user = notified.iter().filter(|read| read.key.as_deref() == Some(b"user_0"));
    let notified: Vec<_> = of_user
        .map(|read| String::from_utf8_lossy(read.value.as_deref().unwrap_or_default()).into_owned())
        .collect();
    assert_eq!(notified, expected(true).collect::<Vec<_>>());
}

#[tokio::test]
async fn online_users_come_first_while_redis_refuses_to_store() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    absent_room(&redis, "lobby", 3).await;
    redis.join("lobby", "conn_on", "user_on", comet.address()).await;
    let (topic, settings) = start_topic("absent-full", &redis).await;
    let settings =
        settings.set("offline", "store_timeout", quoted("7s")).set("delivery", "max_in_flight", 40);
    let gateway = settings.start().await;
    let memory = async |bytes: &str| {
        let mut limit = redis::cmd("CONFIG");
        limit.arg("SET").arg("maxmemory").arg(bytes);
        redis.run::<()>(limit).await;
    };
    memory("1").await;
    for number in 0..60 {
        kafka().produce_room(&topic, "lobby", number.to_string()).await;
    }
    let expected: Vec<_> = (0..60).map(|number| number.to_string()).collect();

    // Below the in-flight limit, online users do not wait for what cannot be stored.
    eventually_eq("what was heard meanwhile", expected[..40].to_vec(), async || bodies(&comet)).await;
    let held = async || {
        let ready = gateway.get("/readyz").await;
        let told = ready.body.contains("inbox: holding") && ready.body.contains("maxmemory");
        (ready.status == 503 && told).then_some(())
    };
    eventually("/readyz to say what is held, and what helps", PATIENCE, held).await;
    assert_eq!(gateway.metric("halley_stalled_partitions{stage=\"inbox\"}").await, Some(1.0));
    let stalls = gateway.get("/v1/stalls").await.json();
    assert_eq!((&stalls["stalls"][0]["stage"], &stalls["stalls"][0]["offset"]), (&json!("inbox"), &json!(0)));

    // After that time, absent users get a dead letter, and the others continue.
    gateway.wait_until_settled(&topic).await;
    assert_eq!(bodies(&comet), expected, "all of them, in order, once");
    let letters = kafka().read_all(&format!("{topic}.dead-letter"));
    assert_eq!(letters.len(), 60);
    assert!(letters.iter().all(|letter| letter.header("halley-stage").as_deref() == Some("offline")));
    let reason = letters[0].header("halley-reason").unwrap_or_default();
    assert!(reason.contains("not kept for 3 of 3 absent recipients") && reason.contains("OOM"), "{reason}");
    assert_eq!(gateway.metric("halley_dead_letters_total{stage=\"offline\"}").await, Some(60.0));

    memory("0").await;
    kafka().produce_room(&topic, "lobby", "after").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(redis.stream("halley:inbox:user_0").await.len(), 1, "storing resumes");
    gateway.wait_until_ready().await;
}

#[tokio::test]
async fn a_person_with_two_devices_is_one_recipient() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let dead = format!("127.0.0.1:{}", free_port());
    // One user who is reached in the browser, one with both devices at a dead comet, one offline on
    // two devices.
    redis.join("lobby", "ann-phone", "ann", &dead).await;
    redis.join("lobby", "ann-browser", "ann", comet.address()).await;
    for (user, device) in [("bob", "phone"), ("bob", "tablet"), ("cid", "phone"), ("cid", "tablet")] {
        redis.join("lobby", &format!("{user}-{device}"), user, &dead).await;
    }
    redis.offline("cid").await;
    let (topic, settings) = start_topic("absent-devices", &redis).await;
    let settings = settings.set("delivery", "request_timeout", quoted("300ms")).set(
        "delivery",
        "delivery_timeout",
        quoted("500ms"),
    );
    let gateway = settings.set("log", "level", quoted("debug")).start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;

    assert_eq!(bodies(&comet), ["hello"]);
    assert_eq!(redis.keys("halley:inbox:*").await, ["halley:inbox:bob", "halley:inbox:cid"]);
    for user in ["bob", "cid"] {
        assert_eq!(redis.stream(&format!("halley:inbox:{user}")).await.len(), 1, "{user}");
    }
    assert_eq!(messages(&gateway, "partly-delivered").await, Some(1.0));
    let line = gateway.wait_for_log("message settled").await;
    let sent_to = format!("[\"{}: 1\"]", comet.address());
    assert_eq!(
        (line["sent_to"].as_str(), line["reached"].as_str()),
        (Some(&*sent_to), Some("[\"ann\"]")),
        "{line}"
    );
}

#[tokio::test]
async fn only_users_have_inboxes() {
    let redis = Redis::start().await;
    let comet = FakeComet::start_speaking(Dialect::Goim).await;
    let (topic, settings) = start_topic("absent-goim", &redis).await;
    let goim = settings.set("comets", "dialect", quoted("goim")).start().await;
    kafka().produce_keys(&topic, None, &["gone-1", "gone-2"], "hello").await;
    goim.wait_until_settled(&topic).await;
    assert_eq!(redis.keys("halley:inbox:*").await, [""; 0], "goim's keys are connections");
    assert_eq!(messages(&goim, "nobody").await, Some(1.0));
    drop(comet);

    let (topic, settings) = start_topic("absent-users", &redis).await;
    let users = settings.start().await;
    kafka().produce_keys(&topic, None, &["user_1", "user_2"], "hello").await;
    users.wait_until_settled(&topic).await;
    assert_eq!(redis.keys("halley:inbox:*").await, ["halley:inbox:user_1", "halley:inbox:user_2"]);
}

#[tokio::test]
async fn an_oversized_message_is_one_dead_letter() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_on", "user_on", comet.address()).await;
    let (topic, settings) = start_topic("absent-large", &redis).await;
    let settings = settings.set("offline", "max_body", quoted("1KiB")).set(
        "offline",
        "max_fan_out_bytes",
        quoted("10KiB"),
    );
    let gateway = settings.start().await;
    kafka().produce_keys(&topic, None, &["user_on", "away-1", "away-2"], "x".repeat(1_025)).await;
    let many: Vec<_> = (0..50).map(|n| format!("away-{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).chain(["user_on"]).collect();
    kafka().produce_keys(&topic, None, &many, "hello").await;
    kafka().produce_keys(&topic, None, &["away-1"], "small").await;
    // Names count as well as bodies.
    let long = format!("away-{}", "x".repeat(11 * 1024));
    kafka().produce_keys(&topic, None, &[&long], "hello").await;
    gateway.wait_until_settled(&topic).await;

    assert_eq!(comet.deliveries().len(), 2, "online users get it nevertheless");
    let letters = kafka().read_all(&format!("{topic}.dead-letter"));
    let reasons: Vec<_> =
        letters.iter().map(|letter| letter.header("halley-reason").unwrap_or_default()).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[2].contains("1 of 1") && reasons[2].contains("max_fan_out_bytes"), "{reasons:?}");
    assert!(reasons[0].contains("2 of 2") && reasons[0].contains("`[offline] max_body`"), "{reasons:?}");
    assert!(reasons[1].contains("50 of 50") && reasons[1].contains("max_fan_out_bytes"), "{reasons:?}");
    assert_eq!(redis.keys("halley:inbox:*").await, ["halley:inbox:away-1"]);

    // If nothing is stored, nothing is too large to store.
    let (topic, settings) = start_topic("absent-dropped", &redis).await;
    let settings = settings.set("offline", "max_body", quoted("1KiB"));
    let gateway = settings.set("offline", "default", quoted("drop")).start().await;
    kafka().produce_keys(&topic, None, &["user_on", "away-1"], "x".repeat(1_025)).await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 3);
    assert_eq!(kafka().read_all(&format!("{topic}.dead-letter")).len(), 0);
}

#[tokio::test]
async fn undecodable_records_are_logged_at_info() {
    let redis = Redis::start().await;
    let (topic, settings) = start_topic("absent-decode", &redis).await;
    let gateway = settings.start().await;
    assert_eq!(gateway.metric("halley_dead_letters_total{stage=\"decode\"}").await, Some(0.0));
    for _ in 0..20 {
        kafka().produce_record(&topic, None, Some(b"\xff\xff\xff"), &[]).await;
    }
    let empty = encode(&Audience::Room("nobody-here".into()), 4, b"hello");
    kafka().produce_record(&topic, None, Some(&empty), &[]).await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(gateway.metric("halley_dead_letters_total{stage=\"decode\"}").await, Some(20.0));
    assert_eq!(messages(&gateway, "nobody").await, Some(1.0), "an empty room");
    let told = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["message"].as_str().is_some_and(|text| text.contains("is not a message"))
    };
    assert_eq!(gateway.log_lines().iter().filter(|line| told(line)).count(), 1, "one line, not twenty");
}
