//! The producer's trace context goes wherever its message goes, also while the gateway traces nothing.

use halley::message::{Audience, TRACEPARENT, TRACESTATE, encode};
use tonic::Code;

use crate::support::comet::{Behaviour, Dialect, FakeComet, Serves};
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::{ConsumedRecord, kafka};
use crate::support::redis::Redis;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01";
const STATE: &str = "rojo=00f067aa0ba902b7";

pub(super) async fn say(topic: &str, room: &str, body: &str, headers: &[(&str, &str)]) {
    let value = encode(&Audience::Room(room.into()), 4, body.as_bytes());
    kafka().produce_record(topic, Some(room), Some(&value), headers).await;
}

fn context_of(record: &ConsumedRecord) -> (String, String) {
    let header = |name| record.header(name).unwrap_or_default();
    (header(TRACEPARENT), header(TRACESTATE))
}

#[tokio::test]
async fn comets_get_the_trace_context_of_a_message() {
    let redis = Redis::start().await;
    let unary = FakeComet::start().await;
    let stream = FakeComet::start_serving(Dialect::Chatroom, Serves::Streams).await;
    for (n, comet) in [&unary, &stream].into_iter().enumerate() {
        redis.join("lobby", &format!("conn_{n}"), &format!("user_{n}"), comet.address()).await;
    }
    let topic = kafka().topic("trace-comets", 1).await;
    let headers = [(TRACEPARENT, PARENT), (TRACESTATE, STATE)];
    say(&topic, "lobby", "both", &headers).await;
    say(&topic, "lobby", "state without parent", &headers[1..]).await;
    say(&topic, "lobby", "invalid", &[(TRACEPARENT, &PARENT.to_uppercase()), (TRACESTATE, STATE)]).await;
    say(&topic, "lobby", "invalid state", &[(TRACEPARENT, PARENT), (TRACESTATE, "a=1\r\nevil: 1")]).await;
    let gateway = gateway(&topic).redis(&redis).start().await;
    gateway.wait_until_settled(&topic).await;

    let seen = |comet: &FakeComet| comet.calls().into_iter().map(|call| call.trace).collect::<Vec<_>>();
    let none = || (String::new(), String::new());
    let parent = |state: &str| (PARENT.to_owned(), state.to_owned());
    assert_eq!(seen(&unary), [parent(STATE), none(), none(), parent("")]);
    assert_eq!(seen(&stream), [parent(""), none(), none(), parent("")], "`delivery.proto` has no tracestate");
}

#[tokio::test]
async fn merged_messages_get_the_trace_context_that_they_share() {
    let (redis, comet) = (Redis::start().await, FakeComet::start_speaking(Dialect::Goim).await);
    redis.join("same", "conn_1", "user_1", comet.address()).await;
    redis.join("mixed", "conn_2", "user_2", comet.address()).await;
    let topic = kafka().topic("trace-merged", 1).await;
    for (room, contexts) in [("same", [PARENT, PARENT, PARENT]), ("mixed", [PARENT, PARENT, OTHER])] {
        for context in contexts {
            say(&topic, room, "x", &[(TRACEPARENT, context)]).await;
        }
    }
    let settings = gateway(&topic).redis(&redis).set("comets", "dialect", quoted("goim"));
    let gateway = settings.set("comets", "merge_window", quoted("200ms")).start().await;
    gateway.wait_until_settled(&topic).await;

    let calls = comet.calls();
    assert!(calls.iter().any(|call| call.messages.len() > 1), "some are merged: {calls:#?}");
    for call in calls {
        // The offsets tell which messages it has.
        let offset = |id: &String| id.split('/').nth(2).and_then(|offset| offset.parse::<usize>().ok());
        let contexts = [PARENT, PARENT, PARENT, PARENT, PARENT, OTHER];
        let sent: Vec<&str> = call.messages.iter().filter_map(offset).map(|at| contexts[at]).collect();
        let shared = sent.iter().all(|context| *context == sent[0]).then_some(sent[0]);
        assert_eq!(call.trace.0, shared.unwrap_or_default(), "{call:?}");
    }
}

#[tokio::test]
async fn records_about_a_message_have_its_trace_context() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    redis.join("away", "conn_2", "user_2", comet.address()).await;
    redis.offline("user_2").await;
    comet.behave(Behaviour::Fail(Code::InvalidArgument));
    let topic = kafka().topic("trace-records", 1).await;
    for suffix in ["dead-letter", "offline", "archive"] {
        kafka().create_topic(&format!("{topic}.{suffix}"), 1).await;
    }
    let settings = gateway(&topic).redis(&redis).set("archive", "enabled", true);
    let settings = settings.set("archive", "topic", quoted(&format!("{topic}.archive")));
    let settings = settings.set("offline", "default", quoted("store"));
    let (valid, invalid) = ([(TRACEPARENT, PARENT), (TRACESTATE, STATE)], [(TRACEPARENT, "00-zz")]);
    let read = |suffix: &str| kafka().read_all(&format!("{topic}.{suffix}"));
    let contexts = |suffix| read(suffix).iter().map(context_of).collect::<Vec<_>>();
    let passed = (PARENT.to_owned(), STATE.to_owned());
    let none = (String::new(), String::new());

    let stores = settings.clone().start().await;
    for headers in [&valid[..], &invalid] {
        say(&topic, "away", "stored", headers).await;
        say(&topic, "lobby", "refused", headers).await;
    }
    stores.wait_until_settled(&topic).await;
    assert_eq!(contexts("archive"), [passed.clone(), none.clone()]);
    let copy = ("00-zz".to_owned(), String::new());
    assert_eq!(contexts("dead-letter"), [passed.clone(), copy], "a dead letter is a copy of its record");
    stores.sigterm().await;

    let notifies = settings.set("offline", "default", quoted("notify")).start().await;
    for headers in [&valid[..], &invalid] {
        say(&topic, "away", "notified", headers).await;
    }
    notifies.wait_until_settled(&topic).await;
    assert_eq!(contexts("offline"), [passed, none]);
}
