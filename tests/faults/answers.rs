//! Comets that answer that one client does not accept messages, and comets that are slower than
//! their load.

use std::time::Duration;

use tonic::Code;

use crate::support::comet::{Behaviour, Dialect, FakeComet, To};
use crate::support::gateway::{RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::peers::{PeerComet, Stack};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, resident_kib};

/// What a connection received by PUSH, in order.
fn pushed(comet: &FakeComet, key: &str) -> Vec<String> {
    let calls = comet.calls().into_iter().filter(|call| !call.refused);
    let here =
        calls.filter(|call| matches!(&call.to, To::Keys(keys) if keys.iter().any(|other| other == key)));
    here.flat_map(|call| call.deliveries())
        .map(|(_, body)| String::from_utf8_lossy(&body).into_owned())
        .collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

async fn breaker_is_closed(gateway: &RunningGateway, comet: &FakeComet) -> bool {
    let series = format!("halley_comet_breaker_open{{comet=\"{}\"}}", comet.address());
    gateway.metric(&series).await == Some(0.0)
}

/// goim's comet answers `Unknown` when the queue of one client of a `PushMsg` is full.
#[tokio::test]
async fn a_client_that_stops_reading_blocks_no_other() {
    const EACH: usize = 20;
    let (redis, comet) = (Redis::start().await, FakeComet::start_speaking(Dialect::Goim).await);
    for (connection, user) in [("a", "user_a"), ("stuck", "user_s"), ("b", "user_b")] {
        redis.join("lobby", connection, user, comet.address()).await;
    }
    comet.refuse("stuck", Code::Unknown);
    let topic = kafka().topic("stuck", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let settings = gateway(&topic).redis(&redis).node(&comet);
    let gateway = settings.set("comets", "dialect", quoted("goim")).start().await;

    for number in numbers(EACH) {
        kafka().produce_keys(&topic, None, &["a", "stuck", "b"], number.clone()).await;
        kafka().produce_room(&topic, "lobby", format!("room {number}")).await;
        kafka().produce_everyone(&topic, 0, format!("all {number}")).await;
    }
    gateway.wait_until_settled(&topic).await;

    for healthy in ["a", "b"] {
        assert_eq!(pushed(&comet, healthy), numbers(EACH), "{healthy}: in order, each once; {comet:?}");
    }
    let bodies: Vec<String> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    for kind in ["room", "all"] {
        let of_kind: Vec<_> =
            bodies.iter().filter_map(|body| body.strip_prefix(kind)).map(str::trim).collect();
        assert_eq!(of_kind, numbers(EACH), "{kind}");
    }
    assert!(breaker_is_closed(&gateway, &comet).await, "{gateway:?}");
    assert_eq!(kafka().read_all(&dead_letters).len(), 0);
    assert_eq!(redis.stream("halley:inbox:user_s").await.len(), EACH, "what the client did not take is kept");
    assert_eq!(redis.stream("halley:inbox:user_a").await.len(), 0);
    let not_taken = format!("halley_comet_not_taken_total{{comet=\"{}\"}}", comet.address());
    assert_eq!(gateway.metric(&not_taken).await, Some(EACH as f64));
}

/// The same with servers that share no code with the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_from_another_grpc_stack_is_an_answer() {
    let (go, core) = tokio::join!(PeerComet::start(Stack::GrpcGo), PeerComet::start(Stack::GrpcCore));
    for comet in [go, core].into_iter().flatten() {
        let redis = Redis::start().await;
        redis.join("lobby", "conn_1", "user_1", comet.address()).await;
        let topic = kafka().topic("other-stacks", 1).await;
        let gateway = gateway(&topic)
            .redis(&redis)
            .set("comets", "dialect", quoted("goim"))
            .set("comets", "breaker_failures", 1)
            .set("comets", "breaker_window", quoted("0s"))
            .start()
            .await;
        comet.behave(Duration::ZERO, Some((Code::Unknown, "signal channel full, msg dropped"))).await;
        for number in numbers(3) {
            kafka().produce_keys(&topic, None, &["conn_1"], number).await;
        }
        gateway.wait_until_settled(&topic).await;
        assert_eq!(comet.calls().len(), 3, "nothing is tried again: {comet:?}");
        comet.behave(Duration::ZERO, None).await;
        kafka().produce_keys(&topic, None, &["conn_1"], "again").await;
        gateway.wait_until_settled(&topic).await;
        assert_eq!(comet.calls().len(), 4, "{comet:?}");
        let series = format!("halley_comet_breaker_open{{comet=\"{}\"}}", comet.address());
        assert_eq!(gateway.metric(&series).await, Some(0.0), "{gateway:?}");
        assert_eq!(redis.stream("halley:inbox:user_1").await.len(), 3);
    }
}

#[tokio::test]
async fn a_status_for_one_connection_affects_only_that_one() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    // Unimplemented is gRPC's own answer to an unknown method, never one about a connection.
    let codes: Vec<Code> = (1..=16).map(Code::from).filter(|code| *code != Code::Unimplemented).collect();
    redis.join("lobby", "a", "user_a", comet.address()).await;
    redis.join("lobby", "b", "user_b", comet.address()).await;
    for code in &codes {
        redis.join("lobby", &format!("stuck-{code:?}"), &format!("user-{code:?}"), comet.address()).await;
        comet.refuse(&format!("stuck-{code:?}"), *code);
    }
    let topic = kafka().topic("statuses", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let gateway = gateway(&topic)
        .redis(&redis)
        .set("delivery", "request_timeout", quoted("1s"))
        .set("delivery", "delivery_timeout", quoted("1s"))
        .start()
        .await;
    for (number, code) in codes.iter().enumerate() {
        let stuck = format!("stuck-{code:?}");
        kafka().produce_keys(&topic, None, &["a", &stuck, "b"], number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;

    for healthy in ["a", "b"] {
        assert_eq!(
            pushed(&comet, healthy),
            numbers(codes.len()),
            "{healthy}: in order, each once; {comet:?}"
        );
    }
    assert!(breaker_is_closed(&gateway, &comet).await, "{gateway:?}");
    let refused = kafka().read_all(&dead_letters).len();
    let mut kept = 0;
    for code in &codes {
        kept += redis.stream(&format!("halley:inbox:user-{code:?}")).await.len();
    }
    assert_eq!((refused, kept), (7, 8), "refused for good, or kept for who could not be reached");
}

/// A backlog that is read faster than the comet accepts it.
#[tokio::test]
async fn a_backlog_waits_for_a_comet_that_keeps_up() {
    const RECORDS: usize = 600;
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    comet.behave(Behaviour::Delay(Duration::from_millis(1)));
    let topic = kafka().topic("backlog", 1).await;
    let dead_letters = format!("{topic}.dead-letter");
    kafka().create_topic(&dead_letters, 1).await;
    let sent = (0..RECORDS).map(|number| kafka().produce_room(&topic, "lobby", number.to_string()));
    futures_util::future::join_all(sent).await;
    let gateway = gateway(&topic)
        .redis(&redis)
        .set("comets", "queue", 50)
        .set("delivery", "max_in_flight", 100_000)
        .start()
        .await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries().len(), RECORDS);
    assert_eq!(redis.stream("halley:inbox:user_1").await.len(), 0, "nothing became unreachable");
    assert_eq!(kafka().read_all(&dead_letters).len(), 0);
    let waited = format!("halley_comet_queue_full_total{{comet=\"{}\"}}", comet.address());
    assert!(gateway.metric(&waited).await.is_some_and(|times| times > 0.0), "the queue was full");
}

/// A gateway that cannot open another file cannot connect, which is not the comet's failure.
#[tokio::test]
async fn a_lack_of_files_is_reported_and_opens_no_breaker() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("files", 1).await;
    let gateway = gateway(&topic)
        .redis(&redis)
        .set("delivery", "delivery_timeout", quoted("60s"))
        .set("comets", "breaker_failures", 1)
        .set("comets", "breaker_window", quoted("0s"))
        .start()
        .await;
    let limit = |files: &str| {
        let pid = gateway.pid().to_string();
        let mut set = std::process::Command::new("prlimit");
        set.args(["--pid", &pid, &format!("--nofile={files}:")]);
        assert!(set.status().expect("prlimit of util-linux").success());
    };
    limit("10");
    kafka().produce_room(&topic, "lobby", "patience").await;
    let told = async || {
        let lines = gateway.log_lines();
        let about =
            |line: &&serde_json::Value| line.to_string().contains("this process is out of files or ports");
        lines.iter().find(about).cloned()
    };
    let line = eventually("an error about files", PATIENCE, told).await;
    assert_eq!(line["level"], "ERROR", "{line}");
    limit("1024");
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.deliveries(), [(To::Room("lobby".into()), 4, "patience".to_owned())]);
    let ready = gateway.get("/readyz").await;
    assert!(ready.status == 200 && ready.body.contains("LimitNOFILE"), "{}", ready.body);
    let opened = gateway.log_lines().iter().any(|line| line.to_string().contains("its breaker is open"));
    assert!(!opened, "{gateway:?}");
}

/// Comets that accept connections but read nothing, while large messages for all of them are queued.
#[tokio::test]
async fn a_message_queued_for_many_comets_is_held_once() {
    const COMETS: usize = 40;
    const ROOMS: usize = 8;
    const BODY: usize = 900_000;
    let mut listeners = Vec::new();
    for _ in 0..COMETS {
        listeners.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
    }
    let address = |listener: &tokio::net::TcpListener| listener.local_addr().expect("bound").to_string();
    let addresses: Vec<String> = listeners.iter().map(address).collect();
    let nodes: Vec<String> = addresses.iter().map(|address| quoted(address)).collect();
    let topic = kafka().topic("large", 1).await;
    let gateway = gateway(&topic)
        .set("routing", "rooms", quoted("every-comet"))
        .set("comets", "nodes", format!("[{}]", nodes.join(", ")))
        .set("delivery", "request_timeout", quoted("60s"))
        .set("delivery", "delivery_timeout", quoted("60s"))
        .set("delivery", "shutdown_grace", quoted("1s"))
        .start()
        .await;
    let before = resident_kib(gateway.pid());
    for room in 0..ROOMS {
        kafka().produce_room(&topic, &format!("room-{room}"), "x".repeat(BODY)).await;
    }
    for address in &addresses {
        let waiting = format!("halley_comet_queued_messages{{comet=\"{address}\"}}");
        eventually(format!("{ROOMS} messages to wait for {address}"), PATIENCE, async || {
            (gateway.metric(&waiting).await == Some(ROOMS as f64)).then_some(())
        })
        .await;
    }
    let pending = gateway.metric("halley_comets_pending_bytes").await.expect("a gauge");
    assert!((pending as usize) < ROOMS * (BODY + 1000), "each message once: {pending}");
    // One copy per call would be 288 MB. Records, messages and prefetched data are a few times 7 MB.
    let grown = resident_kib(gateway.pid()).saturating_sub(before);
    assert!(grown < 120_000, "{grown} KiB for {ROOMS} messages of {BODY} bytes to {COMETS} comets");
    gateway.kill();
}
