//! Comets that are unreachable, slow, or answer with errors.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;

use super::support::*;
use crate::comets::{BreakerState, CallOutcome, CallRequest, CallTimeouts, Config, Content, DeliveryMode};
use crate::message::{CallTarget, CometAddr, NamedBy};

/// An address that takes connections and never answers.
async fn black_hole() -> (TcpListener, CometAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string().into();
    (listener, address)
}

fn why(delivered: CallOutcome) -> String {
    match delivered {
        CallOutcome::Unreachable(why) => why,
        other => panic!("not unreachable: {other:?}"),
    }
}

#[tokio::test]
async fn a_comet_that_comes_up_late_gets_what_waited() {
    let (listener, address) = black_hole().await;
    drop(listener);
    let fleet = fleet(&patient(config()), TIMING);
    let handle = fleet.send_now(request(&fleet, &address, CallTarget::Room("a".into()), "x", "id"));
    eventually("an attempt failed", || fleet.status()[0].last_error.is_some()).await;
    let comet = FakeComet::start_at(address.as_str().parse().expect("an address"));
    assert_eq!(handle.await, CallOutcome::Acknowledged);
    assert_eq!(comet.calls().len(), 1);
}

#[tokio::test]
async fn a_comet_that_restarts_is_found_again() {
    let fleet = fleet(&patient(config()), TIMING);
    let first = FakeComet::start();
    let address = first.address.clone();
    assert_eq!(to_room(&fleet, &address, "a", "1").await, CallOutcome::Acknowledged);
    drop(first);
    let mut handle = fleet.send_now(request(&fleet, &address, CallTarget::Room("a".into()), "2", "2"));
    tokio::select! {
        outcome = &mut handle => panic!("nobody was there: {outcome:?}"),
        () = eventually("an attempt failed", || fleet.status()[0].last_error.is_some()) => {}
    }
    let second = FakeComet::start_at(address.as_str().parse().expect("an address"));
    assert_eq!(handle.await, CallOutcome::Acknowledged);
    assert_eq!(second.calls().len(), 1);
}

#[tokio::test]
async fn what_fails_to_the_end_is_given_up_in_time() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::ZERO, Err(Status::unavailable("no"))));
    let fleet =
        fleet(&patient(config()), CallTimeouts { delivery_timeout: Duration::from_secs(1), ..TIMING });
    let started = Instant::now();
    let first = fleet.send_now(request(&fleet, &comet.address, CallTarget::Room("a".into()), "1", "1"));
    let behind = fleet.send_now(request(&fleet, &comet.address, CallTarget::Room("a".into()), "2", "2"));
    assert_eq!(why(first.await), "no success within 1s: Unavailable: no");
    let behind = why(behind.await);
    assert!(behind.contains("1s"), "{behind}");
    assert!(comet.calls().len() > 2, "it was tried again");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_black_hole_opens_its_breaker_and_harms_no_other() {
    let (_listener, dead) = black_hole().await;
    let timing = CallTimeouts {
        request_timeout: Duration::from_millis(300),
        delivery_timeout: Duration::from_secs(10),
    };
    let patience = Duration::from_millis(100);
    let long = Duration::from_secs(60);
    let config = Config { breaker_window: patience, breaker_open: long, breaker_open_max: long, ..config() };
    let fleet = fleet(&config, timing);
    let started = Instant::now();
    let send = |number: usize| {
        fleet.send_now(request(&fleet, &dead, CallTarget::Room(format!("room_{number}").into()), "x", "id"))
    };
    let handles: Vec<CallHandle> = (0..500).map(send).collect();

    let alive = FakeComet::start();
    for number in 0..100 {
        let delivered = to_room(&fleet, &alive.address, "a", &number.to_string()).await;
        assert_eq!(delivered, CallOutcome::Acknowledged);
    }
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "the others are not held up: {:?}",
        started.elapsed()
    );
    for handle in handles {
        let why = why(handle.await);
        assert!(why.contains("no answer within 300ms"), "{why}");
    }
    // The first timeout, a wait of at most 100 ms, the second timeout; the rest is for a busy machine.
    assert!(started.elapsed() < Duration::from_millis(3000), "{:?}", started.elapsed());
    let status = fleet.status();
    let status = status.iter().find(|status| status.address == dead).expect("known");
    assert_eq!((status.breaker, status.waiting, status.failed), (BreakerState::Open, 0, 500));
    let again = Instant::now();
    assert!(why(to_room(&fleet, &dead, "a", "x").await).starts_with("the comet's breaker is open"));
    assert!(again.elapsed() < timing.request_timeout, "without a call");
}

#[tokio::test]
async fn one_call_closes_the_breaker() {
    let (listener, address) = black_hole().await;
    drop(listener);
    let fleet = fleet(&Config { breaker_failures: 3, ..config() }, TIMING);
    assert!(why(to_room(&fleet, &address, "a", "x").await).contains("Connection refused"));
    assert_eq!(fleet.status()[0].breaker, BreakerState::Open);

    let comet = FakeComet::start_at(address.as_str().parse().expect("an address"));
    let mut refused = 0;
    while to_room(&fleet, &comet.address, "a", "y").await != CallOutcome::Acknowledged {
        refused += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(refused < 1000, "it never closes");
    }
    assert_eq!(fleet.status()[0].breaker, BreakerState::Closed);
    assert_eq!(comet.calls().len(), 1, "only one call was made");
}

#[tokio::test]
async fn a_comet_that_is_back_is_found_without_a_message() {
    let (listener, address) = black_hole().await;
    drop(listener);
    let long = Duration::from_secs(3600);
    let config = Config { breaker_failures: 1, breaker_open: long, breaker_open_max: long, ..config() };
    let fleet = fleet(&config, TIMING);
    assert!(why(to_room(&fleet, &address, "a", "x").await).contains("Connection refused"));
    assert_eq!(fleet.status()[0].breaker, BreakerState::Open);

    let comet = FakeComet::start_at(address.as_str().parse().expect("an address"));
    eventually("the breaker closes", || fleet.status()[0].breaker == BreakerState::Closed).await;
    assert_eq!(comet.calls(), [], "the comet itself was not called");
    assert_eq!(to_room(&fleet, &comet.address, "a", "y").await, CallOutcome::Acknowledged);
    assert_eq!(comet.connections(), 1);
}

#[tokio::test]
async fn a_connection_whose_other_end_is_gone_is_replaced() {
    let comet = FakeComet::start();
    let (listener, address) = black_hole().await;
    let behind = comet.address.to_string();
    let proxy = async move {
        let (_gone, _) = listener.accept().await.expect("a connection");
        loop {
            let (mut inward, _) = listener.accept().await.expect("a connection");
            let mut outward = TcpStream::connect(&behind).await.expect("the comet");
            let _ = copy_bidirectional(&mut inward, &mut outward).await;
        }
    };
    let timing = CallTimeouts {
        request_timeout: Duration::from_millis(200),
        delivery_timeout: Duration::from_secs(5),
    };
    let fleet = fleet(&patient(config()), timing);
    tokio::select! {
        () = proxy => {}
        delivered = to_room(&fleet, &address, "a", "x") => assert_eq!(delivered, CallOutcome::Acknowledged),
    }
    assert_eq!(comet.calls().len(), 1);
}

/// Linux shows a socket's timers in `/proc/net/tcp`; 2 is the one of TCP's keepalive.
#[tokio::test]
async fn an_idle_connection_is_watched_by_tcp() {
    let comet = FakeComet::start();
    let fleet = fleet(&config(), TIMING);
    assert_eq!(to_room(&fleet, &comet.address, "a", "x").await, CallOutcome::Acknowledged);
    let port = comet.address.as_str().rsplit_once(':').expect("a port").1.parse::<u16>().expect("a number");
    eventually("keepalive is on", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let to_comet = format!("0100007F:{port:04X} 01 ");
        sockets.lines().any(|line| line.contains(&to_comet) && line.contains(" 02:"))
    })
    .await;
}

/// gRPC servers on the C core and on Go end a connection that pings them while idle more often
/// than every five minutes. Speaks raw HTTP/2: it answers one call and then stays idle.
#[tokio::test]
async fn an_idle_connection_is_not_pinged() {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    let (listener, address) = black_hole().await;
    let fleet = fleet(&Config { delivery: DeliveryMode::Unary, ..config() }, TIMING);
    let handle = fleet.send_now(request(&fleet, &address, CallTarget::Room("a".into()), "x", "id"));
    let (mut connection, _) = listener.accept().await.expect("a connection");
    let mut frames = Vec::new();
    let serving = async {
        connection.read_exact(&mut [0; 24]).await.expect("the preface");
        connection.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.expect("sent");
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head).await.expect("the connection stays open");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            connection.read_exact(&mut vec![0; length as usize]).await.expect("a frame");
            frames.push(head[3]);
            if head[3] == HEADERS {
                // `:status: 200` from HPACK's table, `grpc-status: 0` as text; ends the stream.
                let answer = b"\0\0\x10\x01\x05\0\0\0\x01\x88\0\x0bgrpc-status\x010";
                connection.write_all(answer).await.expect("sent");
            }
        }
    };
    // The ping interval used to be ten seconds.
    let idle = tokio::time::timeout(Duration::from_secs(11), serving).await;
    assert!(idle.is_err() && frames.contains(&HEADERS) && !frames.contains(&PING), "{frames:?}");
    assert_eq!(handle.await, CallOutcome::Acknowledged);
}

#[tokio::test]
async fn a_full_queue_is_waited_for_while_the_comet_takes_messages() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::from_millis(1), Ok(())));
    let timing = CallTimeouts { delivery_timeout: Duration::from_secs(2), ..TIMING };
    let fleet = fleet(&Config { queue: 10, ..config() }, timing);
    let mut handles = Vec::new();
    for number in 0..500 {
        let request =
            request(&fleet, &comet.address, CallTarget::Room("a".into()), "x", &format!("{number:03}"));
        handles.push(send_waiting(&fleet, request).await);
        // What it takes in a tenth of two seconds, if that is more than the configured queue.
        assert!(fleet.status()[0].waiting + fleet.status()[0].in_flight <= 210);
    }
    for handle in handles {
        assert_eq!(handle.await, CallOutcome::Acknowledged);
    }
    let ids: Vec<String> = comet.calls().into_iter().flat_map(|call| call.ids).collect();
    assert_eq!(ids, (0..500).map(|number| format!("{number:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_queue_is_said_at_once_while_the_breaker_is_open() {
    let (_listener, address) = black_hole().await;
    let long = Duration::from_secs(60);
    let timing = CallTimeouts {
        request_timeout: Duration::from_millis(100),
        delivery_timeout: Duration::from_secs(10),
    };
    let config =
        Config { queue: 3, breaker_failures: 2, breaker_open: long, breaker_open_max: long, ..config() };
    let fleet = fleet(&config, timing);
    let mut outcomes = Vec::new();
    let started = Instant::now();
    for _ in 0..100 {
        let request = request(&fleet, &address, CallTarget::Room("a".into()), "x", "id");
        outcomes.push(send_waiting(&fleet, request).await);
    }
    for outcome in outcomes {
        assert!(matches!(outcome.await, CallOutcome::Unreachable(_)));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// It takes 10 messages a second where 10 have to be taken in half a second.
#[tokio::test]
async fn a_comet_that_does_not_keep_up_holds_its_senders_up_once() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::from_millis(100), Ok(())));
    let timing = CallTimeouts {
        request_timeout: Duration::from_secs(2),
        delivery_timeout: Duration::from_millis(500),
    };
    let fleet = fleet(&Config { queue: 10, ..config() }, timing);
    let (started, mut handles) = (Instant::now(), Vec::new());
    for _ in 0..300 {
        let request = request(&fleet, &comet.address, CallTarget::Room("a".into()), "x", "id");
        handles.push(send_waiting(&fleet, request).await);
    }
    assert!(started.elapsed() < Duration::from_secs(4), "300 of them take it 30 s: {:?}", started.elapsed());
    let mut acknowledged = 0;
    for handle in handles {
        match handle.await {
            CallOutcome::Acknowledged => acknowledged += 1,
            delivered => {
                let why = why(delivered);
                assert!(why.contains("does not keep up") || why.contains("queue full"), "{why}");
            }
        }
    }
    assert!(acknowledged >= 5, "it got what it can take: {acknowledged}");
    assert_eq!(fleet.status()[0].breaker, BreakerState::Closed);
}

#[tokio::test]
async fn bytes_that_wait_for_comets_are_bounded_over_all_of_them() {
    let max_pending_bytes = bytesize::ByteSize::kib(400);
    let fleet = fleet(&patient(Config { max_pending_bytes, ..config() }), TIMING);
    let (_listener, hole) = black_hole().await;
    let alive = FakeComet::start();
    let body = bytes::Bytes::from(vec![b'x'; 90 * 1024]);
    let send = async |comet: &CometAddr| {
        let payload = fleet
            .payload(&Content { operation: 5, body: &body, sent_ms: 0, trace: None, replayed: false })
            .await;
        let target = CallTarget::Room("a".into());
        let (outcomes, handle) = handle();
        let sent = fleet.try_send(CallRequest {
            comet: comet.clone(),
            named_by: NamedBy::Record,
            target,
            room: None,
            run: run(payload, "id", outcomes),
        });
        sent.map(|()| handle)
    };
    // One comet has a quarter of them, which is one such message; the rest is for others.
    let stuck = send(&hole).await.expect("room");
    let request = send(&hole).await.expect_err("a second one has to wait");
    for _ in 0..20 {
        let handle = send(&alive.address).await.expect("room for others");
        assert_eq!(handle.await, CallOutcome::Acknowledged);
    }
    drop((stuck, request));
}

#[tokio::test]
async fn a_worn_out_channel_is_made_anew() {
    let comet = FakeComet::start();
    comet.answers(|call, _| match call.to[0].as_str() {
        "last" => (Duration::ZERO, Ok(())),
        _ => (Duration::from_secs(60), Ok(())),
    });
    let timing = CallTimeouts {
        request_timeout: Duration::from_millis(50),
        delivery_timeout: Duration::from_millis(50),
    };
    let fleet = fleet(&patient(config()), timing);
    let mut sent = 0;
    while comet.connections() < 2 && sent < 40 {
        let send = |number: usize| {
            let room = CallTarget::Room(format!("room_{sent}_{number}").into());
            fleet.send_now(request(&fleet, &comet.address, room, "x", "id"))
        };
        let handles: Vec<CallHandle> = (0..64).map(send).collect();
        for handle in handles {
            assert!(matches!(handle.await, CallOutcome::Unreachable(_)));
        }
        sent += 1;
    }
    assert!(comet.connections() >= 2, "{sent} rounds on one connection");
}

#[tokio::test]
async fn closing_waits_for_what_is_queued() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::from_millis(20), Ok(())));
    let fleet = fleet(&config(), TIMING);
    let send = |_| fleet.send_now(request(&fleet, &comet.address, CallTarget::Room("a".into()), "x", "id"));
    let handles: Vec<CallHandle> = (0..10).map(send).collect();
    fleet.close().await;
    assert_eq!(comet.calls().len(), 10);
    for handle in handles {
        assert_eq!(handle.await, CallOutcome::Acknowledged);
    }
    assert_eq!(why(to_room(&fleet, &comet.address, "a", "x").await), "the gateway is stopping");
}

#[tokio::test]
async fn a_receipt_resolves_when_the_fleet_and_its_tasks_are_gone() {
    let (_listener, address) = black_hole().await;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let fleet = {
        let _entered = runtime.enter();
        fleet(&config(), TIMING)
    };
    let handle = fleet.send_now(request(&fleet, &address, CallTarget::Room("a".into()), "x", "id"));
    runtime.shutdown_background();
    assert!(why(handle.await).contains("task ended"));
}
