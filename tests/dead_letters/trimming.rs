//! Dead letters that their topic accepts only in part, or not at all.

use halley::message::{Audience, encode};
use tonic::Code;

use super::limits::RefusingTopic;
use super::text;
use crate::support::comet::{Behaviour, To};
use crate::support::kafka::kafka;

#[tokio::test]
async fn oversized_letters_are_trimmed_in_steps() {
    if !kafka().can_prove("what_does_not_fit_is_cut_in_steps_and_holds_up_nothing") {
        return;
    }
    let refusing = RefusingTopic::start("cut", &[("max.message.bytes", "20000")]).await;
    let topic = &refusing.desk.topic;
    let long = "k".repeat(30_000);
    let with_key = kafka().produce_record(topic, Some(&long), Some(b"\xff"), &[("trace", "t1")]).await;
    let headers = [("long", &*long), ("trace", "t2")];
    let with_headers = kafka().produce_record(topic, Some("key"), Some(b"\xff"), &headers).await;
    kafka().produce_room(topic, "lobby", "next").await;
    refusing.comet.wait_for_deliveries(&[(To::Room("lobby".into()), 4, "next")]).await;
    let letters = refusing.letters().await;
    assert_eq!(letters.len(), 2, "{letters:?}");
    let note = |at: usize, name: &str| letters[at].header(name).unwrap_or_default();

    assert_eq!((letters[0].key.as_deref(), letters[0].value.as_deref()), (None, Some(&b""[..])));
    assert_eq!((note(0, "halley-message-id"), note(0, "trace")), (with_key, "t1".to_owned()));
    assert!(note(0, "halley-value-left-out").starts_with("1 bytes, sha256 a8100ae6"), "{letters:?}");
    let digest = "30000 bytes, sha256 ";
    assert!(note(0, "halley-key-left-out").starts_with(digest), "{letters:?}");
    assert_eq!((letters[1].key.as_deref(), note(1, "halley-message-id")), (None, with_headers));
    assert!(note(1, "halley-headers-left-out").starts_with("2 headers, 30"), "{letters:?}");
    assert_eq!((note(1, "trace"), note(1, "halley-stage")), (String::new(), "decode".to_owned()));
    let series =
        ["value", "key", "headers"].map(|part| format!("halley_dead_letters_cut_total{{part=\"{part}\"}}"));
    for (series, count) in series.iter().zip([2.0, 2.0, 1.0]) {
        assert_eq!(refusing.gateway.metric(series).await, Some(count), "{series}");
    }

    let refused = refusing.desk.run(&["redrive"]);
    let said = text(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("its key was left out (30000 bytes"),
        "{refused:?}"
    );
    assert!(said.contains("its headers were left out (2 headers, 30"), "{said}");
}

#[tokio::test]
async fn a_permanently_refused_letter_is_settled_and_counted() {
    if !kafka().can_prove("a_letter_that_is_refused_for_good_is_settled_counted_and_told") {
        return;
    }
    let refusing = RefusingTopic::start("lost", &[("max.message.bytes", "200")]).await;
    let topic = &refusing.desk.topic;
    let id = kafka().produce_record(topic, Some("lobby"), Some(b"junk"), &[]).await;
    refusing.comet.behave(Behaviour::Fail(Code::InvalidArgument));
    kafka().produce_room(topic, "lobby", "refused").await;
    assert_eq!(refusing.letters().await.len(), 0);
    let lost = "the dead-letter topic permanently refused a letter: the record is settled and lost";
    let line = refusing.gateway.wait_for_log(lost).await;
    assert_eq!((&line["level"], &line["id"], &line["offset"]), (&"ERROR".into(), &id.into(), &0.into()));
    assert_eq!(refusing.gateway.metric("halley_dead_letters_lost_total").await, Some(2.0));
    assert_eq!(refusing.gateway.metric("halley_messages_total{outcome=\"lost\"}").await, Some(2.0));
}

#[tokio::test]
async fn a_compacted_topic_keeps_letters_without_a_key_by_their_id() {
    if !kafka().can_prove("a_compacted_topic_keeps_letters_without_a_key_by_their_id") {
        return;
    }
    let refusing = RefusingTopic::start("compacted", &[("cleanup.policy", "compact")]).await;
    let topic = &refusing.desk.topic;
    let value = encode(&Audience::Room("lobby".into()), 4, b"news");
    refusing.comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let mut ids = Vec::new();
    for key in [None, Some("lobby"), None] {
        ids.push(kafka().produce_record(topic, key, Some(&value), &[]).await);
    }
    let letters = refusing.letters().await;
    let mut keys: Vec<_> = letters.iter().map(|l| text(l.key.as_deref().unwrap_or_default())).collect();
    // Only letters of one key keep their order.
    keys.sort_by_key(|key| ids.iter().position(|id| id == key).unwrap_or(1));
    assert_eq!(keys, [&*ids[0], "lobby", &*ids[2]]);
    refusing.comet.behave(Behaviour::Ok);
    refusing.comet.forget();
    assert!(refusing.desk.ok(&["redrive"]).starts_with("3 redriven"));
    refusing.comet.wait_for(3).await;
    let mut back: Vec<_> = kafka().read_all(topic).into_iter().skip(3).map(|record| record.key).collect();
    back.sort();
    assert_eq!(back, [None, None, Some("lobby".into())], "as they were");
}
