//! What arrives at comets, and in which order.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use super::support::*;
use crate::comets::{CallOutcome, CallRequest, Config};
use crate::message::{CallTarget, NamedBy};

/// The three kinds of calls with their message ids.
fn kinds() -> [(CallTarget, &'static str); 3] {
    [
        (CallTarget::Room("video_123".into()), "push/0/1"),
        (CallTarget::Connections(vec!["c1".into(), "c2".into()]), "push/0/2"),
        (CallTarget::Everyone { speed: 30 }, "push/0/3"),
    ]
}

async fn calls_of_all_kinds(config: &Config) -> Vec<SeenCall> {
    let (comet, fleet) = (FakeComet::start(), fleet(config, TIMING));
    let payload = fleet.payload_now(5, &Bytes::from_static(b"hi"));
    for (target, id) in kinds() {
        let (comet, payload) = (comet.address.clone(), payload.clone());
        let delivered = fleet
            .send_now(CallRequest {
                comet,
                named_by: NamedBy::Record,
                target,
                room: None,
                run: run(payload, id, handle().0),
            })
            .await;
        assert_eq!(delivered, CallOutcome::Acknowledged);
    }
    comet.calls()
}

fn expected(head: (i32, i32, i32), body: &'static [u8]) -> Vec<SeenCall> {
    let call = SeenCall { head, body: Bytes::from_static(body), ..SeenCall::default() };
    let (room, keys) = (vec!["video_123".to_owned()], vec!["c1".to_owned(), "c2".to_owned()]);
    let ids = |id: &str| vec![id.to_owned()];
    vec![
        SeenCall { method: "BroadcastRoom", to: room, ids: ids("push/0/1"), ..call.clone() },
        SeenCall { method: "PushMsg", to: keys, ids: ids("push/0/2"), proto_op: Some(5), ..call.clone() },
        SeenCall { method: "Broadcast", ids: ids("push/0/3"), proto_op: Some(5), speed: Some(30), ..call },
    ]
}

#[tokio::test]
async fn chatroom_comets_get_the_body_as_it_is() {
    assert_eq!(calls_of_all_kinds(&config()).await, expected((1, 5, 0), b"hi"));
}

#[tokio::test]
async fn goim_comets_get_frames() {
    let frame = b"\0\0\0\x12\0\x10\0\x01\0\0\0\x05\0\0\0\0hi";
    assert_eq!(calls_of_all_kinds(&goim_config()).await, expected((1, 9, 0), frame));
}

#[tokio::test]
async fn rooms_and_connections_keep_order_at_any_latency() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::from_micros(fastrand::u64(1..2000)), Ok(())));
    let fleet = fleet(&config(), TIMING);
    let mut handles = Vec::new();
    for number in 0..600 {
        let target = match fastrand::usize(..10) {
            0 => CallTarget::Everyone { speed: 0 },
            1..4 => {
                let keys = ["k1", "k2", "k3", "k4"].into_iter().filter(|_| fastrand::bool());
                CallTarget::Connections(keys.chain(["k5"]).map(Into::into).collect())
            }
            _ => CallTarget::Room(format!("room_{}", fastrand::usize(..6)).into()),
        };
        handles.push(fleet.send_now(request(&fleet, &comet.address, target, &format!("{number:04}"), "id")));
    }
    for handle in handles {
        assert_eq!(handle.await, CallOutcome::Acknowledged);
    }
    let mut last = HashMap::<String, Bytes>::new();
    let calls = comet.calls();
    assert_eq!(calls.len(), 600);
    for SeenCall { mut to, body, .. } in calls {
        if to.is_empty() {
            to = last.keys().cloned().collect();
        }
        for to in to {
            let before = last.insert(to.clone(), body.clone());
            assert!(before.is_none_or(|before| before < body), "{to} got {body:?} too late");
        }
    }
}

/// Sends to rooms at once, so that what is for one room waits together.
async fn merged(comet: &FakeComet, rooms: &[&str]) -> (Vec<CallOutcome>, Vec<SeenCall>) {
    merged_with(comet, rooms, |number| number.to_string()).await
}

/// As `merged`, with these ids, which are the bodies too.
async fn merged_with(
    comet: &FakeComet,
    rooms: &[&str],
    id: impl Fn(usize) -> String,
) -> (Vec<CallOutcome>, Vec<SeenCall>) {
    let fleet = fleet(&goim_config(), TIMING);
    let send = |(number, room): (usize, &&str)| {
        let id = id(number);
        fleet.send_now(request(&fleet, &comet.address, CallTarget::Room((*room).into()), &id, &id))
    };
    let handles: Vec<CallHandle> = rooms.iter().enumerate().map(send).collect();
    let mut outcomes = Vec::new();
    for handle in handles {
        outcomes.push(handle.await);
    }
    (outcomes, comet.calls())
}

fn ids(calls: &[SeenCall]) -> Vec<Vec<&str>> {
    calls.iter().map(|call| call.ids.iter().map(String::as_str).collect()).collect()
}

#[tokio::test]
async fn goim_messages_that_wait_for_one_room_travel_together() {
    let comet = FakeComet::start();
    let (outcomes, mut calls) = merged(&comet, &["a", "a", "b", "a", "b", "a"]).await;
    assert_eq!(outcomes, vec![CallOutcome::Acknowledged; 6]);
    calls.sort_by(|one, other| one.ids.cmp(&other.ids));
    assert_eq!(ids(&calls), [vec!["0", "1", "3", "5"], vec!["2", "4"]], "whatever waits between");
    let frames = b"\0\0\0\x11\0\x10\0\x01\0\0\0\x05\0\0\0\x000\0\0\0\x11\0\x10\0\x01\0\0\0\x05\0\0\0\x001\0\0\0\x11\0\x10\0\x01\0\0\0\x05\0\0\0\x003\
        \0\0\0\x11\0\x10\0\x01\0\0\0\x05\0\0\0\x005";
    assert_eq!(calls[0].body, Bytes::from_static(frames));
    assert_eq!((calls[0].to[0].as_str(), calls[0].head), ("a", (1, 9, 0)));
}

#[tokio::test]
async fn a_hundred_travel_together_and_no_more() {
    let comet = FakeComet::start();
    let (outcomes, calls) = merged(&comet, &["a"; 250]).await;
    assert_eq!(outcomes, vec![CallOutcome::Acknowledged; 250]);
    let all: Vec<String> = calls.iter().flat_map(|call| call.ids.clone()).collect();
    assert_eq!(all, (0..250).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(calls.iter().all(|call| call.ids.len() <= 100), "{:?}", ids(&calls));
}

#[tokio::test]
async fn long_ids_and_long_bodies_travel_in_smaller_groups() {
    let comet = FakeComet::start();
    let (outcomes, calls) = merged_with(&comet, &["a"; 40], |number| format!("{number:0>500}")).await;
    assert_eq!(outcomes, vec![CallOutcome::Acknowledged; 40]);
    assert_eq!(calls.iter().map(|call| call.ids.len()).sum::<usize>(), 40);
    assert!(calls.iter().all(|call| call.ids.len() <= 13), "{:?}", ids(&calls));

    let fleet = fleet(&goim_config(), TIMING);
    let body = "x".repeat(30 * 1024);
    let send = |_| fleet.send_now(request(&fleet, &comet.address, CallTarget::Room("b".into()), &body, "id"));
    let handles: Vec<CallHandle> = (0..5).map(send).collect();
    for handle in handles {
        assert_eq!(handle.await, CallOutcome::Acknowledged);
    }
    assert!(comet.calls().iter().all(|call| call.body.len() <= 64 * 1024));
}

#[tokio::test]
async fn one_refused_message_harms_none_that_travel_with_it() {
    let comet = FakeComet::start();
    comet.answers(|call, _| {
        let has_poison = call.ids.iter().any(|id| id == "2");
        (Duration::ZERO, if has_poison { Err(Status::invalid_argument("bad")) } else { Ok(()) })
    });
    let (outcomes, calls) = merged(&comet, &["a"; 4]).await;
    let good = CallOutcome::Acknowledged;
    let refused = CallOutcome::Refused("InvalidArgument: bad".into());
    assert_eq!(outcomes, [good.clone(), good.clone(), refused, good]);
    assert_eq!(ids(&calls), [vec!["0", "1", "2", "3"], vec!["0"], vec!["1"], vec!["2"], vec!["3"]]);
}

#[tokio::test]
async fn a_cancelled_call_is_not_made_and_blocks_nothing() {
    let comet = FakeComet::start();
    comet.answers(|_, _| (Duration::from_millis(300), Ok(())));
    let fleet = fleet(&config(), TIMING);
    let send =
        |id: &str| fleet.send_now(request(&fleet, &comet.address, CallTarget::Room("a".into()), "x", id));
    let first = send("first");
    eventually("the first call is under way", || comet.calls().len() == 1).await;
    // Its partition is revoked: another gateway delivers it, and what comes after it.
    drop(send("second"));
    assert_eq!(send("third").await, CallOutcome::Acknowledged);
    assert_eq!(first.await, CallOutcome::Acknowledged);
    assert_eq!(ids(&comet.calls()), [vec!["first"], vec!["third"]]);
}

#[tokio::test]
async fn what_follows_within_the_window_travels_together() {
    let comet = FakeComet::start();
    let merge_window = Duration::from_millis(200);
    let fleet = fleet(&Config { merge_window, ..goim_config() }, TIMING);
    let send =
        |id: &str| fleet.send_now(request(&fleet, &comet.address, CallTarget::Room("a".into()), id, id));
    assert_eq!(send("first").await, CallOutcome::Acknowledged, "it goes at once");
    let mut handles = Vec::new();
    for id in ["1", "2", "3"] {
        handles.push(send(id));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for handle in handles {
        assert_eq!(handle.await, CallOutcome::Acknowledged);
    }
    assert_eq!(ids(&comet.calls()), [vec!["first"], vec!["1", "2", "3"]]);
}
