//! Comets that answer, and say that one client does not take messages.

use tonic::Code;

use crate::support::comet::{Dialect, FakeComet, To};
use crate::support::gateway::{RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;

/// What a connection got by PUSH, in order.
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
async fn a_client_that_stops_reading_takes_nothing_from_the_others() {
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
    let gateway = settings.set("comets", "dialect", quoted("goim")).set("comets", "lanes", 1).start().await;

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

#[tokio::test]
async fn a_status_for_one_connection_is_about_that_connection() {
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
        .set("comets", "lanes", 1)
        .set("delivery", "timeout", quoted("1s"))
        .set("delivery", "give_up_after", quoted("1s"))
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
