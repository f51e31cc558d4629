//! What policies decide, in the gateway: each bundled policy here, hot swaps under load and broken files in
//! `swaps`, and guests that misbehave in `misbehaving`.

mod misbehaving;
mod swaps;

use std::path::PathBuf;

use serde_json::json;

use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, repository};

/// A bundled policy, as `make plugins` built it.
fn bundled(name: &str) -> Plugin {
    // A generous deadline: a machine that is busy with other tests must not look like a slow plugin.
    Plugin::new(name, wasm(&format!("plugins/dist/{}.wasm", name.replace('-', "_"))))
        .set("deadline", quoted("5s"))
}

/// The guest that does what message bodies tell it.
fn unruly(name: &str) -> Plugin {
    Plugin::new(name, wasm("tests/guests/dist/unruly.wasm")).set("deadline", quoted("300ms"))
}

fn wasm(path: &str) -> PathBuf {
    let file = repository(path);
    assert!(file.is_file(), "{path} is missing; run `make plugins`");
    file
}

/// A room `lobby` with one user on one comet, and a gateway that knows them.
struct PolicyFixture {
    redis: Redis,
    comet: FakeComet,
    topic: String,
    settings: Gateway,
}

impl PolicyFixture {
    async fn new(name: &str) -> Self {
        let (redis, comet) = (Redis::start().await, FakeComet::start().await);
        redis.join("lobby", "conn_1", "user_1", comet.address()).await;
        let topic = kafka().topic(name, 1).await;
        kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
        kafka().create_topic(&format!("{topic}.offline"), 1).await;
        let settings = gateway(&topic).redis(&redis);
        Self { redis, comet, topic, settings }
    }

    async fn start(&self, plugins: impl IntoIterator<Item = Plugin>) -> RunningGateway {
        plugins.into_iter().fold(self.settings.clone(), Gateway::plugin).start().await
    }

    async fn say(&self, body: &str) {
        kafka().produce_room(&self.topic, "lobby", body).await;
    }

    fn heard(&self) -> Vec<String> {
        self.comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
    }
}

/// Waits until a later generation than this one is active.
async fn generation_after(gateway: &RunningGateway, before: u64) -> u64 {
    let now = async || Some(generation(gateway).await).filter(|now| *now > before);
    eventually("a new generation of policies", PATIENCE, now).await
}

async fn generation(gateway: &RunningGateway) -> u64 {
    gateway.get("/v1/plugins").await.json()["generation"].as_u64().expect("a number")
}

#[tokio::test]
async fn the_keyword_filter_drops_or_masks() {
    let fixture = PolicyFixture::new("keywords").await;
    let drop = bundled("keyword-filter").config(&json!({ "words": ["spam", "广告"] }));
    let gateway = fixture.start([drop]).await;
    for body in ["hello", "buy spam", "看广告", "bye"] {
        fixture.say(body).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["hello", "bye"]);
    assert_eq!(gateway.metric(r#"halley_messages_total{outcome="dropped"}"#).await, Some(2.0));

    let before = generation(&gateway).await;
    let mask = bundled("keyword-filter").config(&json!({ "words": ["spam", "广告"], "action": "mask" }));
    gateway.configure(&fixture.settings.clone().plugin(mask));
    generation_after(&gateway, before).await;
    fixture.say("看广告 spam").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard().last().map(String::as_str), Some("看** ****"));
}

#[tokio::test]
async fn a_comet_s_refusal_names_the_policies_that_amended_the_message() {
    let fixture = PolicyFixture::new("amended").await;
    fixture.comet.refuse("lobby", tonic::Code::InvalidArgument);
    let mask = bundled("keyword-filter").config(&json!({ "words": ["spam"], "action": "mask" }));
    let gateway = fixture.start([mask]).await;
    fixture.say("some spam").await;
    gateway.wait_until_settled(&fixture.topic).await;
    let letters = kafka().read_all(&format!("{}.dead-letter", fixture.topic));
    let reason = letters[0].header("halley-reason").expect("a reason");
    assert!(reason.contains("InvalidArgument") && reason.contains("keyword-filter@"), "{reason}");
    assert!(reason.contains("amended body"), "{reason}");
}

#[tokio::test]
async fn the_duplicate_guard_stops_duplicates_and_calms_rooms() {
    let fixture = PolicyFixture::new("duplicates").await;
    let duplicates = bundled("duplicate-guard").config(&json!({ "duplicates": { "within": "60s" } }));
    let gateway = fixture.start([duplicates]).await;
    for body in ["once", "twice", "twice", "thrice", "twice"] {
        fixture.say(body).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["once", "twice", "thrice"]);

    let before = generation(&gateway).await;
    let cooldown = json!({ "cooldown": { "within": "60s", "spare_operations": [7] } });
    gateway.configure(&fixture.settings.clone().plugin(bundled("duplicate-guard").config(&cooldown)));
    generation_after(&gateway, before).await;
    fixture.comet.forget();
    let room = || halley::message::Audience::Room("lobby".into());
    for (operation, body) in [(4, "first"), (4, "too soon"), (7, "a gift"), (7, "another")] {
        kafka().produce(&fixture.topic, room(), operation, body).await;
    }
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), ["first", "a gift", "another"]);
}

#[tokio::test]
async fn the_comet_drain_moves_a_comet_s_share() {
    let mut fixture = PolicyFixture::new("drain").await;
    let (draining, fresh) = (FakeComet::start().await, FakeComet::start().await);
    fixture.redis.join("lobby", "conn_2", "user_2", draining.address()).await;
    let leaving = draining.address().to_string();
    let redirect = json!({ "draining": [leaving], "action": "redirect", "to": fresh.address().to_string() });
    fixture.settings = fixture.settings.node(&fresh);
    let gateway = fixture.start([bundled("comet-drain").config(&redirect)]).await;
    fixture.say("moved").await;
    gateway.wait_until_settled(&fixture.topic).await;
    let moved = (To::Room("lobby".into()), 4, "moved".to_owned());
    assert_eq!((fresh.deliveries(), fixture.comet.deliveries()), (vec![moved.clone()], vec![moved]));
    assert_eq!(draining.calls().len(), 0);

    let before = generation(&gateway).await;
    let offline = json!({ "draining": [leaving], "action": "offline" });
    gateway.configure(&fixture.settings.clone().plugin(bundled("comet-drain").config(&offline)));
    generation_after(&gateway, before).await;
    fixture.say("kept").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(draining.calls().len(), 0);
    assert_eq!(fixture.redis.stream("halley:inbox:user_2").await.len(), 1);
}

#[tokio::test]
async fn a_partly_moved_room_is_called_by_connection() {
    let fixture = PolicyFixture::new("partial").await;
    for n in 2..=3 {
        fixture.redis.join("drain", &format!("conn_{n}"), "anyone", fixture.comet.address()).await;
    }
    // The guest redirects the first comet's share and skips the last connection.
    let elsewhere = fixture.start([unruly("unruly")]).await;
    let route = elsewhere.get("/v1/routes/drain").await.json();
    assert_eq!(route["shares"][0]["comet"], "elsewhere:1");
    assert_eq!((&route["shares"][0]["call"], &route["skipped"]), (&"PushMsg".into(), &1.into()), "{route}");
}

#[tokio::test]
async fn the_offline_rules_store_notify_and_drop() {
    let fixture = PolicyFixture::new("offline-rules").await;
    fixture.redis.offline("user_1").await;
    let rules = json!({ "rules": [
        { "audience": "keys", "action": "notify", "channel": "apns" },
        { "operations": [7], "action": "store", "retention": "1h" },
        { "rooms": ["*"], "action": "drop" },
    ] });
    let gateway = fixture.start([bundled("offline-rules").config(&rules)]).await;
    let room = || halley::message::Audience::Room("lobby".into());
    kafka().produce(&fixture.topic, room(), 7, "a gift").await;
    kafka().produce(&fixture.topic, room(), 4, "chatter").await;
    let id = kafka().produce_keys(&fixture.topic, None, &["user_1"], "call me").await;
    gateway.wait_until_settled(&fixture.topic).await;

    assert_eq!(fixture.heard(), [""; 0]);
    assert_eq!(fixture.redis.stream("halley:inbox:user_1").await.len(), 1);
    let notified = kafka().read_all(&format!("{}.offline", fixture.topic));
    assert_eq!(notified.len(), 1, "{notified:#?}");
    let header = |name: &str| notified[0].header(name).unwrap_or_default();
    assert_eq!(
        (notified[0].key.as_deref(), notified[0].value.as_deref(), header("halley-channel")),
        (Some(&b"user_1"[..]), Some(&b"call me"[..]), "apns".to_owned())
    );
    assert_eq!(header("halley-message-id"), id);
    let recipients = async |outcome: &str| {
        gateway.metric(&format!("halley_recipients_total{{outcome=\"{outcome}\"}}")).await
    };
    let counts = (recipients("stored").await, recipients("notified").await, recipients("dropped").await);
    assert_eq!(counts, (Some(1.0), Some(1.0), Some(1.0)));
}

#[tokio::test]
async fn amendments_of_several_policies_compose() {
    let mut fixture = PolicyFixture::new("compose").await;
    let other = FakeComet::start().await;
    let mask = bundled("keyword-filter").config(&json!({ "words": ["spam"], "action": "mask" }));
    fixture.settings = fixture.settings.set("comets", "allow", "[\"127.0.0.0/8\"]");
    let gateway = fixture.start([mask, unruly("unruly").set("comets", quoted("any"))]).await;
    fixture.say(&format!("also {}", other.address())).await;
    fixture.say("body rewritten, spam and all").await;
    fixture.say("dead-letter for a person to look at").await;
    gateway.wait_until_settled(&fixture.topic).await;
    assert_eq!(fixture.heard(), [format!("also {}", other.address()), "rewritten, **** and all".to_owned()]);
    assert_eq!(other.deliveries().len(), 1);
    let letters = kafka().read_all(&format!("{}.dead-letter", fixture.topic));
    assert_eq!(letters[0].header("halley-stage").as_deref(), Some("filter"));
    assert!(letters[0].header("halley-plugin").unwrap_or_default().starts_with("unruly@"), "{letters:?}");
}
