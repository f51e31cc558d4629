//! The gateway's own spans, at a collector that speaks OTLP over HTTP.

use halley::message::{TRACEPARENT, TRACESTATE};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tonic::Code;

use crate::support::collector::{Collector, Reply, attribute};
use crate::support::comet::{Behaviour, FakeComet};
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq, folder, free_port, repository, secret};
use crate::traces::context::say;

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00";
const INVALID: &str = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";

/// A gateway that sends spans there.
fn tracing(topic: &str, endpoint: &str, sample_ratio: f64) -> Gateway {
    let settings = gateway(topic).set("traces", "endpoint", quoted(endpoint));
    settings.set("traces", "sample_ratio", sample_ratio).set("traces", "timeout", quoted("300ms"))
}

async fn dropped(gateway: &RunningGateway, reason: &str) -> f64 {
    let series = format!("halley_spans_dropped_total{{reason=\"{reason}\"}}");
    gateway.metric(&series).await.expect("the series exists from the start")
}

fn root<'a>(spans: &'a [Span], offset: &str) -> &'a Span {
    let has_offset =
        |span: &&Span| attribute(&span.attributes, "messaging.kafka.offset").as_deref() == Some(offset);
    spans.iter().find(has_offset).unwrap_or_else(|| panic!("no span of {offset}: {spans:#?}"))
}

fn children<'a>(spans: &'a [Span], of: &Span) -> Vec<&'a str> {
    let children = spans.iter().filter(|span| span.parent_span_id == of.span_id);
    children
        .map(|span| {
            assert_eq!(span.trace_id, of.trace_id);
            assert!(span.start_time_unix_nano >= of.start_time_unix_nano, "{span:?} of {of:?}");
            assert!(span.end_time_unix_nano <= of.end_time_unix_nano, "{span:?} of {of:?}");
            &*span.name
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of(span: &Span, key: &str) -> String {
    attribute(&span.attributes, key).unwrap_or_default()
}

/// What the conventions for messaging ask for.
fn assert_attributes(span: &Span, topic: &str, group: &str) {
    for (key, expected) in [
        ("messaging.system", "kafka"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", topic),
        ("messaging.destination.partition.id", "0"),
        ("messaging.consumer.group.name", group),
        ("halley.outcome", "delivered"),
    ] {
        assert_eq!(of(span, key), expected, "{key}");
    }
}

#[tokio::test]
async fn a_sampled_message_has_a_span_with_its_stages() {
    let (redis, comet, collector) =
        (Redis::start().await, FakeComet::start().await, Collector::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    redis.join("half", "conn_1", "user_1", comet.address()).await;
    redis.join("half", "conn_2", "user_2", comet.address()).await;
    redis.join("refused", "conn_3", "user_3", comet.address()).await;
    redis.offline("user_2").await;
    comet.refuse("refused", Code::InvalidArgument);
    let topic = kafka().topic("spans", 1).await;
    kafka().create_topic(&format!("{topic}.dead-letter"), 1).await;
    let guard = Plugin::new("duplicate-guard", repository("plugins/dist/duplicate_guard.wasm"))
        .config(&json!({ "duplicates": { "within": "60s" } }));
    let folder = folder("traces");
    let headers = folder.path().join("headers");
    secret(&headers, "Authorization: Bearer of-the-story\n");
    let sampled = [(TRACEPARENT, SAMPLED), (TRACESTATE, "rojo=1")];
    say(&topic, "lobby", "sampled", &sampled).await;
    say(&topic, "lobby", "unsampled", &[(TRACEPARENT, UNSAMPLED)]).await;
    say(&topic, "lobby", "invalid", &[(TRACEPARENT, INVALID)]).await;
    say(&topic, "lobby", "without", &[]).await;
    say(&topic, "half", "half", &sampled).await;
    say(&topic, "refused", "refused", &sampled).await;
    let settings = tracing(&topic, collector.url(), 0.0).redis(&redis).plugin(guard);
    let settings = settings.set("traces", "headers_file", quoted(&headers.display().to_string()));
    let gateway = settings.start().await;
    gateway.wait_until_settled(&topic).await;
    // The rest is sent when it stops.
    assert!(gateway.sigterm().await.success(), "{gateway:?}");

    let spans = collector.spans();
    let roots: Vec<&Span> = spans.iter().filter(|span| span.name == format!("process {topic}")).collect();
    assert_eq!(roots.len(), 3, "one for each sampled message: {spans:#?}");
    let (lobby, half, refused) = (root(&spans, "0"), root(&spans, "4"), root(&spans, "5"));
    assert_eq!(children(&spans, lobby), ["filter", "guard", "resolve", "deliver"]);
    assert_eq!(children(&spans, half), ["filter", "guard", "resolve", "deliver", "absent"]);
    assert_eq!(children(&spans, refused), ["filter", "guard", "resolve", "deliver", "dead-letter"]);
    assert_eq!(
        (hex(&lobby.trace_id), hex(&lobby.parent_span_id)),
        (SAMPLED[3..35].into(), SAMPLED[36..52].into())
    );
    assert_attributes(lobby, &topic, gateway.group());
    assert_eq!(
        (of(half, "halley.outcome"), of(refused, "error.type")),
        ("partly-delivered".into(), "dead-lettered".into())
    );
    let status = refused.status.as_ref().expect("it failed");
    assert!(status.code == 2 && status.message.contains("InvalidArgument"), "{status:?}");
    let resolve = spans.iter().find(|span| span.name == "resolve").expect("it is there");
    assert!(of(resolve, "messaging.batch.message_count").parse::<u32>().is_ok_and(|n| (1..=6).contains(&n)));
    assert_eq!(collector.resource("service.name").as_deref(), Some("halley"));
    assert_eq!(collector.header("authorization").as_deref(), Some("Bearer of-the-story"));

    // Comets go on from the gateway's span, or else from the producer's.
    let contexts: Vec<_> = comet.calls().into_iter().map(|call| call.trace).collect();
    let passed =
        |span: &Span| (format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)), "rojo=1".to_owned());
    let of_lobby = [passed(lobby), (UNSAMPLED.into(), "".into()), Default::default(), Default::default()];
    assert!(of_lobby.iter().all(|context| contexts.contains(context)), "{contexts:?}");
    assert!(contexts.contains(&passed(half)), "{contexts:?}");
}

#[tokio::test]
async fn a_collector_that_fails_holds_up_no_message() {
    let (redis, comet, collector) =
        (Redis::start().await, FakeComet::start().await, Collector::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("spans-failing", 1).await;
    let gateway = tracing(&topic, collector.url(), 1.0).redis(&redis).start().await;
    let problems = [
        (Reply::Hangs, "failed", "no success within 300ms"),
        (Reply::Fails(503), "failed", "503"),
        (Reply::Fails(401), "failed", "it answered 401"),
        (Reply::Talks(100 * 1024), "failed", "its reply has more than 65536 bytes"),
        (Reply::Rejects, "rejected", "the story wants none"),
    ];
    for (reply, reason, problem) in problems {
        collector.reply(reply.clone());
        let (before, requests) = (dropped(&gateway, reason).await, collector.requests());
        comet.behave(Behaviour::Ok);
        say(&topic, "lobby", "x", &[]).await;
        gateway.wait_until_settled(&topic).await;
        // process, resolve, deliver
        eventually_eq(format!("{reply:?}: {reason}"), before + 3.0, async || dropped(&gateway, reason).await)
            .await;
        let ready = gateway.get("/readyz").await;
        assert!(ready.status == 200 && ready.body.contains(problem), "{reply:?}: {}", ready.body);
        let attempts = collector.requests() - requests;
        assert_eq!(attempts > 1, reply == Reply::Fails(503), "{reply:?}: {attempts} attempts");
    }
    let lines = gateway.log_lines();
    let said = lines
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|m| m.contains("did not take spans")));
    assert_eq!(said.count(), 1, "one line in ten seconds: {gateway:?}");

    collector.reply(Reply::Takes);
    say(&topic, "lobby", "x", &[]).await;
    collector.wait_for_messages(1).await;
    eventually("the warning to end", PATIENCE, async || {
        (!gateway.get("/readyz").await.body.contains("traces:")).then_some(())
    })
    .await;
    eventually_eq("exported", Some(3.0), async || gateway.metric("halley_spans_exported_total").await).await;

    // A slow collector does not hold up the end either.
    collector.reply(Reply::Hangs);
    say(&topic, "lobby", "x", &[]).await;
    gateway.wait_until_settled(&topic).await;
    assert!(gateway.sigterm().await.success(), "{gateway:?}");
}

#[tokio::test]
async fn a_collector_that_is_down_holds_up_no_message() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("spans-down", 1).await;
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let gateway = tracing(&topic, &nowhere, 1.0).redis(&redis).start().await;
    for _ in 0..50 {
        say(&topic, "lobby", "x", &[]).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 50);
    eventually_eq("dropped spans", 150.0, async || dropped(&gateway, "failed").await).await;
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 200 && ready.body.contains("Connection refused"), "{}", ready.body);
}
