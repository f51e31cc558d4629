//! Messages that were given up, and what follows them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Status;

use super::support::*;
use crate::comets::{BreakerState, CallOutcome, CallTimeouts, Config, Fleet, OrderHold, Outcomes};
use crate::message::CallTarget;

const SHORT: CallTimeouts =
    CallTimeouts { request_timeout: Duration::from_secs(2), delivery_timeout: Duration::from_millis(200) };

/// Keeps the outcome and the hold of each call.
#[derive(Debug, Default)]
struct Keeper(Mutex<Vec<(usize, CallOutcome, Option<OrderHold>)>>);

/// Keeps those of the message with this number there.
#[derive(Debug)]
struct Kept(Arc<Keeper>, usize);

impl Outcomes for Kept {
    fn not_acknowledged(&self, _: u32, _: usize, outcome: CallOutcome, hold: Option<OrderHold>) {
        self.0.0.lock().push((self.1, outcome, hold));
    }

    fn finish(self: Arc<Self>, _: Range<u32>) {
        let mut ended = self.0.0.lock();
        if ended.iter().all(|(number, ..)| *number != self.1) {
            ended.push((self.1, CallOutcome::Acknowledged, None));
        }
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A comet that does not accept anything until the test lets it, and the outcomes of calls to it.
struct World {
    comet: FakeComet,
    fleet: Arc<Fleet>,
    accepts: Arc<AtomicBool>,
    keeper: Arc<Keeper>,
}

impl World {
    fn new(config: &Config) -> Self {
        let (comet, accepts) = (FakeComet::start(), Arc::new(AtomicBool::new(false)));
        let open = Arc::clone(&accepts);
        comet.answers(move |call, _| {
            let takes = open.load(Ordering::Relaxed) || call.to.iter().any(|to| to == "other");
            (Duration::ZERO, if takes { Ok(()) } else { Err(Status::unavailable("no")) })
        });
        Self { comet, fleet: fleet(config, SHORT), accepts, keeper: Arc::default() }
    }

    /// Sends a message with this number.
    fn send(&self, target: CallTarget, number: usize) {
        let request = request(&self.fleet, &self.comet.address, target, "x", &number.to_string());
        let kept = Arc::new(Kept(Arc::clone(&self.keeper), number));
        self.fleet.try_send(replying_to(request, kept)).expect("room in the queue");
    }

    fn ended(&self, number: usize) -> bool {
        self.keeper.0.lock().iter().any(|(call, ..)| *call == number)
    }

    async fn wait_for(&self, number: usize) {
        eventually("a call has its outcome", || self.ended(number)).await;
    }

    fn outcome(&self, number: usize) -> CallOutcome {
        let ended = self.keeper.0.lock();
        let (_, outcome, _) = ended.iter().find(|(call, ..)| *call == number).expect("it has ended");
        outcome.clone()
    }

    fn has_hold(&self, number: usize) -> bool {
        self.keeper.0.lock().iter().any(|(call, _, hold)| *call == number && hold.is_some())
    }

    /// The outcome of this message is durable.
    fn release(&self, number: usize) {
        let mut ended = self.keeper.0.lock();
        ended.iter_mut().filter(|(call, ..)| *call == number).for_each(|(.., hold)| *hold = None);
    }

    /// A message for another room passes through the comet's task, and so has what came before it.
    async fn something_else(&self, number: usize) {
        self.send(CallTarget::Room("other".into()), number);
        self.wait_for(number).await;
    }

    /// What a room or connection accepted.
    fn accepted(&self, name: &str, from: usize) -> Vec<String> {
        let calls = self.comet.calls().split_off(from);
        let here = calls.into_iter().filter(|call| call.to.iter().any(|to| to == name));
        here.flat_map(|call| call.ids).collect()
    }
}

fn room() -> CallTarget {
    CallTarget::Room("r".into())
}

fn keys(keys: &[&str]) -> CallTarget {
    CallTarget::Connections(keys.iter().map(|key| (*key).into()).collect())
}

#[tokio::test]
async fn what_follows_waits_until_the_outcome_is_durable() {
    let world = World::new(&patient(config()));
    world.send(room(), 1);
    world.wait_for(1).await;
    assert!(matches!(world.outcome(1), CallOutcome::Unreachable(_)) && world.has_hold(1));
    world.accepts.store(true, Ordering::Relaxed);
    let before = world.comet.calls().len();
    world.send(room(), 2);
    world.send(room(), 3);
    // Longer than messages wait otherwise: these have an attempt nevertheless.
    tokio::time::sleep(SHORT.delivery_timeout * 2).await;
    world.something_else(100).await;
    assert!(!world.ended(2) && !world.ended(3), "they wait");
    world.release(1);
    world.wait_for(3).await;
    assert_eq!(world.outcome(2), CallOutcome::Acknowledged);
    assert_eq!(world.accepted("r", before)[0], "2", "the first one has an attempt however long it waited");
}

#[tokio::test]
async fn only_the_connections_that_were_given_up_wait() {
    let world = World::new(&patient(config()));
    world.send(keys(&["a"]), 1);
    world.wait_for(1).await;
    world.accepts.store(true, Ordering::Relaxed);
    let before = world.comet.calls().len();
    world.send(keys(&["a", "b"]), 2);
    eventually("b has it", || world.accepted("b", before) == ["2"]).await;
    world.something_else(100).await;
    assert!(world.accepted("a", before).is_empty() && !world.ended(2));
    world.release(1);
    world.wait_for(2).await;
    assert_eq!(
        (world.outcome(2), world.accepted("a", before)),
        (CallOutcome::Acknowledged, vec!["2".into()])
    );
}

#[tokio::test]
async fn a_connection_that_is_not_there_holds_nothing() {
    let world = World::new(&patient(config()));
    world.comet.answers(|_, _| (Duration::ZERO, Err(Status::not_found("gone"))));
    world.send(keys(&["a"]), 1);
    world.wait_for(1).await;
    assert!(matches!(world.outcome(1), CallOutcome::Unreachable(_)) && !world.has_hold(1));
}

#[tokio::test]
async fn nothing_waits_behind_an_open_breaker() {
    let long = Duration::from_secs(60);
    let world =
        World::new(&Config { breaker_failures: 1, breaker_open: long, breaker_open_max: long, ..config() });
    let World { comet, fleet, .. } = &world;
    let address = comet.address.clone();
    assert_eq!(to_room(fleet, &address, "other", "0").await, CallOutcome::Acknowledged);
    let World { comet, fleet, keeper, .. } = world;
    drop(comet);
    let send = |number: usize| {
        let request = request(&fleet, &address, room(), "x", &number.to_string());
        let kept = Arc::new(Kept(Arc::clone(&keeper), number));
        fleet.try_send(replying_to(request, kept)).expect("room in the queue");
    };
    for number in 1..4 {
        send(number);
        eventually("it has its outcome", || keeper.0.lock().len() == number).await;
    }
    assert_eq!(fleet.status()[0].breaker, BreakerState::Open);
    assert!(keeper.0.lock().iter().all(|(_, _, hold)| hold.is_some()), "they keep their order");
}

/// A stream ends while a later message waits for the release of its room: what the stream had must not
/// get behind that one, since the message that holds the room may wait for it.
#[tokio::test]
async fn what_a_stream_had_is_not_behind_later_messages() {
    let (comet, fleet) = (FakeComet::start_streaming(), fleet(&config(), TIMING));
    let send =
        |target: CallTarget, id: &str| fleet.send_now(request(&fleet, &comet.address, target, "x", id));
    let first = send(room(), "1");
    let mut stream = comet.welcomed().await;
    stream.messages(1).await;
    stream.acknowledge(1);
    assert_eq!(first.await, CallOutcome::Acknowledged);
    let second = send(room(), "2");
    stream.messages(1).await;
    let known = fleet.usable(&request(&fleet, &comet.address, room(), "x", "")).expect("it was called");
    let hold = known.state.hold_behind_queue(&room(), None);
    let mut third = send(room(), "3");
    let other = send(CallTarget::Room("other".into()), "4");
    assert_eq!(stream.messages(1).await[0].id, "4", "the third one has been parked before");
    stream.fail(Status::unavailable("no more"));
    assert_eq!((second.await, other.await), (CallOutcome::Acknowledged, CallOutcome::Acknowledged));
    assert_eq!(futures_util::future::poll_immediate(&mut third).await, None, "its room is held");
    drop(hold);
    assert_eq!(third.await, CallOutcome::Acknowledged);
    let ids: Vec<_> = comet.calls().into_iter().flat_map(|call| call.ids).collect();
    assert!(ids.iter().position(|id| id == "2") < ids.iter().position(|id| id == "3"), "{ids:?}");
}
