//! The client with a real server that stops, restarts, hangs and refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use redis::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::connection::PIPELINE_LIMIT;
use super::testing::{RedisServer, client, eventually, run};
use super::*;

fn refused(url: &str) -> String {
    let config = Config { url: url.to_owned(), ..Config::default() };
    let metrics = Metrics::register(&mut Registry::default());
    RedisClient::new(&config, metrics).expect_err("a bad URL").to_string()
}

#[test]
fn only_bad_urls_are_refused_and_passwords_stay_secret() {
    assert!(refused("memory://").contains("names no server"));
    assert!(refused("http://user:hunter2@host").contains("expected redis://"));
    for url in ["http://user:hunter2@host", "redis://user:hunter2@host:port", "hunter2"] {
        assert!(!refused(url).contains("hunter2"), "{}", refused(url));
    }
    for (url, endpoint) in [
        ("rediss://user:hunter2@example.com:6380/3", "rediss://example.com:6380/3"),
        ("redis+cluster://user:hunter2@a:1,b", "redis+cluster://a:1,b"),
        ("redis+sentinel://u:hunter2@a,b:1/main?sentinel_password=hunter2", "redis+sentinel://a,b:1/main"),
    ] {
        let client = client(&Config { url: url.to_owned(), ..Config::default() });
        assert_eq!(client.endpoint(), endpoint);
        let debug = format!("{client:?}");
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}

#[tokio::test]
async fn user_password_and_database_are_used() {
    let server = RedisServer::start().await;
    server.run(&["ACL", "SETUSER", "halley", "on", ">p@ss", "~*", "+@all"]).await;
    let url = server.config().url.replace("redis://", "redis://halley:p%40ss@") + "/5";
    let client5 = client(&Config { url: url.clone(), ..server.config() });
    run(&client5, &["SET", "key", "five"]).await;
    assert_eq!(run(&client5, &["ACL", "WHOAMI"]).await, Value::BulkString(b"halley".to_vec()));
    assert_eq!(server.run(&["GET", "key"]).await, Value::Nil);

    let wrong = client(&Config { url: url.replace("p%40ss", "other"), ..server.config() });
    let unavailable = wrong.ping().await.expect_err("the wrong password");
    assert!(unavailable.to_string().contains("check user and password"), "{unavailable}");
}

#[tokio::test]
async fn thousands_of_commands_are_answered_in_order() {
    let server = RedisServer::start().await;
    let count = PIPELINE_LIMIT * 2 + 7;
    let echo = |number: usize| redis::cmd("ECHO").arg(number).take();
    let replies = server.client().run_scan("test", (0..count).map(echo).collect()).await.expect("answers");
    let expected: Vec<_> = (0..count).map(|n| Value::BulkString(n.to_string().into_bytes())).collect();
    assert!(replies == expected, "{} replies", replies.len());
    assert_eq!(server.client().run_small("test", Vec::new()).await, Ok(vec![]));
}

#[tokio::test]
async fn a_refused_command_is_one_reply_among_others() {
    let server = RedisServer::start().await;
    server.run(&["SET", "text", "x"]).await;
    let commands =
        vec![redis::cmd("SMEMBERS").arg("text").take(), redis::cmd("NONSENSE"), redis::cmd("PING")];
    let replies = server.client().run_small("test", commands).await.expect("answers");
    assert_eq!(refusal(&replies[0]), Some(Refusal::WrongType));
    assert!(matches!(refusal(&replies[1]), Some(Refusal::Other(said)) if said.contains("unknown command")));
    assert_eq!(refusal(&replies[2]), None);
}

#[tokio::test]
async fn a_server_that_cannot_serve_now_is_unavailable() {
    let server = RedisServer::start().await;
    let client = server.client();
    run(&client, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let write = || vec![redis::cmd("SET").arg("a").arg("b").take()];
    let readonly = client.run_small("test", write()).await.expect_err("a replica");
    assert!(readonly.to_string().contains("READONLY"), "{readonly}");
    assert_eq!(client.ping().await, Err(readonly), "readiness says so, though a replica answers");
    run(&client, &["REPLICAOF", "NO", "ONE"]).await;
    client.run_small("test", write()).await.expect("a primary again");
    client.ping().await.expect("healthy again");

    run(&client, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = client.run_small("test", write()).await.expect_err("no memory");
    assert!(full.problem().contains("OOM"), "{full}");
}

#[tokio::test]
async fn a_silent_server_costs_one_timeout_and_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("bound"));
    let timeout = Duration::from_millis(100);
    let config = Config { url, connect_timeout: timeout, response_timeout: timeout, ..Config::default() };
    let start = Instant::now();
    client(&config).ping().await.expect_err("accepted, but never answered");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_hanging_server_is_used_again_when_it_answers() {
    let server = RedisServer::start().await;
    let config = Config { response_timeout: Duration::from_millis(100), ..server.config() };
    let client = client(&config);
    client.ping().await.expect("answers");
    server.run(&["CLIENT", "PAUSE", "700", "ALL"]).await;
    let slow = client.ping().await.expect_err("paused");
    assert!(slow.to_string().contains("raise the timeouts"), "{slow}");
    assert_eq!(client.last_problem(), Some(slow));
    eventually("answers again", async || client.ping().await.is_ok()).await;
    assert_eq!(client.last_problem(), None);
}

#[tokio::test]
async fn a_closed_idle_connection_goes_unnoticed() {
    let server = RedisServer::start().await;
    let client = server.client();
    client.ping().await.expect("answers");
    server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    client.ping().await.expect("a new connection is made at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_an_outage_calls_fail_fast_and_recover() {
    let mut server = RedisServer::start().await;
    let client = Arc::new(server.client());
    client.ping().await.expect("answers");
    server.kill();
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..200 {
        let client = client.clone();
        callers.spawn(async move { client.ping().await });
    }
    while let Some(outcome) = callers.join_next().await {
        outcome.expect("no panic").expect_err("killed");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    server.restart().await;
    let back = Instant::now();
    eventually("answers again", async || client.ping().await.is_ok()).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
}
