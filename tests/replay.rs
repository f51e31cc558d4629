//! `halley replay`: recorded traffic through a policy, offline.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use halley::message::{Audience, encode};
use serde_json::{Value, json};

use crate::support::folder;
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;

/// A topic with a configuration that filters it for one word, and `halley replay` with it.
struct Desk {
    folder: tempfile::TempDir,
    topic: String,
}

impl Desk {
    async fn new(name: &str) -> Self {
        let topic = kafka().topic(name, 2).await;
        kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
        let filter = Plugin::new("keyword-filter", bundled("keyword_filter"));
        let unruly = Plugin::new("unruly", in_tree("tests/guests/dist/unruly.wasm"));
        let settings = gateway(&topic).plugin(filter.config(&json!({ "words": ["spam"] }))).plugin(unruly);
        let folder = folder("replay");
        std::fs::write(folder.path().join("halley.toml"), settings.toml()).expect("written");
        let wider = json!({ "words": ["spam", "casino"] }).to_string();
        std::fs::write(folder.path().join("wider.json"), wider).expect("written");
        Self { folder, topic }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Replays what the last hour brought through the keyword filter.
    fn run(&self, args: &[&str]) -> Output {
        let (config, plugin) = (self.file("halley.toml"), bundled("keyword_filter").display().to_string());
        self.run_all(
            &[&["--config", &config, "--topic", &self.topic, "--from", "-1h", "--plugin", &plugin], args]
                .concat(),
        )
    }

    fn run_all(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.arg("replay").args(args).output().expect("the binary runs")
    }

    async fn message(&self, topic: &str, body: &str, ago_ms: i64, headers: &[(&str, &str)]) -> String {
        let value = encode(&Audience::Room("lobby".into()), 4, body.as_bytes());
        let at = now_ms() - ago_ms;
        kafka().produce_record_of(topic, Some("lobby"), Some(&value), headers, Some(at)).await
    }
}

fn in_tree(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn bundled(name: &str) -> PathBuf {
    in_tree(&format!("plugins/dist/{name}.wasm"))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("a time")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn found(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {output:?}"))
}

const MINUTE: i64 = 60_000;

#[tokio::test]
async fn a_replay_tells_what_would_change_and_touches_nothing() {
    if !kafka().can_prove("a_replay_tells_what_would_change_and_touches_nothing") {
        return;
    }
    let desk = Desk::new("replay").await;
    desk.message(&desk.topic, "spam of yesterday", 25 * 60 * MINUTE, &[]).await;
    for body in ["hello", "spam", "casino"] {
        desk.message(&desk.topic, body, 10 * MINUTE, &[]).await;
    }
    kafka().produce_record(&desk.topic, None, Some(b"\xff\xff\xff"), &[]).await;

    let same = desk.run(&["--against", "current", "--fail-on-change"]);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    assert!(text(&same.stdout).contains("no decision changes"), "{same:?}");

    let wider = ["--against", "current", "--plugin-config", &desk.file("wider.json")];
    let changed = desk.run(&wider);
    assert_eq!(changed.status.code(), Some(0), "{changed:?}");
    let said = text(&changed.stdout);
    for expected in [
        "4 records",
        "1 of them are not messages",
        "contains `spam`",
        "1 decision changes",
        "passed -> dropped",
        "\"casino\"",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
    }
    let failing = desk.run(&[&wider[..], &["--fail-on-change", "--json"]].concat());
    assert_eq!(failing.status.code(), Some(1));
    let told = found(&failing);
    assert_eq!((&told["records"], &told["complete"], &told["changed"]), (&json!(4), &json!(true), &json!(1)));
    assert_eq!(told["changes"], json!({ "passed -> dropped": 1 }));
    assert_eq!(told["decisions"]["dropped"]["count"], 2);
    assert_eq!(told["against"]["decisions"]["dropped"]["count"], 1);
    assert_eq!(told["examples"][0]["after"], "dropped: contains `casino`");

    let yesterday = desk.run(&["--from", "-2days", "--to", "-1day", "--json"].map(|arg| arg));
    assert_eq!(yesterday.status.code(), Some(2), "--from twice is a mistake: {yesterday:?}");
    assert_eq!(kafka().read_all(&desk.topic).len(), 5, "nothing is written");
    assert!(kafka().read_all(&format!("{}.dead-letter", desk.topic)).is_empty());
    let config = std::fs::read_to_string(desk.file("halley.toml")).expect("there");
    let group = config.lines().find_map(|line| line.strip_prefix("group = ")).expect("a group");
    let group = format!("{}-replay", group.trim_matches('"'));
    assert!(kafka().committed(&group, &desk.topic).await.is_empty(), "nothing is committed");
}

#[tokio::test]
async fn dead_letters_are_replayed_as_what_they_were() {
    if !kafka().can_prove("dead_letters_are_replayed_as_what_they_were") {
        return;
    }
    let desk = Desk::new("replay-letters").await;
    let letters = format!("{}.dead-letter", desk.topic);
    let origin = [
        ("halley-message-id", "push/3/7"),
        ("halley-origin-topic", "push"),
        ("halley-origin-partition", "3"),
        ("halley-origin-offset", "7"),
        ("halley-stage", "filter"),
    ];
    // In no order of time, as dead letters are.
    desk.message(&letters, "fine", 0, &origin).await;
    desk.message(&letters, "casino", 30 * MINUTE, &origin).await;
    desk.message(&letters, "casino of yesterday", 25 * 60 * MINUTE, &origin).await;
    let (config, plugin) = (desk.file("halley.toml"), bundled("keyword_filter").display().to_string());
    let wider = desk.file("wider.json");
    let output = desk.run_all(&[
        "--config",
        &config,
        "--topic",
        &letters,
        "--from",
        "-1h",
        "--to",
        "-5m",
        "--plugin",
        &plugin,
        "--against",
        &plugin,
        "--plugin-config",
        &wider,
        "--json",
    ]);
    let told = found(&output);
    assert_eq!((&told["records"], &told["changed"]), (&json!(1), &json!(0)), "{told:#}");
    let all = desk.run_all(&[
        "--config",
        &config,
        "--topic",
        &letters,
        "--from",
        "-1h",
        "--plugin",
        &plugin,
        "--against",
        "current",
        "--plugin-config",
        &wider,
        "--json",
    ]);
    let told = found(&all);
    assert_eq!((&told["records"], &told["changed"]), (&json!(2), &json!(1)), "{told:#}");
    assert_eq!(told["examples"][0]["id"], "push/3/7");
}

#[tokio::test]
async fn failures_and_mistakes_have_their_codes() {
    if !kafka().can_prove("failures_and_mistakes_have_their_codes") {
        return;
    }
    let desk = Desk::new("replay-codes").await;
    let code = |args: &[&str], code: i32, said: &str| {
        let output = desk.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        let err = text(&output.stderr);
        assert!(err.contains(said), "`{said}` is not in:\n{err}");
    };
    code(&[], 1, "has no records between these times");
    code(&["--to", "2999-01-01"], 2, "is in the future");
    code(&["--to", "-2h"], 2, "is not before");
    code(&["--to", "moon"], 2, "neither a UTC time");
    code(&["--name", "nobody"], 2, "plugin `nobody` is not configured");
    code(&["--against", "/nowhere.wasm"], 2, "/nowhere.wasm");
    code(&["--fail-on-change"], 2, "--against");
    let (config, unruly) =
        (desk.file("halley.toml"), in_tree("tests/guests/dist/unruly.wasm").display().to_string());
    let missing =
        desk.run_all(&["--config", &config, "--topic", "no-such", "--from", "-1h", "--plugin", &unruly]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    assert!(text(&missing.stderr).contains("topic `no-such` not found"), "{missing:?}");

    for body in ["fine", "trap", "fine"] {
        desk.message(&desk.topic, body, 0, &[]).await;
    }
    let args = ["--config", &config, "--topic", &desk.topic, "--from", "-1h", "--plugin", &unruly, "--json"];
    let failed = desk.run_all(&args);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let told = found(&failed);
    assert_eq!(told["decisions"]["failed"]["count"], 1, "{told:#}");
    assert_eq!(told["decisions"]["passed"]["count"], 2, "{told:#}");

    let toml = std::fs::read_to_string(&config).expect("there");
    let brokers = toml.lines().find(|line| line.starts_with("brokers")).expect("brokers");
    let away = toml.replace(brokers, &format!("brokers = {}", quoted("127.0.0.1:1")));
    std::fs::write(&config, away).expect("written");
    code(&[], 1, "kafka unreachable at `127.0.0.1:1`");
}
