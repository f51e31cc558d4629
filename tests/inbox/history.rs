//! The history of rooms: stored once, before delivery, and read in pages.

use std::process::Command;

use serde_json::{Value, json};

use super::{api_of, bodies, call, numbers, with_api};
use crate::support::comet::FakeComet;
use crate::support::gateway::quoted;
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, secret};

/// All pages of a room from one end to the other, and whether any is truncated.
async fn all(api: &str, room: &str, limit: usize, backwards: bool) -> (Vec<String>, bool) {
    let (mut seen, mut truncated, mut next) = (Vec::new(), false, String::new());
    loop {
        let place = if backwards { "before" } else { "after" };
        let path = format!("/v1/history/{room}?limit={limit}&backwards={backwards}&{place}={next}");
        let page = call(api, "GET", &path, None).await.json();
        seen.extend(bodies(&page));
        truncated |= page["truncated"] == true;
        next = page["next"].as_str().expect("a cursor").to_owned();
        if page["more"] == false {
            return (seen, truncated);
        }
    }
}

#[tokio::test]
async fn a_rooms_messages_are_kept_once_and_read_in_pages() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = with_api("history", &redis).await;
    let settings = settings.set("history", "rooms", r#"["im_*"]"#).set("history", "max_per_room", 30);
    redis.join("im_1", "conn_1", "ann", comet.address()).await;
    let gateway = settings.clone().start().await;
    let api = api_of(&gateway).await;
    for number in 0..20 {
        kafka().produce_room(&topic, "im_1", number.to_string()).await;
        kafka().produce_room(&topic, "other", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(all(&api, "im_1", 7, false).await, (numbers(0..20), false));
    let backwards: Vec<String> = numbers(0..20).into_iter().rev().collect();
    assert_eq!(all(&api, "im_1", 7, true).await, (backwards, false));
    assert_eq!(all(&api, "other", 7, false).await, (vec![], false), "not asked for");
    let page = call(&api, "GET", "/v1/history/im_1?limit=1", None).await.json();
    let entry = &page["entries"][0];
    assert_eq!((&entry["room"], &entry["cause"]), (&json!("im_1"), &json!("")), "{entry}");
    let position = call(&api, "GET", "/v1/history/im_1/position", None).await.json();
    assert_eq!(position["kept"], 20);
    let cursor = page["next"].as_str().expect("a cursor");
    let foreign = call(&api, "GET", &format!("/v1/history/im_2?after={cursor}"), None).await;
    assert_eq!(foreign.status, 400, "{foreign:?}");

    // Everything is delivered again, as after a crash: nothing is stored again.
    assert!(gateway.sigterm().await.success());
    kafka().commit(gateway.group(), &topic, 0, 0, "").await;
    let gateway = settings.start().await;
    let api = api_of(&gateway).await;
    for number in 20..25 {
        kafka().produce_room(&topic, "im_1", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(all(&api, "im_1", 500, false).await, (numbers(0..25), false));
    assert_eq!(gateway.metric("halley_history_repeated_total").await, Some(20.0));
    assert_eq!(gateway.metric("halley_history_stored_total").await, Some(5.0));

    // Erasing a user leaves the room alone; the oldest go by length, and pages say so.
    call(&api, "DELETE", "/v1/inbox/ann", None).await;
    for number in 25..40 {
        kafka().produce_room(&topic, "im_1", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(all(&api, "im_1", 500, false).await, (numbers(10..40), true));
    let late = call(&api, "GET", &format!("/v1/history/im_1?after={cursor}"), None).await.json();
    assert_eq!((bodies(&late), &late["truncated"]), (numbers(10..40), &json!(true)));

    let file = gateway.file().display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_halley"))
        .args(["history", "read", "im_1", "--limit", "3", "--backwards", "--json", "--config", &file])
        .output()
        .expect("it runs");
    let page: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(bodies(&page), ["39", "38", "37"]);
    let none = Command::new(env!("CARGO_BIN_EXE_halley"))
        .args(["history", "read", "lobby", "--config", &file])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&none.stdout).into_owned();
    assert!(none.status.success() && said.contains("`[history] rooms` does not cover the room"), "{said}");
}

/// One entry instead of one for each absent member.
#[tokio::test]
async fn absent_members_cost_nothing_where_they_read_the_history() {
    let redis = Redis::start().await;
    let (topic, settings) = with_api("history-absent", &redis).await;
    let member = |n: usize| (format!("conn_{n}"), format!("user_{n}"), "127.0.0.1:1".to_owned());
    redis.join_many("im_1", &(0..2_000).map(member).collect::<Vec<_>>()).await;
    for n in 0..2_000 {
        redis.offline(&format!("user_{n}")).await;
    }
    let settings = settings.set("history", "rooms", r#"["im_1"]"#).set("history", "inbox", quoted("none"));
    let gateway = settings.start().await;
    kafka().produce_room(&topic, "im_1", "hello").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(redis.keys("halley:inbox*").await, [""; 0]);
    assert_eq!(redis.stream("halley:history:im_1").await.len(), 1);
    assert_eq!(gateway.metric("halley_offline_stored_total").await, Some(0.0));
    let stored = r#"halley_recipients_total{outcome="stored"}"#;
    assert_eq!(gateway.metric(stored).await, Some(2_000.0), "they find it in the history");
}

#[tokio::test]
async fn a_rooms_history_is_held_to_its_size() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = with_api("history-bytes", &redis).await;
    redis.join("im_1", "conn_1", "ann", comet.address()).await;
    let settings = settings.set("history", "rooms", r#"["im_*"]"#);
    let gateway = settings.set("history", "max_bytes_per_room", quoted("64KiB")).start().await;
    let api = api_of(&gateway).await;
    for number in 0..100 {
        let body = format!("{number}{}", " ".repeat(5_000));
        kafka().produce_room(&topic, "im_1", body).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 100);
    let usage = redis::cmd("MEMORY").arg(&["USAGE", "halley:history:im_1", "SAMPLES", "0"]).to_owned();
    let bytes: u64 = redis.run(usage).await;
    assert!(bytes <= 64 << 10, "{bytes}");
    let page = call(&api, "GET", "/v1/history/im_1?limit=500", None).await.json();
    let kept: Vec<String> = bodies(&page).iter().map(|body| body.trim().to_owned()).collect();
    assert!(kept.len() >= 6, "{kept:?}");
    assert_eq!((kept.clone(), &page["truncated"]), (numbers(100 - kept.len()..100), &json!(true)));
}

#[tokio::test]
async fn a_redis_without_memory_holds_the_rooms_messages_and_says_so() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    let (topic, settings) = with_api("history-full", &redis).await;
    redis.join("im_1", "conn_1", "ann", comet.address()).await;
    let gateway = settings.set("history", "rooms", r#"["im_1"]"#).start().await;
    let maxmemory = async |value: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(value);
        redis.run::<()>(command).await;
    };
    maxmemory("1").await;
    kafka().produce_room(&topic, "im_1", "0").await;
    let held = async || {
        let ready = gateway.get("/readyz").await;
        (ready.status == 503 && ready.body.contains("history: holding")).then_some(())
    };
    eventually("readiness names the history", PATIENCE, held).await;
    assert_eq!(comet.deliveries(), [], "delivered once it is kept");
    maxmemory("0").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 1);
    assert_eq!(redis.stream("halley:history:im_1").await.len(), 1);
}

#[tokio::test]
async fn tokens_of_some_users_read_no_room() {
    let redis = Redis::start().await;
    let (_, settings) = with_api("history-tokens", &redis).await;
    let folder = folder("tokens");
    let file = folder.path().join("tokens.toml");
    let tokens = "[[token]]\nname = \"eu\"\ntoken = \"0123456789abcdef\"\nusers = [\"eu-\"]\n\
                  [[token]]\nname = \"rooms\"\ntoken = \"fedcba9876543210\"\nusers = [\"eu-\"]\nrooms = [\"im_\"]\n";
    secret(&file, tokens);
    let gateway = settings.set("api", "token_file", quoted(&file.display().to_string())).start().await;
    let api = api_of(&gateway).await;
    for (token, room, status) in [
        ("0123456789abcdef", "im_1", 403),
        ("fedcba9876543210", "im_1", 200),
        ("fedcba9876543210", "lobby", 403),
    ] {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let path = format!("/v1/history/{room}");
        let answer = crate::support::http::send(&api, "GET", &path, &headers, b"").await.expect("an answer");
        assert_eq!(answer.status, status, "{room}: {answer:?}");
    }
}
