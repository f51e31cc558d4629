//! The client with a real primary that sentinels monitor and replace.

use std::time::{Duration, Instant};

use redis::Value;

use super::testing::redis_nodes::{command, soon};
use super::testing::{RedisSentinel, RedisServer, client, client_of, eventually};
use super::*;

fn set(value: &str) -> Vec<Cmd> {
    vec![command(&["SET", "key", value])]
}

async fn value_at(set: &RedisSentinel, server: usize) -> Option<String> {
    set.servers()[server].ask(&["GET", "key"]).await.ok()
}

#[tokio::test]
async fn a_primary_that_dies_is_replaced_and_written_to() {
    let mut sentinels = RedisSentinel::start().await;
    let client = client_of(&sentinels.url());
    client.ping().await.expect("there is a primary");
    client.run_small("test", set("before")).await.expect("answers");
    let dead = sentinels.kill_primary().await;
    let unavailable = client.run_small("test", set("meanwhile")).await.expect_err("nobody is the primary");
    assert!(unavailable.to_string().starts_with("Redis at redis+sentinel://127.0.0.1:"), "{unavailable}");
    eventually("the other is written to", async || client.run_small("test", set("after")).await.is_ok())
        .await;
    assert_eq!(value_at(&sentinels, 1 - dead).await.as_deref(), Some("after"));
    eventually("all is well", async || client.ping().await.is_ok()).await;
    assert_eq!(client.last_problem(), None);

    // The dead one returns as a replica.
    sentinels.server(dead).start().await;
    soon("a replica", async || {
        let facts = sentinels.servers()[dead].facts(&["INFO", "replication"]).await;
        facts.get("role").is_some_and(|role| role == "slave").then_some(())
    })
    .await;
    client.run_small("test", set("at last")).await.expect("the primary is the same");
    assert_eq!(value_at(&sentinels, 1 - dead).await.as_deref(), Some("at last"));
}

#[tokio::test]
async fn writes_follow_a_failover() {
    let sentinels = RedisSentinel::start().await;
    let client = client_of(&sentinels.url());
    client.run_small("test", set("before")).await.expect("answers");
    let epoch = client.scan_epoch();
    sentinels.failover().await;
    let primary = sentinels.primary().await;
    eventually("the new primary is written to", async || {
        let _ = client.run_small("test", set("after")).await;
        value_at(&sentinels, primary).await.as_deref() == Some("after")
    })
    .await;
    eventually("both connections lead there", async || client.ping().await.is_ok()).await;
    assert!(client.scan_epoch() > epoch, "another server answers");
}

#[tokio::test]
async fn an_unresponsive_primary_is_replaced() {
    let sentinels = RedisSentinel::start().await;
    let timeout = Duration::from_millis(300);
    let config = Config {
        url: sentinels.url(),
        connect_timeout: timeout,
        response_timeout: timeout,
        ..Config::default()
    };
    let client = client(&config);
    client.run_small("test", set("before")).await.expect("answers");
    let primary = sentinels.primary().await;
    sentinels.servers()[primary].freeze();
    let start = Instant::now();
    client.run_small("test", set("meanwhile")).await.expect_err("silence");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    eventually("the other is written to", async || client.run_small("test", set("after")).await.is_ok())
        .await;
    assert_eq!(value_at(&sentinels, 1 - primary).await.as_deref(), Some("after"));
    sentinels.servers()[primary].thaw();
}

#[tokio::test]
async fn one_living_sentinel_suffices() {
    let mut sentinels = RedisSentinel::start().await;
    sentinels.sentinel(0).kill();
    sentinels.sentinel(1).freeze();
    let client = client_of(&sentinels.url());
    client.run_small("test", set("x")).await.expect("the third one knows");
    sentinels.sentinel(2).kill();
    client.run_small("test", set("y")).await.expect("a connection needs no sentinel");

    sentinels.sentinel(1).kill();
    let said = client_of(&sentinels.url()).ping().await.expect_err("no sentinel").to_string();
    assert!(said.contains("sentinel 127.0.0.1:"), "{said}");
}

#[tokio::test]
async fn an_unknown_service_is_reported() {
    let mut sentinels = RedisSentinel::start().await;
    // A sentinel's answer is more informative than another one's silence.
    sentinels.sentinel(0).kill();
    let client = client_of(&sentinels.url_of("mian"));
    let said = client.ping().await.expect_err("a wrong name").to_string();
    assert!(said.contains("knows no `mian`") && said.contains("the service's name"), "{said}");

    let server = RedisServer::start().await;
    let url = server.config().url.replace("redis://", "redis+sentinel://") + "/main";
    let said = client_of(&url).ping().await.expect_err("no sentinel").to_string();
    assert!(said.contains("unknown command") && said.contains("check the sentinels"), "{said}");
}

#[tokio::test]
async fn database_and_both_logins_are_used_and_kept_secret() {
    let mut sentinels = RedisSentinel::start().await;
    for server in sentinels.servers() {
        server.tell::<()>(&["ACL", "SETUSER", "halley", "on", ">p@ss", "~*", "+@all"]).await;
    }
    for index in 0..3 {
        let sentinel = sentinels.sentinel(index);
        sentinel.tell::<()>(&["ACL", "SETUSER", "watcher", "on", ">w@ss", "+@all"]).await;
    }
    let url = sentinels.url().replace("//", "//halley:p%40ss@")
        + "/5?sentinel_username=watcher&sentinel_password=w%40ss";
    let client = client_of(&url);
    let commands = vec![set("five").remove(0), command(&["ACL", "WHOAMI"])];
    let replies = client.run_small("test", commands).await;
    assert_eq!(replies, Ok(vec![Value::Okay, Value::BulkString(b"halley".to_vec())]));
    assert_eq!(sentinels.run::<Option<String>>(command(&["GET", "key"])).await, None);
    assert_eq!(client.endpoint(), sentinels.url() + "/5");

    for wrong in [url.replace("p%40ss", "hunter2"), url.replace("w%40ss", "hunter2")] {
        let said = client_of(&wrong).ping().await.expect_err("a wrong password").to_string();
        assert!(said.contains("check user and password") && !said.contains("hunter2"), "{said}");
    }
}
