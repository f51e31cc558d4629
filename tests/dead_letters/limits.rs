//! Limits of the dead-letter topic and of topics of origin: sizes and ages.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use halley::message::{Audience, encode};
use tonic::Code;

use super::{DeadLetterCli, text};
use crate::support::comet::{Behaviour, FakeComet, To};
use crate::support::gateway::{RunningGateway, gateway};
use crate::support::kafka::{ConsumedRecord, kafka};
use crate::support::redis::Redis;

/// A topic with one partition and a gateway, a comet with its room, and a dead-letter topic with
/// custom settings.
pub struct RefusingTopic {
    pub redis: Redis,
    pub comet: FakeComet,
    pub gateway: RunningGateway,
    pub desk: DeadLetterCli,
}

impl RefusingTopic {
    pub async fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let (redis, comet) = (Redis::start().await, FakeComet::start().await);
        redis.join("lobby", "conn_1", "user_1", comet.address()).await;
        let topic = kafka().topic(name, 1).await;
        kafka().create_topic_with(&format!("{topic}.dead-letter"), 1, settings).await;
        let config = gateway(&topic).redis(&redis);
        let desk = DeadLetterCli::with(&topic, &config.toml());
        Self { redis, comet, gateway: config.start().await, desk }
    }

    /// Has the comet refuse `count` messages at once, each for its own room, which the gateway reads
    /// together.
    async fn refuse_together(&self, count: usize, produce: impl AsyncFn(&str)) {
        self.comet.behave(Behaviour::Fail(Code::InvalidArgument));
        for n in 0..count {
            let (room, connection) = (format!("room_{n}"), format!("conn_{n}"));
            self.redis.join(&room, &connection, "user", self.comet.address()).await;
        }
        self.gateway.signal("STOP");
        for n in 0..count {
            produce(&format!("room_{n}")).await;
        }
        self.gateway.signal("CONT");
    }

    /// Log lines about records that had to wait or lost their value.
    fn troubles(&self) -> Vec<serde_json::Value> {
        let mut lines = self.gateway.log_lines();
        let waiting = "holding records, retrying until it succeeds";
        lines.retain(|line| line["message"] == waiting || line["message"] == LEFT_OUT);
        lines
    }

    /// The dead letters, after the gateway has settled everything.
    pub async fn letters(&self) -> Vec<ConsumedRecord> {
        self.gateway.wait_until_settled(&self.desk.topic).await;
        kafka().read_all(&self.desk.dead_letters)
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

const DAY: i64 = 24 * 3_600_000;

const LEFT_OUT: &str = "a dead letter is too large for its topic and is written without a part; raise the topic's `max.message.bytes`";

#[tokio::test]
async fn letters_that_fit_one_by_one_keep_their_values() {
    if !kafka().can_prove("letters_that_fit_one_by_one_keep_their_values") {
        return;
    }
    let refusing = RefusingTopic::start("batched", &[("max.message.bytes", "200000")]).await;
    let topic = &refusing.desk.topic;
    for (count, size) in [(6, 150_000), (20, 50_000)] {
        let body = vec![b'x'; size];
        refusing
            .refuse_together(count, async |room| drop(kafka().produce_room(topic, room, &body).await))
            .await;
    }
    let letters = refusing.letters().await;
    let sizes = letters.iter().map(|letter| letter.value.as_ref().map_or(0, |value| value.len()));
    assert_eq!(sizes.clone().filter(|size| *size > 150_000).count(), 6, "{:?}", sizes.collect::<Vec<_>>());
    assert_eq!(sizes.filter(|size| (50_000..60_000).contains(size)).count(), 20);
    assert_eq!(letters.len(), 26, "no duplicates");
    assert_eq!(refusing.troubles(), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn an_old_letter_does_not_affect_its_batch() {
    if !kafka().can_prove("an_old_letter_takes_nothing_from_those_beside_it") {
        return;
    }
    let refusing = RefusingTopic::start("ages", &[("message.timestamp.before.max.ms", "3600000")]).await;
    let (topic, young, old) = (&refusing.desk.topic, now() - 60_000, now() - 2 * DAY);
    let produce = async |room: &str| {
        let value = encode(&Audience::Room(room.into()), 4, b"news");
        let time = if room.ends_with(['0', '3', '4']) { old } else { young };
        kafka().produce_record_of(topic, Some(room), Some(&value), &[], Some(time)).await;
    };
    refusing.refuse_together(6, produce).await;
    let letters = refusing.letters().await;
    let kept = letters.iter().filter(|letter| letter.timestamp_ms == Some(young)).count();
    assert_eq!((letters.len(), kept), (6, 3), "{letters:?}");
    let told: BTreeSet<_> =
        letters.iter().filter_map(|letter| letter.header("halley-origin-timestamp")).collect();
    assert_eq!(told, BTreeSet::from([young.to_string(), old.to_string()]));
    assert_eq!(refusing.troubles(), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn a_letter_without_its_value_is_not_redriven_and_a_tombstone_is() {
    let desk = DeadLetterCli::new("valueless").await;
    let left_out = [("halley-value-left-out", "300021 bytes: too large")];
    desk.letter_with(&desk.topic, "deliver", 2, None, &left_out).await;
    desk.letter_with(&desk.topic, "decode", 1, None, &[]).await;
    desk.letter("deliver", 3, "whole").await;

    let listed = desk.ok(&["list"]);
    assert!(listed.contains("No good; its value was left out (300021 bytes: too large)"), "{listed}");
    let json = desk.ok(&["list", "--json"]);
    let told = json.lines().filter(|line| line.contains(r#""value_left_out":"300021 bytes: too large""#));
    assert_eq!(told.count(), 1, "{json}");

    let where_it_stands =
        format!("its value was left out (300021 bytes: too large); it may still stand at {}/2/7", desk.topic);
    for (args, count) in [(&["redrive", "--dry-run"][..], 2), (&["redrive"], 2), (&["redrive"], 0)] {
        let output = desk.run(args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        let last = out.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("{count} ")) && last.contains("1 refused"), "{out}");
        assert!(said.contains(&where_it_stands), "{said}");
    }
    let records = kafka().read_all(&desk.topic);
    let written: Vec<_> = records.iter().map(|r| (r.partition, r.value.as_deref())).collect();
    assert_eq!(written, [(1, None), (3, Some(&b"whole"[..]))]);
}

#[tokio::test]
async fn letters_too_old_for_their_topic_are_restamped() {
    if !kafka().can_prove("letters_that_their_topic_finds_too_old_are_redriven_with_the_time_of_now") {
        return;
    }
    let desk = DeadLetterCli::to("aged", &[("message.timestamp.before.max.ms", "3600000")]).await;
    let (old, young) = ((now() - 2 * DAY).to_string(), (now() - 60_000).to_string());
    let bodies: Vec<String> = (0..300).map(|n| format!("{n:03}")).collect();
    for body in &bodies {
        let time = if body.ends_with('7') { &young } else { &old };
        let more = [("halley-origin-timestamp", &**time)];
        desk.letter_with(&desk.topic, "deliver", 1, Some(body), &more).await;
    }
    let begin = now();
    let done = desk.ok(&["redrive"]);
    let counts = format!("300 redriven (300 to {}), 270 of these with the current time", desk.topic);
    assert_eq!(done.trim(), counts);
    assert_eq!(desk.redriven(), bodies);
    for record in kafka().read_all(&desk.topic) {
        let told = record.header("halley-origin-timestamp");
        if super::body(&record).ends_with('7') {
            assert_eq!((record.timestamp_ms.map(|at| at.to_string()), told), (Some(young.clone()), None));
        } else {
            assert!(record.timestamp_ms.is_some_and(|at| at >= begin), "{record:?}");
            assert_eq!(told, Some(old.clone()));
        }
    }
    assert_eq!(desk.ok(&["redrive"]).trim(), "0 redriven");
}

#[tokio::test]
async fn a_letter_too_large_for_its_origin_is_refused_and_holds_up_nothing() {
    if !kafka().can_prove("a_letter_too_large_for_its_origin_is_refused_and_holds_up_nothing") {
        return;
    }
    let desk = DeadLetterCli::to("shrunk", &[("max.message.bytes", "200000")]).await;
    let body = |letter: char, size| String::from(letter).repeat(size);
    for (letter, size) in [('a', 150_000), ('b', 300_000), ('c', 150_000), ('d', 150_000)] {
        desk.letter("deliver", 1, &body(letter, size)).await;
    }
    let output = desk.run(&["redrive"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert!(out.starts_with("3 redriven") && out.contains("1 refused"), "{out}");
    let refused = format!("{}/0/1 was not redriven: topic `{}` refused it: ", desk.dead_letters, desk.topic);
    assert!(said.contains(&refused), "{said}");
    assert!(desk.redriven() == ['a', 'c', 'd'].map(|letter| body(letter, 150_000)));
}

#[tokio::test]
async fn a_letter_too_large_for_its_topic_is_kept_without_its_value() {
    if !kafka().can_prove("a_letter_too_large_for_its_topic_is_kept_without_its_value") {
        return;
    }
    let refusing = RefusingTopic::start("large", &[("max.message.bytes", "200000")]).await;
    let topic = &refusing.desk.topic;
    refusing.comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let value = encode(&Audience::Room("lobby".into()), 4, &[b'x'; 300_000]);
    let id = kafka().produce_record(topic, Some("lobby"), Some(&value), &[("trace", "t1")]).await;
    let letters = refusing.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    // Not null, which would be a deletion in a compacted topic.
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"lobby"[..]), Some(&b""[..])));
    let told = ["trace", "halley-message-id", "halley-origin-topic", "halley-origin-offset", "halley-stage"];
    let told = told.map(|name| letter.header(name).unwrap_or_default());
    assert_eq!(told, ["t1", &id, topic, "0", "deliver"]);
    let left_out = letter.header("halley-value-left-out").unwrap_or_default();
    assert!(left_out.starts_with(&format!("{} bytes, sha256 ", value.len())), "{left_out}");
    let listed = refusing.desk.ok(&["list"]);
    assert!(listed.contains(&id) && listed.contains("1 dead letter: 1 deliver"), "{listed}");
    assert_eq!(refusing.gateway.wait_for_log(LEFT_OUT).await["level"], "ERROR");

    refusing.comet.behave(Behaviour::Ok);
    refusing.comet.forget();
    kafka().produce_room(topic, "lobby", "next").await;
    refusing.comet.wait_for_deliveries(&[(To::Room("lobby".into()), 4, "next")]).await;
    assert_eq!(refusing.letters().await.len(), 1);
}

#[tokio::test]
async fn a_letter_too_old_for_its_topic_keeps_its_time_in_a_header() {
    if !kafka().can_prove("a_letter_too_old_for_its_topic_keeps_its_time_in_a_header") {
        return;
    }
    let refusing = RefusingTopic::start("old", &[("message.timestamp.before.max.ms", "3600000")]).await;
    let topic = &refusing.desk.topic;
    refusing.comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    let old = now - 2 * 24 * 3_600_000;
    let value = encode(&Audience::Room("lobby".into()), 4, b"news");
    let id = kafka().produce_record_of(topic, Some("lobby"), Some(&value), &[], Some(old)).await;
    let letters = refusing.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((letters[0].header("halley-message-id"), &letters[0].value), (Some(id.clone()), &Some(value)));
    assert_eq!(letters[0].header("halley-origin-timestamp"), Some(old.to_string()));
    assert!(letters[0].timestamp_ms.is_some_and(|written| written >= now), "{letters:?}");

    let listed: serde_json::Value =
        serde_json::from_str(refusing.desk.ok(&["list", "--json"]).trim()).expect("one line of JSON");
    let when = listed["timestamp"].as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
    assert_eq!(when, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(old as u64)), "{listed}");
    assert!(refusing.desk.ok(&["list", "--since", "1d"]).contains("no dead letters"));
    assert!(refusing.desk.ok(&["list", "--since", "3d", "--until", "1d"]).contains(&id));

    refusing.comet.behave(Behaviour::Ok);
    refusing.comet.forget();
    assert!(refusing.desk.ok(&["redrive"]).starts_with("1 redriven"));
    refusing.comet.wait_for_deliveries(&[(To::Room("lobby".into()), 4, "news")]).await;
    let times: Vec<_> = kafka().read_all(topic).iter().map(|record| record.timestamp_ms).collect();
    assert_eq!(times, [Some(old); 2], "redriven with its own time");
}
