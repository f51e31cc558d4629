//! A gateway whose log is not read works and stops normally.

use crate::support::child_process::ChildProcess;
use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, free_port, http};

/// Starts the gateway with such a standard error; `$0` is the binary.
const FULL: &str = r#"exec "$0" "$@" 2>/dev/full"#;
/// A pipe whose reader has gone.
const CLOSED: &str = r#"mkfifo pipe; (: <pipe) & exec "$0" "$@" 2>pipe"#;
/// A pipe whose reader is stalled: it is full after 64 KiB.
const STUCK: &str = r#"mkfifo pipe; exec "$0" "$@" 2<>pipe"#;

#[tokio::test]
async fn a_full_disk_under_the_log_stops_nothing() {
    goes_on(FULL, "full", true).await;
}

#[tokio::test]
async fn a_closed_pipe_under_the_log_stops_nothing() {
    goes_on(CLOSED, "closed", true).await;
}

#[tokio::test]
async fn an_unread_log_holds_up_nothing() {
    goes_on(STUCK, "stuck", false).await;
}

/// Delivery continues through an outage of Redis, which logs a lot, and SIGTERM drains.
async fn goes_on(script: &str, name: &str, drops: bool) {
    let (mut redis, comet) = (Redis::start_keeping().await, FakeComet::start().await);
    if !redis.can_stop(name) {
        return;
    }
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic(&format!("log-{name}"), 1).await;
    let (folder, admin) = (folder("log"), format!("127.0.0.1:{}", free_port()));
    let settings = gateway(&topic)
        .redis(&redis)
        .set("log", "level", quoted("trace"))
        .set("admin", "listen", quoted(&admin))
        .set("routing", "cache", "{ exact = \"off\", max_age = \"0s\" }");
    let file = folder.path().join("halley.toml").display().to_string();
    std::fs::write(&file, settings.toml()).expect("writable");
    // A low limit on open files, as in a shell, until the gateway raises it.
    let script = format!("cd {}; ulimit -Sn 64; {script}", folder.path().display());
    let args = ["-c", &script, env!("CARGO_BIN_EXE_halley"), "run", "--config", &file];
    let mut process = ChildProcess::start("sh", &args.map(str::to_owned), folder).expect("the binary starts");
    let ready =
        async || http::get(&admin, "/readyz").await.is_ok_and(|answer| answer.status == 200).then_some(());
    eventually("readiness", PATIENCE, ready).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).expect("it runs");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("Linux");
    let mut files = files.split_whitespace();
    assert_eq!(files.next(), files.next(), "the soft limit is the hard one");

    let mut wanted = Vec::new();
    let mut send = async |bodies: std::ops::Range<usize>| {
        for body in bodies {
            kafka().produce_room(&topic, "lobby", body.to_string()).await;
            wanted.push((To::Room("lobby".to_owned()), 4, body.to_string()));
        }
    };
    send(0..100).await;
    comet.wait_for(100).await;
    redis.stop();
    send(100..200).await;
    redis.restart().await;
    send(200..300).await;
    comet.wait_for(300).await;
    assert_eq!(comet.deliveries(), wanted);
    if drops {
        let metrics = http::get(&admin, "/metrics").await.expect("an answer").body;
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("halley_log_lines_dropped_total "));
        assert_ne!(dropped, Some("0"), "it is counted");
        assert!(dropped.is_some(), "{metrics}");
    }
    process.signal("TERM");
    let ended = process.wait(PATIENCE).await;
    assert_eq!(ended.and_then(|ended| ended.code()), Some(0), "it drains: {}", process.log());
}
