//! Dead letters: listed, and redriven after the cause is fixed.

mod limits;
mod offline;
mod order;
mod trimming;

use std::process::{Command, Output};

use tonic::Code;

use crate::support::child_process::ChildProcess;
use crate::support::comet::{Behaviour, FakeComet, To};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::{ConsumedRecord, kafka};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, folder, unique};

/// Runs `halley dead-letter` with a configuration.
pub struct DeadLetterCli {
    folder: tempfile::TempDir,
    pub topic: String,
    pub dead_letters: String,
    /// The gateways' Redis, if this test owns it.
    _redis: Option<Redis>,
}

impl DeadLetterCli {
    /// A topic with 4 partitions and its dead-letter topic with one.
    pub async fn new(name: &str) -> Self {
        Self::to(name, &[]).await
    }

    /// The same, with settings of the topic of origin.
    async fn to(name: &str, settings: &[(&str, &str)]) -> Self {
        let topic = unique(name);
        kafka().create_topic_with(&topic, 4, settings).await;
        kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
        let redis = Redis::start().await;
        let desk = Self::with(&topic, &gateway(&topic).redis(&redis).toml());
        Self { _redis: Some(redis), ..desk }
    }

    pub fn with(topic: &str, toml: &str) -> Self {
        let folder = folder("letters");
        std::fs::write(folder.path().join("halley.toml"), toml).expect("written");
        Self { folder, topic: topic.to_owned(), dead_letters: format!("{topic}.dead-letter"), _redis: None }
    }

    /// The gateway's consumer group.
    fn group(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("halley.toml")).expect("it is there");
        let line = text.lines().find_map(|line| line.strip_prefix("group = ")).expect("a group");
        line.trim_matches('"').to_owned()
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        let file = self.folder.path().join("halley.toml").display().to_string();
        let all = ["dead-letter", args[0], "--config", &file].into_iter().chain(args[1..].iter().copied());
        all.map(str::to_owned).collect()
    }

    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halley"));
        command.args(self.args(args)).output().expect("the binary runs")
    }

    /// Its output; it must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        text(&output.stdout)
    }

    /// Writes a dead letter as the gateway does, from this partition.
    pub async fn letter(&self, stage: &str, partition: u32, body: &str) {
        self.letter_from(&self.topic, stage, partition, body).await;
    }

    pub async fn letter_from(&self, origin: &str, stage: &str, partition: u32, body: &str) {
        self.letter_with(origin, stage, partition, Some(body), &[]).await;
    }

    async fn letter_with(
        &self,
        origin: &str,
        stage: &str,
        partition: u32,
        body: Option<&str>,
        more: &[(&str, &str)],
    ) {
        let trace: String = body.unwrap_or("none").chars().take(20).collect();
        let (id, partition) = (format!("{origin}/{partition}/{trace}"), partition.to_string());
        let headers = [
            ("trace", &*trace),
            ("halley-message-id", &id),
            ("halley-origin-topic", origin),
            ("halley-origin-partition", &partition),
            ("halley-origin-offset", "7"),
            ("halley-stage", stage),
            ("halley-reason", "No good"),
            ("halley-plugin", "judge@0a1b"),
        ];
        let value = body.map(str::as_bytes);
        kafka().produce_record(&self.dead_letters, Some("key"), value, &[&headers, more].concat()).await;
    }

    /// The bodies in the topic of origin, sorted.
    pub fn redriven(&self) -> Vec<String> {
        let mut bodies: Vec<_> = kafka().read_all(&self.topic).iter().map(body).collect();
        bodies.sort();
        bodies
    }
}

fn body(record: &ConsumedRecord) -> String {
    text(record.value.as_deref().unwrap_or_default())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn refused_messages_are_listed_and_redriven_with_their_id() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("redrive", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let settings = gateway(&topic).redis(&redis);
    let desk = DeadLetterCli::with(&topic, &settings.toml());
    let gateway = settings.start().await;
    comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let id = kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;

    let listed = desk.ok(&["list"]);
    for expected in ["ID ", &id, "deliver", comet.address().as_ref(), "1 dead letter: 1 deliver"] {
        assert!(listed.contains(expected), "`{expected}` is not in:\n{listed}");
    }
    comet.behave(Behaviour::Ok);
    comet.forget();
    let dry = desk.ok(&["redrive", "--dry-run"]);
    assert!(dry.contains(&format!("would write {id} to {topic}")) && dry.contains("1 would be"), "{dry}");
    assert_eq!(kafka().read_all(&topic).len(), 1, "a dry run writes nothing");

    let done = desk.ok(&["redrive"]);
    assert_eq!(done.trim(), format!("1 redriven (1 to {topic})"), "a dry run remembers nothing");
    gateway.wait_until_settled(&topic).await;
    comet.wait_for_deliveries(&[(To::Room("lobby".into()), 4, "hello")]).await;
    assert_eq!(comet.calls()[0].messages, [id]);
    assert_eq!(desk.ok(&["redrive"]).trim(), "0 redriven", "once is enough");
    assert_eq!(kafka().read_all(&topic).len(), 2);
    assert!(desk.ok(&["redrive", "--from-start"]).starts_with("1 redriven"));
}

#[tokio::test]
async fn letters_that_a_filter_excludes_wait_for_another_redrive() {
    let desk = DeadLetterCli::new("filters").await;
    for (stage, body) in [("deliver", "a"), ("decode", "b"), ("deliver", "c"), ("decode", "d")] {
        desk.letter(stage, 3, body).await;
    }
    let decode = ["redrive", "--stage", "decode"];
    assert!(desk.ok(&[&decode[..], &["--limit", "1"]].concat()).starts_with("1 redriven"));
    assert_eq!(desk.redriven(), ["b"]);
    assert!(desk.ok(&decode).contains("1 redriven before, 2 excluded"));
    assert_eq!(desk.redriven(), ["b", "d"]);
    let rest =
        ["redrive", "--reason", "no GOOD", "--plugin", "judge", "--topic", &desk.topic, "--since", "1h"];
    assert!(desk.ok(&rest).starts_with("2 redriven"));
    assert!(desk.ok(&["redrive"]).starts_with("0 redriven"));

    let records = kafka().read_all(&desk.topic);
    let told: Vec<_> = records.iter().map(|r| (r.partition, body(r))).collect();
    assert_eq!(told, ["b", "d", "a", "c"].map(|body| (3, body.to_owned())), "in the partition of origin");
    let own = |name: &'static str, value: &str| (name.into(), Some(value.to_owned().into()));
    let id = format!("{}/3/b", desk.topic);
    let added = [own("halley-attempts", "1"), own("halley-message-id", &id)];
    let (proof, headers) = records[0].headers.split_last().expect("headers");
    assert_eq!(headers, [&[own("trace", "b")][..], &added].concat());
    assert_eq!(&*proof.0, b"halley-proof");
    assert_eq!(records[0].key.as_deref(), Some(&b"key"[..]));
}

#[tokio::test]
async fn the_list_is_filtered_and_complete_as_json() {
    let desk = DeadLetterCli::new("listed").await;
    assert!(desk.ok(&["list"]).contains("no dead letters"));
    assert_eq!(desk.ok(&["list", "--json"]), "");
    desk.letter("filter", 2, "弹幕").await;
    desk.letter("decode", 2, "\u{8}").await;
    let lines = desk.ok(&["list", "--json"]);
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let mut first = lines[0].clone();
    assert!(first["timestamp"].take().as_str().is_some_and(|at| at.starts_with("20")), "{first}");
    assert_eq!(first["origin"], serde_json::json!({ "topic": desk.topic, "partition": 2, "offset": 7 }));
    assert_eq!(
        first["dead_letter"],
        serde_json::json!({ "topic": desk.dead_letters, "partition": 0, "offset": 0 })
    );
    assert_eq!((&first["stage"], &first["plugin"]), (&"filter".into(), &"judge@0a1b".into()));
    assert_eq!(first["value"], serde_json::json!({ "text": "弹幕" }));
    assert_eq!(first["headers"], serde_json::json!([{ "name": "trace", "value": { "text": "弹幕" } }]));
    assert_eq!(lines[1]["value"], serde_json::json!({ "base64": "CA==" }));

    let count = |args: &[&str]| desk.ok(&[&["list", "--json"], args].concat()).lines().count();
    assert_eq!(count(&["--stage", "decode"]), 1);
    assert_eq!(count(&["--limit", "1"]), 1);
    assert_eq!(count(&["--since", "1h"]), 2);
    assert_eq!(count(&["--until", "1h"]), 0);
    assert_eq!(count(&["--topic", "another"]), 0);
    assert_eq!(desk.run(&["list", "--stage", "moon"]).status.code(), Some(2));
    assert_eq!(desk.run(&["list", "--since", "moon"]).status.code(), Some(2));
}

#[tokio::test]
async fn unredrivable_letters_are_reported_and_hold_up_nothing() {
    let desk = DeadLetterCli::new("refused").await;
    kafka().produce_record(&desk.dead_letters, None, Some(b"foreign"), &[]).await;
    desk.letter_from(&desk.dead_letters, "filter", 0, "circle").await;
    desk.letter_from(&format!("{}-gone", desk.topic), "filter", 0, "homeless").await;
    desk.letter("filter", 0, "good").await;
    for redriven in ["1 redriven", "0 redriven"] {
        let output = desk.run(&["redrive", "--allow-topic", &format!("{}-gone", desk.topic)]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert!(out.starts_with(redriven) && out.contains("2 refused, 1 failed"), "{out}");
        for expected in ["no `halley-origin-topic`", "dead-letter topic itself", "-gone` not found"] {
            assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
        }
    }
    assert_eq!(desk.redriven(), ["good"]);
}

#[tokio::test]
async fn an_interrupted_redrive_continues_where_it_stopped() {
    let desk = DeadLetterCli::new("interrupted").await;
    let bodies: Vec<String> = (0..9).map(|n| n.to_string()).collect();
    for body in &bodies {
        desk.letter("deliver", 1, body).await;
    }
    let args = desk.args(&["redrive", "--rate", "1"]);
    let mut slow = ChildProcess::start(env!("CARGO_BIN_EXE_halley"), &args, folder("redrive"))
        .expect("the binary starts");
    let two = async || (desk.redriven().len() >= 2).then_some(());
    eventually("the first records", PATIENCE, two).await;
    slow.signal("INT");
    let status = slow.wait(PATIENCE).await.expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", slow.log());
    assert!(slow.log().contains("run the same command again"), "{}", slow.log());
    let before = desk.redriven();
    assert!(before.len() < bodies.len(), "{before:?}");
    desk.ok(&["redrive"]);
    assert_eq!(desk.redriven(), bodies);
}

#[tokio::test]
async fn a_missing_topic_is_no_failure_and_a_missing_kafka_is() {
    let topic = kafka().topic("missing", 1).await;
    let desk = DeadLetterCli::with(&topic, &gateway(&topic).toml());
    for command in ["list", "redrive"] {
        let output = desk.run(&[command]);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stderr).contains("` not found"), "{output:?}");
    }
    let away = gateway(&topic).set("kafka", "brokers", quoted("127.0.0.1:1")).toml();
    let output = DeadLetterCli::with(&topic, &away).run(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("kafka unreachable at `127.0.0.1:1`; check `[kafka] brokers`"), "{said}");
}
