//! Client-side caching with real servers that change, are flushed, refuse it, and disappear.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use redis::Value;

use super::testing::{RedisCluster, RedisSentinel, RedisServer, eventually};
use super::*;

/// What was reported, in order.
#[derive(Default)]
struct Reports(Mutex<Vec<String>>);

impl KeyObserver for Reports {
    fn key_changed(&self, key: &[u8]) {
        self.0.lock().push(String::from_utf8_lossy(key).into_owned());
    }

    fn terms_ended(&self, cause: ForgetCause) {
        self.0.lock().push(format!("({})", cause.as_str()));
    }
}

impl Reports {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

fn tracking_client(url: &str) -> (RedisClient, Arc<Reports>) {
    let (config, reports) =
        (Config { url: url.to_owned(), ..Config::default() }, Arc::new(Reports::default()));
    let metrics = Metrics::register(&mut Registry::default());
    let client = RedisClient::with_tracking(&config, metrics, "room:").expect("a good URL");
    client.observe(reports.clone());
    (client, reports)
}

async fn read(client: &RedisClient, key: &str) -> TrackedValue {
    let members = redis::cmd("SSCAN").arg(key).arg(0).take();
    client.run_tracked("test", vec![members]).await.expect("Redis answers").remove(0)
}

async fn term(client: &RedisClient, key: &str) -> LeaseTerm {
    read(client, key).await.1.expect("it is tracked")
}

#[tokio::test]
async fn a_change_is_reported_before_a_later_question_is_answered() {
    let server = RedisServer::start().await;
    let ((client, reports), writer) = (tracking_client(&server.config().url), server.client());
    let write = async |words: &[&str]| testing::run(&writer, words).await;
    for (words, changes) in [
        (["SADD", "room:a", "x"], 1),
        (["SADD", "room:a", "x"], 0),
        (["SREM", "room:a", "x"], 1),
        (["SADD", "room:b", "x"], 0),
        (["SADD", "other:a", "x"], 0),
        (["RENAME", "room:b", "room:a"], 1),
        (["PEXPIRE", "room:a", "1"], 1),
    ] {
        let (_, term) = (read(&client, "other:a").await, term(&client, "room:a").await);
        let before = Instant::now();
        write(&words).await;
        client.confirm_leases().await;
        assert!(term.covers(before) && term.is_valid(Instant::now()), "{words:?}");
        assert_eq!(reports.take(), vec!["room:a"; changes], "{words:?}");
    }
    // Pushes between the replies of long pipelines.
    let scans: Vec<Cmd> =
        (0..500).map(|n| redis::cmd("SSCAN").arg(format!("room:{n}")).arg(0).take()).collect();
    for _ in 0..4 {
        let changes = async {
            for n in 0..500 {
                write(&["SADD", &format!("room:{n}"), &fastrand::u64(..).to_string()]).await;
            }
        };
        let (replies, ()) = tokio::join!(client.run_tracked("test", scans.clone()), changes);
        let replies = replies.expect("Redis answers");
        assert!(replies.iter().all(|(reply, term)| matches!(reply, Value::Array(_)) && term.is_some()));
    }
}

#[tokio::test]
async fn what_ends_a_term_is_reported() {
    let mut server = RedisServer::start().await;
    let (client, reports) = tracking_client(&server.config().url);
    let before = term(&client, "room:a").await;
    server.run(&["FLUSHALL"]).await;
    client.confirm_leases().await;
    assert!(before.is_over());
    assert_eq!(reports.take(), ["(flushed)"]);
    let before = term(&client, "room:a").await;
    server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    eventually("the end of the term", async || before.is_over()).await;
    assert_eq!(reports.take(), ["(disconnected)"]);
    let before = term(&client, "room:a").await;
    server.kill();
    eventually("the end of the term", async || before.is_over()).await;
    assert_eq!(reports.take(), ["(disconnected)"]);
    server.restart().await;
    eventually("Redis to answer", async || client.answers().await.is_ok()).await;
    assert!(term(&client, "room:a").await.is_valid(Instant::now()));
}

#[tokio::test]
async fn a_lease_is_renewed_while_the_server_answers() {
    let server = RedisServer::start().await;
    let (client, _) = tracking_client(&server.config().url);
    let term = term(&client, "room:a").await;
    tokio::time::timeout(lease::LEASE * 2, client.keep_leases()).await.expect_err("it never ends");
    assert!(term.is_valid(Instant::now()));
    let pause = u32::try_from((lease::LEASE * 2).as_millis()).expect("it is short").to_string();
    server.run(&["CLIENT", "PAUSE", &pause, "ALL"]).await;
    tokio::time::timeout(lease::LEASE, client.keep_leases()).await.expect_err("it never ends");
    tokio::time::sleep(lease::LEASE / 2).await;
    assert!(!term.is_valid(Instant::now()) && !term.is_over(), "silent, but perhaps only slow");
    client.confirm_leases().await;
    eventually("an answer", async || {
        client.confirm_leases().await;
        term.is_valid(Instant::now())
    })
    .await;
}

#[tokio::test]
async fn without_permission_nothing_is_tracked_until_it_is_granted() {
    let server = RedisServer::start().await;
    server.run(&["ACL", "SETUSER", "ann", "on", ">pass", "~*", "+@read", "+ping"]).await;
    let url = server.config().url.replace("redis://", "redis://ann:pass@");
    let (client, _) = tracking_client(&url);
    assert!(read(&client, "room:a").await.1.is_none());
    let problem = client.tracking_problem().expect("it is refused");
    assert!(problem.contains("`+client|tracking +client|caching`"), "{problem}");
    server.run(&["ACL", "SETUSER", "ann", "+client|tracking"]).await;
    tokio::time::timeout(tracking::RETRY_INTERVAL * 2, client.keep_leases())
        .await
        .expect_err("it never ends");
    assert!(read(&client, "room:a").await.1.is_none(), "one of both is not enough");
    server.run(&["ACL", "SETUSER", "ann", "+client|caching"]).await;
    let renewed =
        async { drop(tokio::time::timeout(tracking::RETRY_INTERVAL * 2, client.keep_leases()).await) };
    renewed.await;
    assert_eq!(client.tracking_problem(), None);
    let term = term(&client, "room:a").await;
    server.run(&["ACL", "SETUSER", "ann", "-client|caching"]).await;
    assert!(
        read(&client, "room:a").await.1.is_none() && term.is_over(),
        "it is refused from one read to the next"
    );
    assert!(client.tracking_problem().is_some());
}

#[tokio::test]
async fn a_server_without_resp3_is_read_without_tracking() {
    let server = RedisServer::start_with(&["--rename-command", "HELLO", ""]).await;
    let (client, _) = tracking_client(&server.config().url);
    assert!(read(&client, "room:a").await.1.is_none());
    assert!(client.tracking_problem().is_some());
}

#[tokio::test]
async fn a_demoted_primary_ends_the_term() {
    let sentinel = RedisSentinel::start().await;
    let (client, _) = tracking_client(&sentinel.url());
    let term = term(&client, "room:a").await;
    sentinel.failover().await;
    let renewing = async { client.keep_leases().await };
    tokio::select! {
        () = renewing => {}
        () = eventually("the end of the term", async || term.is_over()) => {}
    }
    assert!(self::term(&client, "room:a").await.is_valid(Instant::now()));
}

#[tokio::test]
async fn moved_slots_end_the_terms_of_their_old_node() {
    let cluster = RedisCluster::start().await;
    let (client, reports) = tracking_client(&cluster.url());
    let (moving, slot) = ("room:a", cluster.slot("room:a").await);
    let from = cluster.owner(moving).await;
    let to = (from + 1) % 3;
    let other = loop {
        let key = format!("room:{}", fastrand::u64(..));
        if cluster.owner(&key).await == to {
            break key;
        }
    };
    let (moved, stays) = (term(&client, moving).await, term(&client, &other).await);
    cluster.begin_move(slot, from, to).await;
    assert!(read(&client, moving).await.1.is_none(), "it is answered by ASK: nobody reports its changes");
    cluster.end_move(slot, from, to).await;
    // Nobody reads this room, so that no redirection tells.
    tokio::select! {
        () = client.keep_leases() => {}
        () = eventually("the end of the term", async || moved.is_over()) => {}
    }
    assert!(!stays.is_over());
    assert!(reports.take().contains(&"(slots-moved)".to_owned()));
    let term = term(&client, moving).await;
    cluster.run::<i64>(redis::Cmd::sadd(moving, "x")).await;
    eventually("a report of the new node", async || reports.take().contains(&moving.to_owned())).await;
    assert!(term.is_valid(Instant::now()));
}
