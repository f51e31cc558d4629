//! Known comets: one comet in many spellings, which comets get BROADCASTs, comets that move, and
//! comets that come and go while the gateway runs.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::comet::{Dialect, FakeComet, To};
use crate::support::discovery::FakeDiscovery;
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, repository};

fn to_all(body: &str) -> (To, i32, String) {
    (To::Everyone { speed: 0 }, 4, body.to_owned())
}

fn port_of(comet: &FakeComet) -> String {
    comet.address().as_str().rsplit_once(':').expect("a port").1.to_owned()
}

async fn dead_letters_to(topic: &str) -> String {
    let letters = format!("{topic}.dead-letter");
    kafka().create_topic(&letters, 1).await;
    letters
}

/// The status of this comet in `/v1/comets`.
async fn status(gateway: &RunningGateway, comet: &FakeComet) -> Option<Value> {
    let comets = gateway.get("/v1/comets").await.json();
    let address = Value::from(comet.address().as_str());
    comets["comets"].as_array().expect("a list").iter().find(|found| found["address"] == address).cloned()
}

async fn source_of(gateway: &RunningGateway, comet: &FakeComet) -> Option<String> {
    Some(status(gateway, comet).await?["source"].as_str()?.to_owned())
}

async fn wait_for_source(gateway: &RunningGateway, comet: &FakeComet, source: &str) {
    let known = async || (source_of(gateway, comet).await.as_deref() == Some(source)).then_some(());
    eventually(&format!("{} to be {source}", comet.address()), PATIENCE, known).await;
}

/// The output of `halley explain` for these settings.
fn explain(settings: &Gateway, message: &Value) -> String {
    let folder = folder("explain");
    let (file, asked) = (folder.path().join("halley.toml"), folder.path().join("message.json"));
    std::fs::write(&file, settings.toml()).expect("written");
    std::fs::write(&asked, message.to_string()).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
    let output = command.arg("explain").arg("--config").arg(&file).arg("--message").arg(&asked).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn one_comet_in_every_spelling_is_one_comet() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let port = port_of(&comet);
    let spellings = [
        "127.0.0.1:P",
        "http://127.0.0.1:P/",
        "localhost:0P",
        "LOCALHOST.:P",
        "[::ffff:127.0.0.1]:P",
        "edge",
    ];
    for (n, spelling) in spellings.iter().enumerate() {
        redis.join("lobby", &format!("c{n}"), &format!("u{n}"), spelling.replace('P', &port)).await;
    }
    let topic = kafka().topic("spellings", 1).await;
    let settings = gateway(&topic)
        .redis(&redis)
        .set("comets", "nodes", format!("[\"grpc://localhost:{port}\", \"127.0.0.1:0{port}\"]"))
        .set("comets", "addresses", format!("{{ edge = \"LocalHost:{port}\" }}"))
        .set("routing.cache", "exact", quoted("off"))
        .set("routing.cache", "max_age", quoted("0s"));
    let running = settings.clone().start().await;
    kafka().produce_room(&topic, "lobby", "one call").await;
    kafka().produce_everyone(&topic, 100, "to all").await;
    kafka().produce_keys(&topic, Some(&format!("HTTP://LOCALHOST:{port}")), &["c1"], "to one").await;
    running.wait_until_settled(&topic).await;
    let room = || To::Room("lobby".to_owned());
    let expected = [
        (room(), 4, "one call".to_owned()),
        (To::Everyone { speed: 100 }, 4, "to all".to_owned()),
        (To::Keys(vec!["c1".to_owned()]), 4, "to one".to_owned()),
    ];
    let mut heard = comet.deliveries();
    heard.sort_by(|a, b| a.2.cmp(&b.2));
    assert_eq!(heard, expected);
    assert_eq!(running.get("/v1/comets").await.json()["comets"].as_array().map(Vec::len), Some(1));

    // A drain that names one spelling applies to the others as well.
    let drain = Plugin::new("drain", repository("plugins/dist/comet_drain.wasm"))
        .config(&json!({ "draining": [format!("http://LOCALHOST.:{port}/")], "action": "skip" }));
    running.configure(&settings.clone().plugin(drain));
    eventually("the drain is active", PATIENCE, async || {
        let route = running.get("/v1/routes/lobby").await.json();
        (route["skipped"] == spellings.len()).then_some(())
    })
    .await;
    comet.forget();
    kafka().produce_room(&topic, "lobby", "drained").await;
    running.wait_until_settled(&topic).await;
    assert_eq!(comet.calls().len(), 0);
}

#[tokio::test]
async fn a_comet_under_a_new_address_leaves_no_dead_letters() {
    let (redis, old, new) = (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    let topic = kafka().topic("moved", 1).await;
    let letters = dead_letters_to(&topic).await;
    redis.join("lobby", "c1", "u1", old.address()).await;
    let running = gateway(&topic)
        .redis(&redis)
        .set("comets", "stale_after", quoted("1s"))
        .set("comets", "breaker_window", quoted("0s"))
        .set("routing.cache", "exact", quoted("off"))
        .set("routing.cache", "max_age", quoted("0s"))
        .start()
        .await;
    kafka().produce_room(&topic, "lobby", "before").await;
    running.wait_until_settled(&topic).await;

    old.stop().await;
    redis.join("lobby", "c1", "u1", new.address()).await;
    kafka().produce_room(&topic, "lobby", "after").await;
    new.wait_for(1).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let bodies: Vec<String> = (0..6).map(|n| format!("to all {n}")).collect();
    for body in &bodies {
        kafka().produce_everyone(&topic, 0, body).await;
    }
    running.wait_until_settled(&topic).await;
    let heard: Vec<_> = new.deliveries().into_iter().skip(1).collect();
    assert_eq!(heard, bodies.iter().map(|body| to_all(body)).collect::<Vec<_>>());
    assert_eq!(kafka().read_all(&letters).len(), 0, "every living comet took them");

    let gone = status(&running, &old).await.expect("it is still known");
    assert_eq!((&gone["source"], &gone["broadcasts"]), (&"directory".into(), &false.into()), "{gone}");
    eventually("the metric", PATIENCE, async || {
        let left_out = running.metric("halley_comets_known{source=\"left_out\"}").await;
        (left_out == Some(1.0)).then_some(())
    })
    .await;
    // The directory names it again, so it gets BROADCASTs again.
    old.restart().await;
    redis.join("lobby", "c2", "u2", old.address()).await;
    kafka().produce_room(&topic, "lobby", "back").await;
    running.wait_until_settled(&topic).await;
    kafka().produce_everyone(&topic, 0, "to both").await;
    running.wait_until_settled(&topic).await;
    assert!(old.deliveries().contains(&to_all("to both")), "{:?}", old.deliveries());
}

#[tokio::test]
async fn broadcasts_reach_comets_that_any_gateway_has_seen() {
    let (redis, stranger) = (Redis::start().await, FakeComet::start().await);
    let (a, b) = (FakeComet::start().await, FakeComet::start().await);
    let topic = kafka().topic("shared", 1).await;
    redis.join("room_a", "c1", "u1", a.address()).await;
    redis.join("room_b", "c2", "u2", b.address()).await;
    let settings = gateway(&topic).redis(&redis).set("comets", "allow", "[\"127.0.0.1\"]");
    let first = settings.clone().start().await;
    first.wait_for_log_that("broadcasts reach nobody").await;
    kafka().produce_room(&topic, "room_a", "a").await;
    kafka().produce_room(&topic, "room_b", "b").await;
    kafka().produce_keys(&topic, Some(stranger.address().as_str()), &["k"], "a stranger").await;
    first.wait_until_settled(&topic).await;
    assert_eq!(source_of(&first, &stranger).await.as_deref(), Some("named"));
    eventually("redis to know both", PATIENCE, async || {
        let mut count = redis::cmd("ZCARD");
        count.arg("halley:comets");
        (redis.run::<i64>(count).await == 2).then_some(())
    })
    .await;
    first.kill();

    let second = settings.clone().start().await;
    let said = second.wait_for_log_that("broadcasts reach 2 comets").await;
    assert!(said.contains(a.address().as_str()) && said.contains("[comets] nodes"), "{said}");
    kafka().produce_everyone(&topic, 0, "to all").await;
    second.wait_until_settled(&topic).await;
    for comet in [&a, &b] {
        assert_eq!(comet.deliveries().last(), Some(&to_all("to all")));
    }
    assert_eq!(stranger.calls().len(), 1, "its own message and no other");
    assert_eq!(source_of(&second, &a).await.as_deref(), Some("directory"));

    let explained = explain(&settings, &json!({ "everyone": true }));
    for expected in ["Broadcast", a.address().as_str(), b.address().as_str(), "broadcasts reach 2", "note "] {
        assert!(explained.contains(expected), "`{expected}` is not in:\n{explained}");
    }
    assert!(!explained.contains(stranger.address().as_str()), "{explained}");
}

#[tokio::test]
async fn a_broadcast_waits_for_the_shared_list_of_comets() {
    let (configured, found) = (FakeComet::start().await, FakeComet::start().await);
    let mut redis = Redis::start_keeping().await;
    if !redis.can_stop("a_broadcast_waits_for_the_shared_list_of_comets") {
        return;
    }
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
    let mut seen = redis::cmd("ZADD");
    seen.arg("halley:comets").arg(now).arg(found.address().as_str());
    redis.run::<()>(seen).await;
    redis.stop();
    let topic = kafka().topic("unknown", 1).await;
    let running = gateway(&topic).redis(&redis).node(&configured).start_unready().await;
    kafka().produce_everyone(&topic, 0, "to all").await;
    eventually("the record to be held", PATIENCE, async || {
        let stalls = running.get("/v1/stalls").await.body;
        (stalls.contains("resolve") && stalls.contains("share_comets")).then_some(())
    })
    .await;
    assert_eq!(running.get("/readyz").await.status, 503);
    assert_eq!(configured.count(), 0, "a partial broadcast does not count");
    redis.restart().await;
    running.wait_until_settled(&topic).await;
    assert_eq!(
        (configured.deliveries(), found.deliveries()),
        (vec![to_all("to all")], vec![to_all("to all")])
    );
}

#[tokio::test]
async fn a_server_name_in_the_directory_is_mapped_or_reported() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "c1", "u1", "comet-1").await;
    redis.join("lobby", "c2", "u2", "comet-9").await;
    let topic = kafka().topic("names", 1).await;
    let addresses = format!("{{ comet-1 = {} }}", quoted(comet.address().as_str()));
    let settings = gateway(&topic).redis(&redis).set("comets", "addresses", addresses);
    let running = settings.clone().start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    kafka().produce_keys(&topic, None, &["u1"], "to a user").await;
    running.wait_until_settled(&topic).await;
    let heard: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(heard, ["hello", "to a user"]);
    assert_eq!(redis.stream("halley:inbox:u2").await.len(), 1, "unreachable users are absent");

    let explained = explain(&settings, &json!({ "room": "lobby" }));
    assert!(explained.contains(comet.address().as_str()), "{explained}");
    let said = "\"comet-9\" is not a host:port address; map server names in [comets] addresses";
    assert!(explained.contains("cannot be made") && explained.contains(said), "{explained}");
}

#[tokio::test]
async fn comets_of_a_file_and_of_goims_discovery_come_and_go() {
    let mut comets = Vec::new();
    for _ in 0..3 {
        comets.push(FakeComet::start_speaking(Dialect::Goim).await);
    }
    let at = |n: usize| comets[n].address().to_string();
    let discovery = FakeDiscovery::start().await;
    discovery.set(&[("comet-0", &at(0))]);
    let folder = folder("discovery");
    let file = folder.path().join("comets.toml");
    let topic = kafka().topic("discovery", 1).await;
    let running = gateway(&topic)
        .set("comets", "dialect", quoted("goim"))
        .set("routing", "rooms", quoted("every-comet"))
        .set("comets.discovery", "goim", format!("[\"http://127.0.0.1:1\", {}]", quoted(&discovery.url())))
        .set("comets.discovery", "file", quoted(&file.display().to_string()))
        .set("comets.discovery", "refresh_interval", quoted("100ms"))
        .start()
        .await;
    let warned = running.get("/readyz").await.body;
    assert!(warned.contains("comets.discovery.file"), "a missing file is reported: {warned}");
    assert_eq!(source_of(&running, &comets[0]).await.as_deref(), Some("discovery"));

    discovery.set(&[("comet-0", &at(0)), ("comet-1", &at(1))]);
    std::fs::write(&file, format!("nodes = [{}]", quoted(&at(2)))).expect("written");
    for comet in &comets[1..] {
        wait_for_source(&running, comet, "discovery").await;
    }
    kafka().produce_everyone(&topic, 0, "to all").await;
    kafka().produce_room(&topic, "lobby", "to the room").await;
    kafka().produce_keys(&topic, Some("comet-1"), &["k"], "by hostname").await;
    running.wait_until_settled(&topic).await;
    let heard = |n: usize| {
        let mut bodies: Vec<_> = comets[n].deliveries().into_iter().map(|(_, _, body)| body).collect();
        bodies.sort();
        bodies
    };
    assert_eq!(heard(0), ["to all", "to the room"]);
    assert_eq!(heard(1), ["by hostname", "to all", "to the room"]);
    assert_eq!(heard(2), ["to all", "to the room"]);

    // One is removed; a broken or empty list removes none.
    discovery.set(&[("comet-1", &at(1))]);
    wait_for_source(&running, &comets[0], "retired").await;
    std::fs::write(&file, "nodes = [").expect("written");
    discovery.set(&[]);
    eventually("both are reported", PATIENCE, async || {
        let warned = running.get("/readyz").await.body;
        (warned.contains("not valid TOML") && warned.contains("lists no comet")).then_some(())
    })
    .await;
    kafka().produce_everyone(&topic, 0, "once more").await;
    running.wait_until_settled(&topic).await;
    assert_eq!([heard(0).len(), heard(1).len(), heard(2).len()], [2, 4, 3]);
}

#[tokio::test]
async fn calls_carry_no_ids_if_they_are_turned_off() {
    for (dialect, name) in [(Dialect::Chatroom, "chatroom"), (Dialect::Goim, "goim")] {
        let (topic, comet) = (kafka().topic("no-ids", 1).await, FakeComet::start_speaking(dialect).await);
        let settings = gateway(&topic)
            .node(&comet)
            .set("comets", "dialect", quoted(name))
            .set("comets", "message_ids", "false")
            .set("routing", "rooms", quoted("every-comet"));
        let running = settings.start().await;
        kafka().produce_room(&topic, "lobby", "to the room").await;
        kafka().produce_everyone(&topic, 0, "to all").await;
        kafka().produce_keys(&topic, Some(comet.address().as_str()), &["k"], "to a key").await;
        let all = |comet: &FakeComet| {
            let mut bodies: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
            bodies.sort();
            bodies
        };
        running.wait_until_settled(&topic).await;
        let expected = ["to a key", "to all", "to the room"];
        assert_eq!(all(&comet), expected);
        assert!(comet.calls().iter().all(|call| call.messages.is_empty()), "{:?}", comet.calls());
        assert!(running.sigterm().await.success());
    }
}
