//! A user who returns while a message is stored gets it live as well.

use halley::message::Audience;

use crate::support::comet::{FakeComet, Serves, To};
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::repository;

/// The ids of the messages of a user's inbox.
async fn stored_ids(redis: &Redis, user: &str) -> Vec<String> {
    let ids = redis.stream(&format!("halley:inbox:{user}")).await.into_iter().map(|fields| {
        let id = fields.into_iter().find(|(name, _)| name == "id").expect("an id");
        String::from_utf8(id.1).expect("text")
    });
    ids.collect()
}

async fn returning_user(serves: Serves) {
    let redis = Redis::start().await;
    let comet = FakeComet::start_serving(crate::support::comet::Dialect::Chatroom, serves).await;
    redis.join("lobby", "old", "ann", comet.address()).await;
    redis.offline("ann").await;
    let topic = kafka().topic("hand-over", 1).await;
    // The room's route stays in the cache: it says that the user is away long after the return.
    let settings = gateway(&topic).redis(&redis).set("routing.cache", "exact", quoted("off")).set(
        "routing.cache",
        "max_age",
        quoted("1h"),
    );
    let gateway = settings.start().await;
    kafka().produce_room(&topic, "lobby", "while away").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 0);

    redis.join("other", "new", "ann", comet.address()).await;
    kafka().produce_room(&topic, "lobby", "just returned").await;
    gateway.wait_until_settled(&topic).await;
    let ids = stored_ids(&redis, "ann").await;
    assert_eq!(ids.len(), 2, "both are in the inbox");
    let calls = comet.wait_for(1).await;
    assert_eq!(comet.deliveries(), [(To::Keys(vec!["new".into()]), 4, "just returned".to_owned())]);
    assert_eq!((calls[0].messages.clone(), calls[0].replayed), (vec![ids[1].clone()], true), "the same id");
    let handed_over = r#"halley_offline_handed_over_total{outcome="delivered"}"#;
    assert_eq!(gateway.metric(handed_over).await, Some(1.0));
    assert_eq!(gateway.metric("halley_offline_returned_total").await, Some(1.0));

    // A comet that refuses holds nothing up: the inbox has the message.
    comet.refuse("new", tonic::Code::InvalidArgument);
    kafka().produce_room(&topic, "lobby", "refused").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(stored_ids(&redis, "ann").await.len(), 3);
    let failed = r#"halley_offline_handed_over_total{outcome="failed"}"#;
    assert_eq!(gateway.metric(failed).await, Some(1.0));
}

#[tokio::test]
async fn who_returns_while_it_is_stored_gets_it_live() {
    returning_user(Serves::Calls).await;
}

#[tokio::test]
async fn who_returns_gets_it_live_over_a_stream() {
    returning_user(Serves::Streams).await;
}

#[tokio::test]
async fn a_policy_keeps_what_is_important_for_those_online_too() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "c1", "ann", comet.address()).await;
    redis.join("lobby", "c2", "bob", comet.address()).await;
    redis.offline("bob").await;
    let topic = kafka().topic("retention", 1).await;
    let config = serde_json::json!({ "operations": [7], "rooms": [] });
    let plugin = Plugin::new("keep", repository("plugins/dist/keep_important.wasm")).config(&config);
    let gateway = gateway(&topic).redis(&redis).plugin(plugin).start().await;
    let lobby = Audience::Room("lobby".into());
    kafka().produce(&topic, lobby.clone(), 4, "chat").await;
    kafka().produce(&topic, lobby, 7, "a call").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), 2, "each once");
    for (user, count) in [("ann", 1), ("bob", 2)] {
        assert_eq!(stored_ids(&redis, user).await.len(), count, "{user}");
    }
    let mut explain = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
    explain.args(["explain", "--room", "lobby", "--operation", "7", "--config"]).arg(gateway.file());
    let explained = explain.output().expect("it runs").stdout;
    let explained = String::from_utf8_lossy(&explained);
    assert!(explained.contains("kept in   inbox") && explained.contains("keeps it in: inbox"), "{explained}");
}

#[tokio::test]
async fn chosen_operations_are_stored_for_those_online_too() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "c1", "ann", comet.address()).await;
    redis.join("lobby", "c2", "bob", comet.address()).await;
    redis.join("lobby", "c3", "cid", comet.address()).await;
    redis.offline("cid").await;
    // Users with several connections, of which the last one is registered.
    for user in 0..5 {
        for device in ["phone", "tablet"] {
            redis.join("lobby", &format!("{device}-{user}"), &format!("user-{user}"), comet.address()).await;
        }
    }
    let topic = kafka().topic("always-store", 1).await;
    let settings = gateway(&topic).redis(&redis).set("offline", "always_store", "[7]");
    let gateway = settings.start().await;
    let lobby = Audience::Room("lobby".into());
    kafka().produce(&topic, lobby.clone(), 4, "chat").await;
    kafka().produce(&topic, lobby, 7, "a call").await;
    gateway.wait_until_settled(&topic).await;
    let to_lobby = To::Room("lobby".into());
    let live = [(to_lobby.clone(), 4, "chat".to_owned()), (to_lobby, 7, "a call".to_owned())];
    assert_eq!(comet.deliveries(), live, "each once, and nothing is handed over to who is online anyway");
    for (user, count) in [("ann", 1), ("bob", 1), ("cid", 2), ("user-0", 1), ("user-4", 1)] {
        assert_eq!(stored_ids(&redis, user).await.len(), count, "{user}");
    }
    let handed_over = r#"halley_offline_handed_over_total{outcome="delivered"}"#;
    assert_eq!(gateway.metric(handed_over).await, Some(0.0));
}
