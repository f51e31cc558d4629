//! Streamed delivery, from the side of a comet that serves it well, badly, or not at all.

use std::time::Duration;

use tonic::Status;

use super::support::*;
use crate::comets::proto::delivery::{
    Acks, Credit, GoAway, Message, Missing, Pong, Refused, Welcome, from_comet, message, to_comet,
};
use crate::comets::{
    BreakerState, CallOutcome, CallTimeouts, ChannelMode, Config, DeliveryMode, Fleet, PartialDelivery,
};
use crate::message::{CallTarget, CometAddr};

/// Deadlines that a test waits for.
const SHORT: CallTimeouts = CallTimeouts {
    request_timeout: Duration::from_millis(300),
    delivery_timeout: Duration::from_millis(600),
};

fn room(name: &str) -> CallTarget {
    CallTarget::Room(name.into())
}

/// Messages 0, 1, ... for a room.
fn send(fleet: &Fleet, comet: &CometAddr, count: usize) -> Vec<CallHandle> {
    let request = |number: usize| request(fleet, comet, room("r"), "x", &number.to_string());
    (0..count).map(|number| fleet.send_now(request(number))).collect()
}

async fn outcomes(handles: Vec<CallHandle>) -> Vec<CallOutcome> {
    let mut outcomes = Vec::new();
    for handle in handles {
        let outcome = tokio::time::timeout(Duration::from_secs(10), handle).await;
        outcomes.push(outcome.expect("an outcome within ten seconds"));
    }
    outcomes
}

async fn all_acknowledged(handles: Vec<CallHandle>) {
    for outcome in outcomes(handles).await {
        assert_eq!(outcome, CallOutcome::Acknowledged);
    }
}

fn ids(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.id.clone()).collect()
}

fn numbers(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

fn delivery(fleet: &Fleet) -> ChannelMode {
    fleet.status()[0].delivery
}

#[tokio::test]
async fn messages_go_by_stream_and_one_frame_acknowledges_them() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    let handles = send(&fleet, &comet.address, 100);
    let mut stream = comet.welcomed().await;
    let messages = stream.messages(100).await;
    assert_eq!(ids(&messages), numbers(0..100));
    assert!(messages.iter().map(|message| message.seq).eq(1..=100));
    let first = &messages[0];
    assert_eq!(first.audience, Some(message::Audience::Room("r".into())));
    assert_eq!((first.operation, &first.body[..], first.sent_ms), (5, &b"x"[..], 1));
    assert_eq!((delivery(&fleet), fleet.status()[0].in_flight), (ChannelMode::Stream, 100));
    stream.acknowledge(100);
    all_acknowledged(handles).await;
    assert_eq!((fleet.status()[0].in_flight, fleet.status()[0].sent), (0, 100));
    assert_eq!(comet.calls(), [], "there are no calls");

    let keys = request(&fleet, &comet.address, CallTarget::Connections(vec!["a".into()]), "x", "keys");
    let all = request(&fleet, &comet.address, CallTarget::Everyone { speed: 7 }, "x", "all");
    let handles = vec![fleet.send_now(keys), fleet.send_now(all)];
    assert_eq!(ids(&stream.messages(2).await), ["keys", "all"]);
    stream.acknowledge(102);
    all_acknowledged(handles).await;
}

#[tokio::test]
async fn a_comet_without_streams_is_asked_once_per_channel_and_called() {
    let (comet, fleet) = (FakeComet::start(), fleet(&config(), TIMING));
    all_acknowledged(send(&fleet, &comet.address, 5)).await;
    assert_eq!((delivery(&fleet), comet.calls().len()), (ChannelMode::Unary, 5));
}

#[tokio::test]
async fn a_comet_that_learns_to_stream_is_asked_again() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    comet.answers(|_, _| (Duration::from_millis(50), Ok(())));
    let handles = send(&fleet, &comet.address, 2);
    comet.stream().await.fail(Status::unimplemented("not yet"));
    all_acknowledged(handles).await;
    assert_eq!((delivery(&fleet), comet.calls().len()), (ChannelMode::Unary, 2));
    // Ten minutes later; shorter in tests.
    let mut stream = comet.welcomed().await;
    eventually("the stream is used", || delivery(&fleet) == ChannelMode::Stream).await;
    let handles = send(&fleet, &comet.address, 1);
    stream.messages(1).await;
    stream.acknowledge(1);
    all_acknowledged(handles).await;
    assert_eq!((comet.calls().len(), comet.connections()), (2, 1));
}

#[tokio::test]
async fn silence_and_errors_lead_to_calls() {
    let timing = CallTimeouts { request_timeout: Duration::from_millis(600), ..TIMING };
    for declines in [
        |_stream: FakeStream| std::mem::forget(_stream),
        |stream: FakeStream| stream.fail(Status::internal("no")),
        |stream: FakeStream| stream.acknowledge(0),
        |stream: FakeStream| stream.send(from_comet::Frame::Welcome(Welcome::default())),
        |stream: FakeStream| drop(stream),
    ] {
        let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), timing));
        let handles = send(&fleet, &comet.address, 3);
        declines(comet.stream().await);
        all_acknowledged(handles).await;
        assert_eq!((delivery(&fleet), comet.calls().len()), (ChannelMode::Unary, 3));
        assert_eq!(fleet.status()[0].breaker, BreakerState::Closed);
    }
}

#[tokio::test]
async fn exceptions_have_their_own_outcomes() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    let first = send(&fleet, &comet.address, 1);
    let mut stream = comet.welcomed().await;
    stream.messages(1).await;
    stream.acknowledge(1);
    all_acknowledged(first).await;
    let mut handles = send(&fleet, &comet.address, 4);
    let keys = CallTarget::Connections(vec!["a".into(), "b".into()]);
    handles.push(fleet.send_now(request(&fleet, &comet.address, keys, "x", "keys")));
    stream.messages(5).await;
    let missing = |seq, ids: &[&str]| Missing { seq, ids: ids.iter().map(|id| (*id).to_owned()).collect() };
    stream.send(from_comet::Frame::Acks(Acks {
        up_to: 6,
        also: vec![4],
        missing: vec![missing(2, &[]), missing(3, &["c"]), missing(6, &["b"])],
        refused: vec![Refused { seq: 5, reason: "too long".into() }],
    }));
    let partly = |id: &str| {
        CallOutcome::Partial(Box::new(PartialDelivery { missing: vec![id.into()], ..Default::default() }))
    };
    let wanted = [
        CallOutcome::NobodyThere,
        partly("c"),
        CallOutcome::Acknowledged,
        CallOutcome::Refused("too long".into()),
        partly("b"),
    ];
    assert_eq!(outcomes(handles).await, wanted);
}

#[tokio::test]
async fn a_protocol_error_ends_the_stream_and_calls_take_over_in_order() {
    let acks = |up_to| from_comet::Frame::Acks(Acks { up_to, ..Acks::default() });
    let less = from_comet::Frame::Credit(Credit { messages: 5, bytes: 5 });
    let twice = from_comet::Frame::Welcome(Welcome { version: 1, ..Welcome::default() });
    for violation in [acks(11), acks(1), less, twice] {
        let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
        let handles = send(&fleet, &comet.address, 10);
        let mut stream = comet.welcomed().await;
        stream.messages(10).await;
        stream.acknowledge(3);
        stream.send(violation);
        all_acknowledged(handles).await;
        assert_eq!(delivery(&fleet), ChannelMode::Unary);
        let called: Vec<String> = comet.calls().into_iter().flat_map(|call| call.ids).collect();
        assert_eq!(called, numbers(3..10));
        assert!(stream.next().await.is_none(), "the stream has ended");
    }
}

#[tokio::test]
async fn what_a_broken_stream_left_goes_out_again_in_order() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&patient(config()), TIMING));
    let handles = send(&fleet, &comet.address, 10);
    let mut stream = comet.welcomed().await;
    stream.messages(10).await;
    stream.send(from_comet::Frame::Acks(Acks { up_to: 3, also: vec![6], ..Acks::default() }));
    eventually("acknowledged", || fleet.status()[0].in_flight == 6).await;
    stream.fail(Status::unavailable("restarting"));
    let later = send(&fleet, &comet.address, 1);
    let mut stream = comet.welcomed().await;
    let wanted: Vec<String> = ["3", "4", "6", "7", "8", "9", "0"].map(String::from).into();
    assert_eq!(ids(&stream.messages(7).await), wanted);
    stream.acknowledge(7);
    all_acknowledged(handles).await;
    all_acknowledged(later).await;
    assert_eq!((comet.calls().len(), delivery(&fleet)), (0, ChannelMode::Stream));
}

#[tokio::test]
async fn a_comet_that_dies_gets_everything_when_it_is_back() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&patient(config()), TIMING));
    let handles = send(&fleet, &comet.address, 10);
    let mut stream = comet.welcomed().await;
    stream.messages(10).await;
    stream.acknowledge(4);
    eventually("acknowledged", || fleet.status()[0].in_flight == 6).await;
    let address = comet.address.as_str().parse().expect("an address");
    drop((stream, comet));
    let comet = FakeComet::start_with(address, true);
    let mut stream = comet.welcomed().await;
    assert_eq!(ids(&stream.messages(6).await), numbers(4..10));
    stream.acknowledge(6);
    all_acknowledged(handles).await;
}

#[tokio::test]
async fn credit_bounds_what_is_out() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    let handles = send(&fleet, &comet.address, 10);
    let mut stream = comet.stream().await;
    stream.welcome(Credit { messages: 3, bytes: 100 });
    assert_eq!(ids(&stream.messages(3).await), numbers(0..3));
    stream.acknowledge(3);
    eventually("acknowledged", || fleet.status()[0].in_flight == 0).await;
    stream.send(from_comet::Frame::Credit(Credit { messages: 100, bytes: 100 }));
    assert_eq!(ids(&stream.messages(7).await), numbers(3..10));
    stream.acknowledge(10);
    all_acknowledged(handles).await;
}

#[tokio::test]
async fn a_comet_that_gives_no_credit_does_not_keep_up() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), SHORT));
    let handles = send(&fleet, &comet.address, 2);
    let stream = comet.stream().await;
    stream.welcome(Credit::default());
    let outcomes = outcomes(handles).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, CallOutcome::Unreachable(_))), "{outcomes:?}");
    assert_eq!(fleet.status()[0].breaker, BreakerState::Closed);
}

#[tokio::test]
async fn a_comet_that_never_acknowledges_opens_its_breaker_and_recovers() {
    let (comet, fleet) =
        (FakeComet::start_streaming(), fleet(&Config { breaker_failures: 2, ..config() }, SHORT));
    let streams = async {
        loop {
            let stream = comet.welcomed().await;
            if fleet.status()[0].breaker != BreakerState::Closed {
                break stream;
            }
            std::mem::forget(stream);
        }
    };
    let calls = async {
        let mut failed = 0;
        loop {
            let handles = send(&fleet, &comet.address, 3);
            let ended = outcomes(handles).await;
            if ended.contains(&CallOutcome::Acknowledged) {
                return failed;
            }
            failed += ended.len();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let recovery = async {
        let mut stream = streams.await;
        // Only the probe is sent.
        let probe = stream.messages(1).await;
        assert_eq!(probe.len(), 1);
        stream.acknowledge(1);
        eventually("the breaker closes", || fleet.status()[0].breaker == BreakerState::Closed).await;
        while let Some(to_comet::Frame::Messages(more)) = stream.next().await {
            stream.acknowledge(more.messages.last().map_or(0, |last| last.seq));
        }
    };
    let failed = tokio::select! {
        failed = calls => failed,
        () = recovery => panic!("the stream ended"),
    };
    assert!(failed > 0);
    assert_eq!(delivery(&fleet), ChannelMode::Stream);
}

#[tokio::test]
async fn a_comet_that_goes_away_gets_no_more_on_that_stream() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    let handles = send(&fleet, &comet.address, 3);
    let mut stream = comet.welcomed().await;
    stream.messages(3).await;
    stream.send(from_comet::Frame::GoAway(GoAway { reason: "deploy".into() }));
    assert!(matches!(stream.next().await, Some(to_comet::Frame::Finish(_))));
    let later = send(&fleet, &comet.address, 2);
    stream.acknowledge(3);
    all_acknowledged(handles).await;
    let mut next = comet.welcomed().await;
    assert_eq!(ids(&next.messages(2).await), numbers(0..2));
    next.acknowledge(2);
    all_acknowledged(later).await;
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn closing_finishes_the_stream() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    let handles = send(&fleet, &comet.address, 5);
    let mut stream = comet.welcomed().await;
    stream.messages(5).await;
    let comet_side = async {
        assert!(matches!(stream.next().await, Some(to_comet::Frame::Finish(_))));
        stream.acknowledge(5);
        assert!(stream.next().await.is_none());
    };
    tokio::join!(fleet.close(), comet_side);
    all_acknowledged(handles).await;
}

#[tokio::test]
async fn without_streams_nothing_is_called_where_only_streams_are_wanted() {
    let only = Config { delivery: DeliveryMode::Stream, ..config() };
    let (comet, fleet) = (FakeComet::start(), fleet(&only, TIMING));
    for outcome in outcomes(send(&fleet, &comet.address, 3)).await {
        let CallOutcome::Unreachable(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("does not serve halley.comet.v1.Delivery"), "{why}");
    }
    let status = fleet.status().remove(0);
    assert_eq!((status.delivery, status.breaker), (ChannelMode::StreamNotServed, BreakerState::Closed));
    assert_eq!(comet.calls(), []);
}

#[tokio::test]
async fn only_calls_are_made_where_only_calls_are_wanted() {
    let calls = Config { delivery: DeliveryMode::Unary, ..config() };
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&calls, TIMING));
    all_acknowledged(send(&fleet, &comet.address, 3)).await;
    assert_eq!((comet.calls().len(), delivery(&fleet)), (3, ChannelMode::Unary));
}

#[tokio::test]
async fn a_stream_without_a_pong_is_replaced() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), SHORT));
    let handles = send(&fleet, &comet.address, 1);
    let mut stream = comet.stream().await;
    let credit = Some(Credit { messages: 10, bytes: 10 });
    stream.send(from_comet::Frame::Welcome(Welcome {
        version: 1,
        credit,
        heartbeat_ms: 1,
        ..Welcome::default()
    }));
    stream.messages(1).await;
    stream.acknowledge(1);
    all_acknowledged(handles).await;
    for _ in 0..2 {
        let Some(to_comet::Frame::Ping(ping)) = stream.next().await else { panic!("a Ping") };
        stream.send(from_comet::Frame::Pong(Pong { nonce: ping.nonce }));
    }
    assert!(matches!(stream.next().await, Some(to_comet::Frame::Ping(_))));
    assert!(stream.next().await.is_none(), "without a Pong the stream ends");
    let handles = send(&fleet, &comet.address, 1);
    let mut stream = comet.welcomed().await;
    stream.messages(1).await;
    stream.acknowledge(1);
    all_acknowledged(handles).await;
}

/// What a slow comet has not acknowledged is bounded by how soon it acknowledges, whatever its credit.
#[tokio::test]
async fn a_slow_comet_with_much_credit_misses_no_deadline() {
    let timing = CallTimeouts { request_timeout: Duration::from_secs(1), ..TIMING };
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), timing));
    let handles = send(&fleet, &comet.address, 600);
    let mut stream = comet.welcomed().await;
    let mut seen = 0;
    while seen < 600 {
        for message in stream.messages(1).await {
            tokio::time::sleep(Duration::from_millis(2)).await;
            seen += 1;
            assert_eq!(message.seq, seen);
            stream.acknowledge(seen);
        }
    }
    all_acknowledged(handles).await;
}

#[tokio::test]
async fn many_rooms_keep_their_order_when_a_stream_begins() {
    const ROOMS: usize = 100;
    const EACH: usize = 20;
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&Config { queue: 10_000, ..config() }, TIMING));
    let mut handles = Vec::new();
    for number in 0..EACH {
        for name in 0..ROOMS {
            let target = room(&name.to_string());
            handles.push(fleet.send_now(request(&fleet, &comet.address, target, "x", &number.to_string())));
            if handles.len() == ROOMS * 3 {
                tokio::task::yield_now().await;
            }
        }
    }
    let mut stream = comet.welcomed().await;
    let mut seen = std::collections::HashMap::<String, Vec<String>>::new();
    let mut count = 0;
    while count < ROOMS * EACH {
        let messages = stream.messages(1).await;
        count += messages.len();
        stream.acknowledge(messages.last().map_or(0, |last| last.seq));
        for message in messages {
            let Some(message::Audience::Room(room)) = message.audience else { panic!("a room") };
            seen.entry(room).or_default().push(message.id);
        }
    }
    all_acknowledged(handles).await;
    for (room, ids) in seen {
        assert_eq!(ids, numbers(0..EACH), "room {room}");
    }
}

#[tokio::test]
async fn a_probe_that_is_cancelled_lets_another_one_probe() {
    let (comet, fleet) =
        (FakeComet::start_streaming(), fleet(&Config { breaker_failures: 1, ..config() }, SHORT));
    let handles = send(&fleet, &comet.address, 1);
    let mut mute = comet.welcomed().await;
    mute.messages(1).await;
    assert!(matches!(outcomes(handles).await[..], [CallOutcome::Unreachable(_)]));
    assert_eq!(fleet.status()[0].breaker, BreakerState::Open);
    let probe =
        |number: usize| fleet.send_now(request(&fleet, &comet.address, room("r"), "x", &number.to_string()));
    // A probe waits for Welcome, and is cancelled meanwhile.
    let (cancelled, stream) = loop {
        let mut handle = probe(0);
        tokio::select! {
            stream = comet.stream() => break (handle, stream),
            _ = &mut handle => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    drop(cancelled);
    stream.welcome(Credit { messages: 10, bytes: 1000 });
    let mut number = 0;
    let (handle, mut stream) = loop {
        number += 1;
        let mut handle = probe(number);
        tokio::select! {
            stream = comet.welcomed() => break (handle, stream),
            _ = &mut handle => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(stream.messages(1).await.len(), 1);
    stream.acknowledge(1);
    assert_eq!(handle.await, CallOutcome::Acknowledged);
    assert_eq!(fleet.status()[0].breaker, BreakerState::Closed);
}

/// Where calls are not wanted, a message that ends each stream is found and refused; the others arrive.
#[tokio::test]
async fn a_message_that_ends_streams_is_found() {
    let settings = Config { delivery: DeliveryMode::Stream, breaker_failures: 1, ..config() };
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&settings, TIMING));
    let handles = send(&fleet, &comet.address, 20);
    let serve = async {
        loop {
            let mut stream = comet.welcomed().await;
            let mut accepted = 0;
            while let Some(frame) = stream.next().await {
                let to_comet::Frame::Messages(messages) = frame else { continue };
                if messages.messages.iter().any(|message| message.id == "7") {
                    stream.fail(Status::resource_exhausted("larger than max"));
                    break;
                }
                accepted += messages.messages.len() as u64;
                stream.acknowledge(accepted);
            }
        }
    };
    let outcomes = tokio::select! {
        outcomes = outcomes(handles) => outcomes,
        () = serve => unreachable!("it serves for ever"),
    };
    for (number, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            CallOutcome::Refused(why) if number == 7 => assert!(why.contains("larger than max"), "{why}"),
            outcome => assert_eq!((number, outcome), (number, CallOutcome::Acknowledged)),
        }
    }
    assert_eq!(fleet.status()[0].breaker, BreakerState::Closed, "an answer is no failure of the comet");
}
