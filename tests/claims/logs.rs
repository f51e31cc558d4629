//! Whatever room ids and comets contain: a log line stays one line, and the number of lines is
//! bounded.

use std::process::Command;

use tonic::Code;

use crate::support::child_process::ChildProcess;
use crate::support::comet::{Behaviour, FakeComet};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder};

/// A room id that forges a line, clears the screen, ends a string and reverses the text direction.
const ROOM: &str =
    "lobby\n2026-01-01T00:00:00.000000Z ERROR all is lost\r\u{1b}[2J\0\u{9b}31m\u{202e}\u{2028}x";

fn is_harmless(text: &str) -> bool {
    !text.contains(|c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}".contains(c)))
}

#[tokio::test]
async fn a_room_s_id_forges_no_line_of_log_or_explain() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join(ROOM, "conn_1", "user\u{1b}[2J_1", comet.address()).await;
    comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let topic = kafka().topic("forged", 1).await;
    let settings = gateway(&topic).redis(&redis).set("log", "level", quoted("debug"));
    let (files, log) = (folder("forged"), folder("forged-log"));
    let file = files.path().join("halley.toml");
    std::fs::write(&file, settings.toml()).expect("written");
    let file = file.display().to_string();

    for format in ["text", "json"] {
        let args = ["run", "--config", &file, "--log-format", format].map(str::to_owned);
        let folder = tempfile::tempdir_in(log.path()).expect("a folder");
        let mut running =
            ChildProcess::start(env!("CARGO_BIN_EXE_halley"), &args, folder).expect("the binary starts");
        kafka().produce_room(&topic, ROOM, "hello").await;
        let settled =
            async || running.log().lines().find(|line| line.contains("message settled")).map(str::to_owned);
        let line = eventually("the message to be settled", PATIENCE, settled).await;
        assert!(is_harmless(&running.log()), "{}", running.log());
        assert!(
            !running.log().lines().any(|line| line.contains("ERROR all") && line.starts_with("2026-01-01"))
        );
        let room =
            if format == "text" { r"room=lobby\n2026-01-01T" } else { r#""room":"lobby\n2026-01-01T"# };
        assert!(line.contains(room) && line.contains(r"\u{1b}[2J") | line.contains(r"\u001b[2J"), "{line}");
        // A gateway that is killed instead keeps the next one waiting until its session ends.
        running.signal("TERM");
        assert!(running.wait(PATIENCE).await.is_some_and(|ended| ended.success()), "{}", running.log());
    }

    let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
    let output = command.args(["explain", "--config", &file, "--room", &ROOM.replace('\0', "")]).output();
    let output = output.expect("the binary runs");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && is_harmless(&shown), "{output:?}");
    assert!(shown.starts_with("to        room lobby\\n2026-01-01"), "{shown}");
    assert!(!shown.lines().any(|line| line.starts_with("2026-01-01")), "{shown}");
}

#[tokio::test]
async fn broadcasts_to_dead_comets_make_few_and_short_lines() {
    let (good, bad) = (FakeComet::start().await, FakeComet::start().await);
    bad.behave(Behaviour::Fail(Code::InvalidArgument));
    let topic = kafka().topic("dead-comets", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let mut settings = gateway(&topic).node(&good).node(&bad);
    // Nothing listens there.
    for port in 2..=60 {
        settings = settings.node_at(format!("127.0.0.1:{port}"));
    }
    let settings = settings.set("delivery", "request_timeout", quoted("500ms"));
    let gateway = settings.set("delivery", "delivery_timeout", quoted("1s")).start().await;
    for number in 0..30 {
        kafka().produce_everyone(&topic, 0, number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(good.count(), 30);
    let lines = gateway.log_lines();
    let loud: Vec<_> =
        lines.iter().filter(|line| line["level"] == "ERROR" || line["level"] == "WARN").collect();
    assert!(loud.len() < 40, "{} lines: {gateway:?}", loud.len());
    let longest = lines.iter().map(|line| line.to_string().len()).max();
    assert!(longest < Some(6_000), "{longest:?}: {gateway:?}");
    let letters = kafka().read_all(&format!("{topic}.dead-letter"));
    assert_eq!(letters.len(), 30);
    let reason = letters[0].header("halley-reason").expect("a reason");
    assert!(reason.contains("; and 55 more comets") && reason.len() < 1_100, "{reason}");
    let comets = letters[0].header("halley-failed-comets").expect("comets");
    assert_eq!(comets.split(',').count(), 60, "all of them are due: {comets}");
}
