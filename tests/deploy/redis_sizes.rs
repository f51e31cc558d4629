//! What inboxes take in Redis, as the pages say.

use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;

/// How many users get a message. Enough that what Redis keeps for its clients does not count.
const USERS: usize = 2_000;

async fn used_memory(redis: &Redis) -> f64 {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let info: String = redis.run(command).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("Redis says it");
    used.trim().parse().expect("a number")
}

async fn set(redis: &Redis, key: &str, value: usize) {
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg(key).arg(value);
    redis.run::<()>(command).await;
}

/// Bytes per user of a message of 200 bytes for each of so many users who have no inbox yet.
async fn first_message(stream_node_max_bytes: usize) -> f64 {
    let redis = Redis::start().await;
    set(&redis, "stream-node-max-bytes", stream_node_max_bytes).await;
    let topic = kafka().topic("sizes", 1).await;
    let settings = gateway(&topic).redis(&redis).set("routing", "push_keys", quoted("users"));
    let gateway = settings.start().await;
    let users: Vec<String> = (0..USERS).map(|user| format!("user_{user}")).collect();
    let keys: Vec<&str> = users.iter().map(String::as_str).collect();
    let before = used_memory(&redis).await;
    kafka().produce_keys(&topic, None, &keys, "x".repeat(200)).await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(redis.keys("halley:inbox:*").await.len(), USERS);
    (used_memory(&redis).await - before) / USERS as f64
}

#[tokio::test]
async fn a_new_inbox_takes_what_the_pages_say() {
    if !Redis::not_started().can_stop("a_new_inbox_takes_what_the_pages_say") {
        return;
    }
    // 4.4 KB and 1.3 KB; the client's buffers and other versions of Redis may add some.
    let (default, smaller) = (first_message(4096).await, first_message(1024).await);
    assert!((4_200.0..5_000.0).contains(&default), "{default} bytes per inbox");
    assert!((1_100.0..1_900.0).contains(&smaller), "{smaller} bytes per inbox");
}
