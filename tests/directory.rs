//! Redis as the directory: oversized rooms, missing permissions.

use std::process::Command;

use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually};

/// Fills a room without a round trip for each member.
async fn fill(redis: &Redis, room: &str, members: usize, comet: &FakeComet) {
    const SCRIPT: &str = "for n = 1, tonumber(ARGV[2]) do
        local id, user = KEYS[1] .. '-' .. n, KEYS[1] .. '-user' .. n
        redis.call('SADD', 'room:connections:' .. KEYS[1], id)
        redis.call('HSET', 'connection:info:' .. id, 'comet_id', ARGV[1], 'user_id', user)
        redis.call('SET', 'user:online:' .. user, id)
    end";
    let mut command = redis::cmd("EVAL");
    command.arg(SCRIPT).arg(1).arg(room).arg(comet.address().as_str()).arg(members);
    redis.run::<()>(command).await;
}

#[tokio::test]
async fn a_large_room_is_delivered_and_a_huge_one_blocks_nothing() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    // Read with one command, both would take several times the timeout.
    fill(&redis, "large", 60_000, &comet).await;
    fill(&redis, "huge", 120_000, &comet).await;
    let topic = kafka().topic("large", 1).await;
    let gateway = gateway(&topic)
        .redis(&redis)
        .set("redis", "scan_timeout", quoted("40ms"))
        .set("routing", "max_room_size", 100_000)
        .start()
        .await;
    let mut huge = Vec::new();
    for number in 0..3 {
        huge.push(kafka().produce_room(&topic, "huge", format!("huge {number}")).await);
        kafka().produce_room(&topic, "lobby", format!("lobby {number}")).await;
    }
    kafka().produce_room(&topic, "large", "everyone").await;
    gateway.wait_until_settled(&topic).await;
    let heard = comet.deliveries();
    assert!(heard.contains(&(To::Room("large".into()), 4, "everyone".into())), "{heard:?}");
    assert_eq!(heard.len(), 4, "and three for the lobby: {heard:?}");
    let letters = kafka().read_all(&format!("{topic}.dead-letter"));
    let header =
        |name: &'static str| letters.iter().map(move |letter| letter.header(name).unwrap_or_default());
    assert!(header("halley-message-id").eq(huge), "{letters:?}");
    assert!(header("halley-stage").all(|stage| stage == "resolve"));
    let reason = "room `huge` has more than 100000 members; see `[routing] max_room_size`";
    assert!(header("halley-reason").all(|told| told == reason), "{letters:?}");
    assert_eq!(gateway.metric("halley_dead_letters_total{stage=\"resolve\"}").await, Some(3.0));
    assert_eq!(gateway.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn missing_rights_in_redis_are_named_by_readiness_and_check() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    redis.join("lobby", "conn_2", "user_2", comet.address()).await;
    redis.offline("user_2").await;
    let allow = async |keys: &[&str]| {
        let mut command = redis::cmd("ACL");
        command.arg(&["SETUSER", "gateway", "on", ">secret", "+@all", "resetkeys"]).arg(keys);
        redis.run::<()>(command).await;
    };
    allow(&["~room:*", "~connection:*", "~user:*"]).await;
    let url = redis.url().replace("redis://", "redis://gateway:secret@");
    let topic = kafka().topic("rights", 1).await;
    let settings = gateway(&topic).set("redis", "url", quoted(&url));
    let gateway = settings.start_unready().await;
    let check = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.args(["check", "--connect", "--config"]).arg(gateway.file());
        command.output().expect("the binary runs")
    };
    let not_ready = async |rule: &str| {
        eventually(format!("/readyz to name {rule}"), PATIENCE, async || {
            let answer = gateway.get("/readyz").await;
            (answer.status == 503 && answer.body.contains(rule)).then_some(())
        })
        .await;
    };
    not_ready("~halley:* +set").await;
    let refused = check().await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("~halley:* +set"), "{refused:?}");
    allow(&["~halley:*", "~room:*", "~user:*"]).await;
    not_ready("~connection:info:* +hmget").await;

    kafka().produce_room(&topic, "lobby", "hello").await;
    allow(&["~halley:*", "~room:*", "~connection:*", "~user:*"]).await;
    gateway.wait_until_ready().await;
    gateway.wait_until_settled(&topic).await;
    comet.wait_for_deliveries(&[(To::Room("lobby".into()), 4, "hello")]).await;
    assert_eq!(redis.stream("halley:inbox:user_2").await.len(), 1);
    assert!(check().await.status.success());

    // Permissions that are revoked while records need them.
    allow(&["~room:*", "~connection:*", "~user:*"]).await;
    kafka().produce_room(&topic, "lobby", "again").await;
    not_ready("store_offline: NOPERM").await;
    allow(&["~halley:*", "~room:*", "~connection:*", "~user:*"]).await;
    gateway.wait_until_ready().await;
    gateway.wait_until_settled(&topic).await;
}
