//! Statuses that a comet's handler gives: answers about messages and connections, not about the
//! comet.

use std::time::Duration;

use tonic::{Code, Status};

use super::support::*;
use crate::comets::{BreakerState, CallOutcome, CallRequest, CallTimeouts, Config, Fleet, PartialDelivery};
use crate::message::{CallTarget, CometAddr, RoomId};

const SHORT: CallTimeouts =
    CallTimeouts { request_timeout: Duration::from_secs(2), delivery_timeout: Duration::from_millis(300) };
/// What does not take messages: a connection, or a room.
const STUCK: &str = "stuck";
const REFUSED: [Code; 8] = [
    Code::InvalidArgument,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::FailedPrecondition,
    Code::OutOfRange,
    Code::DataLoss,
    Code::Unauthenticated,
    Code::Unimplemented,
];

/// A comet that answers calls for one room or connection with this status.
fn comet_with_a_stuck_client(code: Code) -> FakeComet {
    let comet = FakeComet::start();
    comet.answers(move |call, _| {
        let is_stuck = call.to.iter().any(|to| to == STUCK);
        (Duration::ZERO, if is_stuck { Err(Status::new(code, "no")) } else { Ok(()) })
    });
    comet
}

/// A breaker that one failure opens.
fn touchy(config: Config) -> Config {
    Config { breaker_failures: 1, ..config }
}

fn keys(keys: &[&str]) -> CallTarget {
    CallTarget::Connections(keys.iter().map(|key| (*key).into()).collect())
}

/// What a room or connection got, in order.
fn got(comet: &FakeComet, name: &str) -> Vec<String> {
    let calls = comet.calls();
    let taken = calls.iter().filter(|call| !call.to.iter().any(|to| to == STUCK));
    let here = taken.filter(|call| call.to.iter().any(|to| to == name));
    here.flat_map(|call| call.ids.clone()).collect()
}

fn send(fleet: &Fleet, comet: &CometAddr, target: &CallTarget, count: usize) -> Vec<CallHandle> {
    let request = |number: usize| request(fleet, comet, target.clone(), "x", &format!("{number:02}"));
    (0..count).map(|number| fleet.send_now(request(number))).collect()
}

async fn outcomes(handles: Vec<CallHandle>) -> Vec<CallOutcome> {
    let mut outcomes = Vec::new();
    for handle in handles {
        outcomes.push(handle.await);
    }
    outcomes
}

/// The table of `retry`, seen from outside: twenty messages to three connections, one of which
/// never takes any.
#[tokio::test]
async fn a_full_connection_does_not_block_others_of_its_call() {
    for config in [config(), goim_config()] {
        for code in (1..=16).map(Code::from).filter(|code| *code != Code::Unimplemented) {
            let comet = comet_with_a_stuck_client(code);
            // Forty calls, one after the other, on a busy machine.
            let timing = CallTimeouts { delivery_timeout: Duration::from_millis(800), ..SHORT };
            let fleet = fleet(&touchy(config.clone()), timing);
            let handles = send(&fleet, &comet.address, &keys(&["a", STUCK, "b"]), 20);
            let all: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
            for delivered in outcomes(handles).await {
                let CallOutcome::Partial(partly) = delivered else { panic!("{code:?}: {delivered:?}") };
                let stuck = vec![STUCK.into()];
                let expected = match REFUSED.contains(&code) {
                    true => PartialDelivery { refused: stuck, ..PartialDelivery::default() },
                    false => PartialDelivery { unreachable: stuck, ..PartialDelivery::default() },
                };
                assert_eq!(PartialDelivery { why: String::new(), ..*partly.clone() }, expected, "{code:?}");
                assert!(partly.why.contains(&format!("{code:?}: no")), "{partly:?}");
            }
            for healthy in ["a", "b"] {
                assert_eq!(got(&comet, healthy), all, "{code:?}, {healthy}: in order, each once");
            }
            assert_eq!(fleet.status()[0].breaker, BreakerState::Closed, "{code:?}");
        }
    }
}

#[tokio::test]
async fn a_full_room_does_not_block_others_of_its_lane() {
    for config in [config(), goim_config()] {
        for code in (1..=16).map(Code::from) {
            let comet = comet_with_a_stuck_client(code);
            let fleet = fleet(&touchy(config.clone()), SHORT);
            let stuck = send(&fleet, &comet.address, &CallTarget::Room(STUCK.into()), 20);
            let healthy = send(&fleet, &comet.address, &CallTarget::Room("a".into()), 20);
            assert_eq!(outcomes(healthy).await, vec![CallOutcome::Acknowledged; 20], "{code:?}");
            let all: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
            assert_eq!(got(&comet, "a"), all, "{code:?}");
            let refused = REFUSED.contains(&code) || code == Code::NotFound;
            for delivered in outcomes(stuck).await {
                assert_eq!(matches!(delivered, CallOutcome::Refused(_)), refused, "{code:?}: {delivered:?}");
                assert_eq!(matches!(delivered, CallOutcome::Unreachable(_)), !refused, "{code:?}");
            }
            assert_eq!(fleet.status()[0].breaker, BreakerState::Closed, "{code:?}");
        }
    }
}

#[tokio::test]
async fn what_passes_by_is_tried_again_in_order() {
    for code in (1..=16).map(Code::from).filter(|code| !REFUSED.contains(code) && *code != Code::NotFound) {
        let comet = FakeComet::start();
        comet.answers(move |_, before| match before {
            0..3 => (Duration::ZERO, Err(Status::new(code, "no"))),
            _ => (Duration::ZERO, Ok(())),
        });
        let fleet = fleet(&touchy(config()), TIMING);
        let handles = send(&fleet, &comet.address, &CallTarget::Room("a".into()), 20);
        assert_eq!(outcomes(handles).await, vec![CallOutcome::Acknowledged; 20], "{code:?}");
        let ids: Vec<String> = comet.calls().into_iter().skip(3).flat_map(|call| call.ids).collect();
        assert_eq!(ids, (0..20).map(|number| format!("{number:02}")).collect::<Vec<_>>(), "{code:?}");
    }
}

/// goim: `PushMsg` goes through its keys and stops at the first whose queue is full.
#[tokio::test]
async fn goim_s_full_queue_costs_the_others_one_repeat_at_most() {
    let comet = FakeComet::start();
    comet.answers(|call, _| {
        let is_stuck = call.to.iter().any(|to| to == STUCK);
        let full = Status::unknown("signal channel full, msg dropped");
        (Duration::ZERO, if is_stuck { Err(full) } else { Ok(()) })
    });
    let fleet = fleet(&touchy(goim_config()), TIMING);
    for target in [keys(&["a", STUCK]), keys(&[STUCK, "b"]), keys(&[STUCK])] {
        for delivered in outcomes(send(&fleet, &comet.address, &target, 1)).await {
            let unreached = match delivered {
                CallOutcome::Partial(partly) => partly.unreachable == [STUCK.into()],
                CallOutcome::Unreachable(why) => why == "Unknown: signal channel full, msg dropped",
                _ => false,
            };
            assert!(unreached, "{target:?}");
        }
    }
    let mut calls: Vec<Vec<String>> = comet.calls().into_iter().map(|call| call.to).collect();
    // Parts are called at the same time.
    calls[1..3].sort();
    calls[3..5].sort();
    let expected = [vec!["a", STUCK], vec!["a"], vec![STUCK], vec!["b"], vec![STUCK], vec![STUCK]];
    assert_eq!(calls, expected, "who is stuck is known, and nothing is tried again");
}

#[tokio::test]
async fn a_rejected_message_is_not_tried_with_each_connection() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::ZERO, Err(Status::invalid_argument("no"))));
    let fleet = fleet(&config(), TIMING);
    let many: Vec<String> = (0..5000).map(|number| format!("c{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let delivered = outcomes(send(&fleet, &comet.address, &keys(&many), 1)).await;
    assert_eq!(delivered, [CallOutcome::Refused("InvalidArgument: no".into())]);
    assert!(comet.calls().len() < 100, "{} calls", comet.calls().len());
}

#[tokio::test]
async fn a_busy_comet_is_not_called_for_each_connection() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::ZERO, Err(Status::unavailable("no"))));
    let fleet = fleet(&touchy(config()), SHORT);
    let many: Vec<String> = (0..5000).map(|number| format!("c{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let delivered = outcomes(send(&fleet, &comet.address, &keys(&many), 1)).await;
    let CallOutcome::Unreachable(why) = &delivered[0] else { panic!("{delivered:?}") };
    assert_eq!(why, "no success within 300ms: Unavailable: no");
    assert!(comet.calls().len() < 1500, "{} calls", comet.calls().len());
    assert_eq!(fleet.status()[0].breaker, BreakerState::Closed);
}

#[tokio::test]
async fn many_connections_are_called_in_parts_that_comets_take() {
    let comet = FakeComet::start();
    let fleet = fleet(&touchy(config()), TIMING);
    // 120,000 connections with 30 bytes each: 3.8 MB.
    let many: Vec<String> = (0..120_000).map(|number| format!("connection-{number:019}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let delivered = outcomes(send(&fleet, &comet.address, &keys(&many), 2)).await;
    assert_eq!(delivered, vec![CallOutcome::Acknowledged; 2]);
    let calls = comet.calls();
    for id in ["00", "01"] {
        let of_message = calls.iter().filter(|call| call.ids == [id]);
        let mut to: Vec<String> = of_message.flat_map(|call| call.to.clone()).collect();
        to.sort();
        assert!(to == many, "everybody, once");
    }
    let first = |id: &str| calls.iter().position(|call| call.to[0] == many[0] && call.ids == [id]);
    assert!(first("00") < first("01"), "in order for each");
    let sizes: Vec<usize> = calls.iter().map(|call| call.to.len() * 32).collect();
    assert!(sizes.iter().all(|size| *size <= 1024 * 1024), "{sizes:?}");
    assert!(calls.len() <= 10, "{sizes:?}");
}

#[tokio::test]
async fn a_part_that_is_not_taken_concerns_only_its_connections() {
    let comet = FakeComet::start();
    comet.answers(|call, _| {
        let is_last = call.to.iter().any(|to| to == "last");
        (Duration::ZERO, if is_last { Err(Status::unknown("full")) } else { Ok(()) })
    });
    let fleet = fleet(&touchy(goim_config()), TIMING);
    let mut many: Vec<String> = (0..40_000).map(|number| format!("connection-{number:019}")).collect();
    many.push("last".into());
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let delivered = outcomes(send(&fleet, &comet.address, &keys(&many), 1)).await;
    let CallOutcome::Partial(partly) = &delivered[0] else { panic!("{delivered:?}") };
    assert_eq!((&partly.unreachable[..], &partly.refused[..]), (&["last".into()][..], &[][..]));
}

/// Keys of which each call for one that is gone is answered with this after a moment.
fn comet_without(gone: &'static str, takes: Duration) -> FakeComet {
    let comet = FakeComet::start();
    comet.answers(move |call, _| {
        let names_one = call.to.iter().any(|to| to.starts_with(gone));
        (takes, if names_one { Err(Status::not_found("gone")) } else { Ok(()) })
    });
    comet
}

fn many(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}{number}")).collect()
}

#[tokio::test]
async fn many_connections_that_are_gone_hold_nobody_else_up() {
    for room in [None, Some("with-exceptions")] {
        let comet = comet_without("gone", Duration::from_millis(3));
        let fleet = fleet(&touchy(Config { ..config() }), TIMING);
        let gone = many("gone", 1500);
        let target = keys(&gone.iter().map(String::as_str).collect::<Vec<_>>());
        let all = request(&fleet, &comet.address, target, "x", "gone");
        let all = fleet.send_now(CallRequest { room: room.map(RoomId::from), ..all });
        let others = many("room-", 40).into_iter().map(|room| CallTarget::Room(room.as_str().into()));
        let others: Vec<_> = others.flat_map(|room| send(&fleet, &comet.address, &room, 1)).collect();
        assert_eq!(outcomes(others).await, vec![CallOutcome::Acknowledged; 40], "{room:?}");
        let calls = comet.calls();
        let is_other = |call: &SeenCall| call.to[0].starts_with("room-");
        let last = calls.iter().rposition(is_other).expect("they were called");
        assert!(last < 300, "{room:?}: {last} calls were made until all rooms had theirs");
        drop(all);
    }
}

#[tokio::test]
async fn who_is_there_gets_everything_in_order_among_many_who_are_gone() {
    let comet = comet_without("gone", Duration::ZERO);
    let fleet = fleet(&touchy(Config { ..config() }), TIMING);
    let mut names = many("gone", 100);
    names.extend(many("here", 100));
    fastrand::shuffle(&mut names);
    let all = keys(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let some = keys(&["here1", "gone1", "here2"]);
    let mut handles = Vec::new();
    for number in 0..9 {
        let target = match number % 3 {
            0 => all.clone(),
            1 => some.clone(),
            _ => keys(&["here1"]),
        };
        let id = format!("{number}");
        handles.push((number, fleet.send_now(request(&fleet, &comet.address, target, "x", &id))));
    }
    for (number, handle) in handles {
        match (number % 3, handle.await) {
            (0, CallOutcome::Partial(partly)) => assert_eq!(partly.unreachable.len(), 100),
            (1, CallOutcome::Partial(partly)) => assert_eq!(partly.unreachable, ["gone1".into()]),
            (2, CallOutcome::Acknowledged) => {}
            (_, other) => panic!("{number}: {other:?}"),
        }
    }
    let taken = |name: &str| -> Vec<String> {
        let calls = comet.calls().into_iter().filter(|call| !call.to.iter().any(|to| to.starts_with("gone")));
        calls.filter(|call| call.to.iter().any(|to| to == name)).flat_map(|call| call.ids).collect()
    };
    assert_eq!(taken("here1"), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    assert_eq!(taken("here2"), ["0", "1", "3", "4", "6", "7"]);
    assert_eq!(taken("here50"), ["0", "3", "6"]);
}

#[tokio::test]
async fn a_room_s_messages_keep_their_order_when_one_is_divided() {
    let comet = comet_without("gone", Duration::ZERO);
    let fleet = fleet(&touchy(Config { ..config() }), TIMING);
    let mut names = many("gone", 70);
    names.push("here".into());
    let some = keys(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let of_room = |target: CallTarget, id: &str| {
        let request = request(&fleet, &comet.address, target, "x", id);
        fleet.send_now(CallRequest { room: Some("r".into()), ..request })
    };
    let room = CallTarget::Room("r".into());
    let handles: Vec<_> = [(&room, "0"), (&some, "1"), (&room, "2"), (&some, "3"), (&room, "4")]
        .map(|(target, id)| of_room(target.clone(), id))
        .into();
    for (number, delivered) in outcomes(handles).await.into_iter().enumerate() {
        assert_eq!(matches!(delivered, CallOutcome::Partial(_)), number % 2 == 1, "{number}: {delivered:?}");
    }
    let taken = comet.calls().into_iter().filter(|call| !call.to.iter().any(|to| to.starts_with("gone")));
    let ids: Vec<String> = taken.flat_map(|call| call.ids).collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn so_many_calls_are_made_for_one_message_and_no_more() {
    let comet = comet_without("gone", Duration::ZERO);
    let timing = CallTimeouts { delivery_timeout: Duration::from_secs(60), ..TIMING };
    let fleet = fleet(&touchy(config()), timing);
    let gone = many("gone", 4_500);
    let target = keys(&gone.iter().map(String::as_str).collect::<Vec<_>>());
    let delivered = outcomes(send(&fleet, &comet.address, &target, 1)).await;
    let CallOutcome::Unreachable(why) = &delivered[0] else { panic!("{delivered:?}") };
    assert!(why.starts_with("NotFound: gone; after 4"), "{why}");
    assert!(why.ends_with("its other connections were not tried"), "{why}");
    assert!(comet.calls().len() <= 4_097, "{} calls", comet.calls().len());
}
