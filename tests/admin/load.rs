//! Clients that try to block others: connections, unread responses, look-ups in Redis.

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::admin::{refused, status_of, with_a_policy};
use crate::support::comet::FakeComet;
use crate::support::gateway::{RunningGateway, gateway, quoted};
use crate::support::http;
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually};

/// Opens connections that send these bytes, and read nothing.
async fn hold(address: &str, connections: usize, sent: &str) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).await.expect("the listener is there");
        // It may be closed already.
        let _ = stream.write_all(sent.as_bytes()).await;
        held.push(stream);
    }
    held
}

async fn assert_answers(gateway: &RunningGateway, address: &str) {
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = http::get(address, path).await.unwrap_or_else(|e| panic!("{e}; {gateway:?}"));
        assert_eq!(answer.status, 200, "{address}{path}");
    }
}

#[tokio::test]
async fn held_connections_do_not_block_probes() {
    let settings = with_a_policy("held").await.set("admin", "probe_listen", quoted("127.0.0.1:0"));
    let gateway = settings.start().await;
    let probes = gateway.wait_for_log("admin is listening for probes").await["address"].clone();
    let (admin, probes) = (gateway.admin(), probes.as_str().expect("an address"));

    let half_sent = hold(admin, 100, "GET /metrics HTTP/1.1\r\nHost: local").await;
    assert_answers(&gateway, admin).await;
    let idle = hold(admin, 100, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_answers(&gateway, admin).await;
    let deaf = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    let deaf = hold(admin, 100, &deaf).await;
    assert_answers(&gateway, admin).await;
    assert_answers(&gateway, probes).await;
    let of_probes = hold(probes, 100, "GET").await;
    assert_answers(&gateway, probes).await;
    drop((half_sent, idle, deaf, of_probes));

    assert!(refused(&gateway, "evicted").await >= 200.0);
    assert_eq!(http::get(probes, "/v1/plugins").await.expect("an answer").status, 404, "probes only");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    for address in [admin, probes] {
        let status = status_of(address, preface).await;
        assert!(status == 0 || status == 400, "{status}: HTTP/2 is not spoken");
    }
}

#[tokio::test]
async fn route_look_ups_are_limited() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    if !redis.can_stop("look_ups_of_routes_take_turns") {
        return;
    }
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("turns", 1).await;
    let settings = gateway(&topic).redis(&redis).set("routing.cache", "presence_max_age", quoted("1h"));
    let gateway = settings.start().await;
    kafka().produce_room(&topic, "lobby", "hello").await;
    gateway.wait_until_settled(&topic).await;

    redis.freeze();
    let rooms: Vec<String> = (0..40).map(|room| format!("/v1/routes/room-{room}")).collect();
    let asked = join_all(rooms.iter().map(|path| http::get(gateway.admin(), path)));
    let kept = async {
        let route = gateway.get("/v1/routes/lobby").await;
        assert_eq!(
            (route.status, &route.json()["connections"]),
            (200, &1.into()),
            "a cached route costs nothing"
        );
        assert_eq!((gateway.get("/healthz").await.status, gateway.get("/metrics").await.status), (200, 200));
        let unready = async || gateway.get("/readyz").await.body.contains("redis").then_some(());
        eventually("/readyz to name Redis", PATIENCE, unready).await;
    };
    let (answers, ()) = tokio::join!(asked, kept);
    let (mut late, mut busy) = (0, 0);
    for answer in answers.into_iter().flatten() {
        match answer.status {
            429 => {
                assert!(answer.head.to_lowercase().contains("retry-after: "), "{}", answer.head);
                busy += 1;
            }
            503 | 504 => late += 1,
            other => panic!("{other}: {}", answer.body),
        }
    }
    assert!(busy >= 30, "{busy} were rejected, {late} were served late; {gateway:?}");
    redis.thaw();
    assert!(refused(&gateway, "busy").await >= 30.0);
}
