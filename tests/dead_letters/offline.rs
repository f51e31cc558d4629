//! Letters of messages that were delivered but could not be stored for absent users.

use crate::dead_letters::DeadLetterCli;
use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;

#[tokio::test]
async fn a_redriven_offline_letter_goes_only_to_the_failed_users() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    for name in ["on", "back", "away"] {
        redis.join("lobby", &format!("conn_{name}"), &format!("user_{name}"), comet.address()).await;
    }
    redis.offline("user_back").await;
    redis.offline("user_away").await;
    let topic = kafka().topic("offline-letter", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let settings = gateway(&topic).redis(&redis);
    let desk = DeadLetterCli::with(&topic, &settings.toml());
    let strict = settings.clone().set("offline", "max_body", quoted("10B")).start().await;
    kafka().produce_room(&topic, "lobby", "more than ten bytes").await;
    strict.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 1, "online users have it");
    // Redriven too early: it is not sent again, and stays due to the same users.
    assert!(desk.ok(&["redrive"]).starts_with("1 redriven"));
    strict.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 1, "online users already have it");
    assert!(strict.sigterm().await.success());
    let listed = desk.ok(&["list", "--json", "--pending"]);
    let letter: serde_json::Value = serde_json::from_str(&listed).expect("one letter");
    assert_eq!((&letter["stage"], &letter["attempts"]), (&"offline".into(), &2.into()), "{letter}");
    assert_eq!(letter["users"], serde_json::json!(["user_away", "user_back"]), "{letter}");

    redis.join("lobby", "conn_back", "user_back", comet.address()).await;
    let gateway = settings.start().await;
    assert!(desk.ok(&["redrive"]).starts_with("1 redriven"));
    gateway.wait_until_settled(&topic).await;
    let calls = comet.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert_eq!(calls[1].to, To::Keys(vec!["conn_back".to_owned()]), "returned users get it live");
    for (user, entries) in [("user_on", 0), ("user_back", 0), ("user_away", 1)] {
        assert_eq!(redis.stream(&format!("halley:inbox:{user}")).await.len(), entries, "{user}");
    }
    assert_eq!(desk.ok(&["list", "--json", "--pending"]), "");
}

#[tokio::test]
async fn an_offline_letter_names_only_those_who_have_nothing() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    for name in ["ann", "bob", "cid"] {
        redis.join("lobby", &format!("conn_{name}"), &format!("user_{name}"), comet.address()).await;
        redis.offline(&format!("user_{name}")).await;
    }
    // The key of bob's inbox holds something else.
    let mut occupy = redis::cmd("SET");
    occupy.arg("halley:inbox:user_bob").arg("no stream");
    redis.run::<()>(occupy).await;
    let topic = kafka().topic("offline-some", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let settings = gateway(&topic).redis(&redis);
    let desk = DeadLetterCli::with(&topic, &settings.toml());
    let gateway = settings.start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;
    let listed = desk.ok(&["list", "--json", "--pending"]);
    let letter: serde_json::Value = serde_json::from_str(&listed).expect("one letter");
    assert_eq!(letter["users"], serde_json::json!(["user_bob"]), "{letter}");

    let mut free = redis::cmd("DEL");
    free.arg("halley:inbox:user_bob");
    redis.run::<()>(free).await;
    assert!(desk.ok(&["redrive"]).starts_with("1 redriven"));
    gateway.wait_until_settled(&topic).await;
    for name in ["ann", "bob", "cid"] {
        let entries = redis.stream(&format!("halley:inbox:user_{name}")).await.len();
        assert_eq!(entries, 1, "{name} has it once");
    }
}
