//! Guests that trap, loop, flood or stall: what they cost, and what an operator sees.

use serde_json::json;

use super::{PolicyFixture, bundled, unruly, wasm};
use crate::support::comet::FakeComet;
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually};

#[tokio::test]
async fn guests_that_misbehave_harm_no_other_message() {
    for command in ["trap", "loop", "eat", "few", "many", "gigabyte", "flood"] {
        let fixture = PolicyFixture::new(&format!("unruly-{command}")).await;
        let dead_letter = unruly("unruly").set("on_error", quoted("dead-letter"));
        let mask = bundled("keyword-filter").config(&json!({ "words": ["spam"], "action": "mask" }));
        let gateway = fixture.start([dead_letter, mask]).await;
        let mut expected = Vec::new();
        for number in 0..20 {
            if number == 10 {
                fixture.say(command).await;
            }
            fixture.say(&format!("spam {number}")).await;
            expected.push(format!("**** {number}"));
        }
        gateway.wait_until_settled(&fixture.topic).await;

        let heard: Vec<_> = fixture.heard().into_iter().filter(|body| body != command).collect();
        assert_eq!(heard, expected, "{command}: the others passed through both policies");
        let letters = kafka().read_all(&format!("{}.dead-letter", fixture.topic));
        if command == "flood" {
            assert_eq!(letters.len(), 0, "excessive logging is limited, not an error");
        } else {
            assert_eq!(letters.len(), 1, "{command}");
            assert!(letters[0].header("halley-reason").is_some_and(|reason| !reason.is_empty()));
            let errors = gateway.get("/metrics").await.body;
            assert!(errors.contains("halley_plugin_errors_total{"), "{command}: it is counted");
        }
    }
}

#[tokio::test]
async fn partitions_behind_another_s_stalled_look_up_are_named() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("trap", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("stall-behind", 2).await;
    let settings = gateway(&topic).redis(&redis);
    let gateway = settings.clone().plugin(unruly("unruly").set("on_error", quoted("stall"))).start().await;
    let mut sent = 0;
    while kafka().ends(&topic).len() < 2 {
        kafka().produce_room_anywhere(&topic, "trap", "hello").await;
        sent += 1;
    }
    let stalls = async || {
        let stalls = gateway.get("/v1/stalls").await.json()["stalls"].as_array().cloned()?;
        (stalls.len() == 2).then_some(stalls)
    };
    let stalls = eventually("both partitions to be named", PATIENCE, stalls).await;
    let of = |fixture: &str| stalls.iter().find(|stall| stall["stage"] == fixture).expect("a stall");
    let (leader, follower) = (of("policy"), of("resolve"));
    assert_ne!(leader["partition"], follower["partition"]);
    let cause =
        format!("room `trap` is being looked up for {topic}/{}: waiting for that", leader["partition"]);
    assert_eq!(follower["cause"], cause);
    assert_eq!(gateway.metric("halley_stalled_partitions{stage=\"resolve\"}").await, Some(1.0));
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("resolve: holding"), "{}", ready.body);
    gateway.configure(&settings);
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;
    assert_eq!(comet.deliveries().len(), sent, "nothing was lost meanwhile");
}

#[tokio::test]
async fn a_stalled_policy_holds_its_partition_until_replaced() {
    let fixture = PolicyFixture::new("stall").await;
    // A policy that fetches shared state runs before it: its success in between is not a recovery.
    let counting =
        Plugin::new("counting", wasm("tests/guests/dist/unruly.wasm")).set("state", quoted("shared"));
    let gateway = fixture
        .start([counting.set("deadline", quoted("5s")), unruly("unruly").set("on_error", quoted("stall"))])
        .await;
    gateway.signal("STOP");
    // The first record answers the pending fetch; the others arrive together.
    let all = ["first", "count k", "trap", "hello"];
    for body in all {
        fixture.say(body).await;
    }
    gateway.signal("CONT");
    gateway.wait_for_log("holding records, retrying until it succeeds").await;
    let held = async || {
        let ready = gateway.get("/readyz").await;
        (ready.status == 503 && ready.body.contains("policy: holding")).then_some(())
    };
    eventually("/readyz to name the policy that stalls", PATIENCE, held).await;
    assert_eq!(gateway.metric("halley_stalled_partitions{stage=\"policy\"}").await, Some(1.0));
    assert_eq!(gateway.get("/v1/stalls").await.json()["stalls"][0]["stage"], "policy");
    assert!(fixture.heard().len() <= 1, "{:?}", fixture.heard());
    let told = |begins: &str| {
        let lines = gateway.log_lines();
        lines.iter().filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(begins))).count()
    };
    assert_eq!((told("holding records"), told("recovered")), (1, 0), "one stall, one line");
    gateway.configure(&fixture.settings);
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), all, "nothing was lost meanwhile");
    gateway.wait_until_ready().await;
    assert_eq!(told("recovered"), 1);
}

#[tokio::test]
async fn a_looping_first_version_blocks_nobody() {
    const MESSAGES: usize = 600;
    let fixture = PolicyFixture::new("loops").await;
    // Default settings.
    let plugin = Plugin::new("loops", wasm("tests/guests/dist/unruly.wasm"));
    let gateway = fixture.start([plugin]).await;
    for number in 0..MESSAGES {
        fixture.say(&if number % 4 == 1 { "loop".to_owned() } else { format!("hello {number}") }).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard().len(), MESSAGES, "`on_error` passes all of them, in order");
    let numbers: Vec<String> = fixture.heard().into_iter().filter(|body| body != "loop").collect();
    let expected = (0..MESSAGES).filter(|number| number % 4 != 1).map(|number| format!("hello {number}"));
    assert!(numbers.iter().cloned().eq(expected), "{numbers:?}");

    // 150 messages, each of which would cost several calls until it is isolated in its batch: most of
    // these calls were never made.
    let metrics = gateway.get("/metrics").await.body;
    let sum = |name: &str, label: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let late = sum("halley_plugin_errors_total{", "kind=\"deadline\"");
    assert!(late < 100.0, "{late} calls exceeded their deadline");
    assert!(sum("halley_plugin_limits_total{", "limit=\"time-budget\"") > 0.0, "{metrics}");

    // What an operator sees. Once nothing loops any more, the plugin decides again.
    gateway.wait_for_log_that("a plugin exceeded its deadline too often").await;
    let decides_again = async || {
        fixture.say("drop me").await;
        gateway.wait_until_settled(&fixture.topic).await;
        let status = gateway.get("/v1/plugins").await.json();
        let ready = gateway.get("/readyz").await;
        assert_eq!(ready.status, 200, "{ready:?}");
        if status["plugins"][0]["state"] == "over-time-budget" {
            assert!(ready.body.contains("exceeded its deadline too often"), "{ready:?}");
            return None;
        }
        Some(())
    };
    eventually("its decisions again", PATIENCE, decides_again).await;
    fixture.say("drop me, too").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert!(!fixture.heard().contains(&"drop me, too".to_owned()));
}
