//! A comet's queue, order and breaker under many interleavings of threads, by shuttle. A failure
//! prints the seed that reproduces it (`SHUTTLE_RANDOM_SEED`).
//!
//! `cargo test --features models --lib model::` runs it.
//!
//! Real: `capacity.rs`, on shuttle's atomics; `OrderQueues`; `Breaker`.
//! Replaced: the comet's task is a thread, tokio's bounded channel is shuttle's, and a call ends
//! when the thread decides. In production, order queues and breaker belong to one task and need no
//! lock; here the breaker has one, so that its callers can be threads.

use std::time::{Duration, Instant};

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use shuttle::sync::{self, Arc, Mutex};
use shuttle::thread;

use super::breaker::{Breaker, BreakerSettings, BreakerState};
use super::capacity::Capacity;
use super::order::{Keys, OrderQueues, OrderToken, Weight, Window};

/// The number of interleavings.
const RUNS: usize = 2_000;
const SENDERS: usize = 3;
const EACH: usize = 4;

/// A call: its sender, and its number.
type CallRequest = (usize, usize);

#[test]
fn calls_are_delivered_in_order_and_closing_ends() {
    shuttle::check_random(|| assert_eq!(send_and_deliver(SENDERS * EACH), 0), RUNS);
}

#[test]
fn a_full_queue_refuses_and_never_overflows() {
    shuttle::check_random(
        || {
            let refused = send_and_deliver(2);
            assert!(refused <= SENDERS * EACH - 2, "the first two always have room");
        },
        RUNS,
    );
}

/// Several threads send to one comet and end. Returns how many calls were refused because the queue
/// was full.
fn send_and_deliver(limit: usize) -> usize {
    let capacity = Arc::new(Capacity::default());
    let (inbox, received) = sync_channel(limit);
    let comet = {
        let capacity = Arc::clone(&capacity);
        thread::spawn(move || deliver(&received, &capacity))
    };
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (inbox, capacity) = (inbox.clone(), Arc::clone(&capacity));
            thread::spawn(move || send(sender, &inbox, &capacity, limit))
        })
        .collect();
    drop(inbox);
    let sent: Vec<Vec<CallRequest>> =
        senders.into_iter().map(|sender| sender.join().expect("sends")).collect();
    let delivered = comet.join().expect("delivers");
    assert_eq!(capacity.taken(), 0, "every place was given back");
    for (sender, sent) in sent.iter().enumerate() {
        let got: Vec<CallRequest> = delivered.iter().filter(|(from, _)| *from == sender).copied().collect();
        assert_eq!(got, *sent, "what one sender sent, in its order");
    }
    SENDERS * EACH - delivered.len()
}

/// What `Comet::send` does.
fn send(
    sender: usize,
    inbox: &SyncSender<CallRequest>,
    capacity: &Capacity,
    limit: usize,
) -> Vec<CallRequest> {
    let mut sent = Vec::new();
    for number in 0..EACH {
        if !capacity.take(1, limit) {
            continue;
        }
        match inbox.try_send((sender, number)) {
            Ok(()) => sent.push((sender, number)),
            Err(TrySendError::Full(_)) => panic!("a place, but no room in the channel"),
            Err(TrySendError::Disconnected(_)) => panic!("the comet ended before its senders"),
        }
    }
    sent
}

/// Acts as a comet's task: receives calls, starts those that may start, and ends them at any time.
/// Each sender has a key; the first sender's calls are barriers.
fn deliver(inbox: &Receiver<CallRequest>, capacity: &Capacity) -> Vec<CallRequest> {
    let window = Window { time: Duration::ZERO, grid: Duration::ZERO, items: 100, bytes: 1000 };
    let (mut queues, mut in_flight, mut delivered) =
        (OrderQueues::new(window), Vec::<(OrderToken, Vec<CallRequest>)>::new(), Vec::new());
    let now = Instant::now();
    let mut open = true;
    while open || !queues.is_empty() {
        // Waits only if nothing is in flight.
        match if in_flight.is_empty() { inbox.recv().ok() } else { inbox.try_recv().ok() } {
            Some(request) => queues.push(
                keys_of(request.0),
                (request.0 > 0).then_some(Weight { items: 1, bytes: 1 }),
                request,
                now,
            ),
            None if in_flight.is_empty() => open = false,
            None => {}
        }
        while let Some((token, request)) = queues.next_ready(now) {
            let joined = queues.join_next(&token, |next: &CallRequest| next.0 == request.0);
            in_flight.push((token, [request].into_iter().chain(joined).collect()));
        }
        assert!(in_flight.len() <= 2, "two in flight of one key");
        if !in_flight.is_empty() {
            let (token, calls) = in_flight.swap_remove(thread_rng().gen_range(0..in_flight.len()));
            queues.finish(token, now);
            calls.iter().for_each(|_| {
                capacity.release(1);
            });
            delivered.extend(calls);
        }
    }
    delivered
}

fn keys_of(sender: usize) -> Keys<usize> {
    if sender == 0 { Keys::Barrier } else { Keys::One(sender) }
}

#[test]
fn free_capacity_is_not_refused() {
    shuttle::check_random(
        || {
            let capacity = Arc::new(Capacity::default());
            assert!(capacity.take(1, 1));
            let other = {
                let capacity = Arc::clone(&capacity);
                thread::spawn(move || capacity.take(1, 1))
            };
            capacity.release(1);
            let mine = capacity.take(1, 1);
            let others = other.join().expect("takes");
            assert!(mine || others, "the one place is free, and both were refused");
            assert_eq!(capacity.taken(), usize::from(mine) + usize::from(others));
        },
        RUNS,
    );
}

#[test]
fn only_one_caller_probes_and_a_cancelled_probe_repeats() {
    shuttle::check_random(
        || {
            let breaker = Arc::new(Mutex::new(opened()));
            let probes = Arc::new(sync::atomic::AtomicUsize::new(0));
            let late = Instant::now() + Duration::from_secs(3600);
            let callers: Vec<_> = (0..3)
                .map(|caller| {
                    let (breaker, probes) = (Arc::clone(&breaker), Arc::clone(&probes));
                    thread::spawn(move || call(caller, &breaker, &probes, late))
                })
                .collect();
            callers.into_iter().for_each(|caller| caller.join().expect("calls"));
            let mut breaker = breaker.lock().unwrap();
            let permit = breaker.admit(late).expect("nobody calls any more");
            breaker.succeeded(permit);
            assert_eq!(breaker.state(), BreakerState::Closed);
        },
        RUNS,
    );
}

/// One caller: cancels its attempt, or has it answered.
fn call(caller: usize, breaker: &Mutex<Breaker>, probes: &sync::atomic::AtomicUsize, now: Instant) {
    use sync::atomic::Ordering::SeqCst;
    let permit = {
        let mut breaker = breaker.lock().unwrap();
        let Some(permit) = breaker.admit(now) else { return };
        if breaker.state() == BreakerState::HalfOpen {
            assert_eq!(probes.fetch_add(1, SeqCst), 0, "two probes at a time");
        }
        permit
    };
    thread::yield_now();
    let mut breaker = breaker.lock().unwrap();
    if breaker.state() == BreakerState::HalfOpen {
        probes.fetch_sub(1, SeqCst);
    }
    if caller == 0 {
        drop(permit);
    } else {
        breaker.succeeded(permit);
    }
}

/// The comet recovers while others probe: the breaker closes, and stays closed whatever they report.
#[test]
fn a_recovered_comet_stays_closed_while_probes_report() {
    shuttle::check_random(
        || {
            let breaker = Arc::new(Mutex::new(opened()));
            let late = Instant::now() + Duration::from_secs(3600);
            let prober = {
                let breaker = Arc::clone(&breaker);
                thread::spawn(move || {
                    let permit = breaker.lock().unwrap().admit(late);
                    thread::yield_now();
                    if let Some(permit) = permit.filter(|permit| permit.is_probe()) {
                        breaker.lock().unwrap().failed(permit, late, 1.0);
                    }
                })
            };
            let back = {
                let breaker = Arc::clone(&breaker);
                thread::spawn(move || breaker.lock().unwrap().force_close())
            };
            back.join().expect("reports");
            let state = breaker.lock().unwrap().state();
            prober.join().expect("probes");
            let after = breaker.lock().unwrap().state();
            assert!(
                state != BreakerState::Closed || after == BreakerState::Closed,
                "{state:?}, then {after:?}"
            );
        },
        RUNS,
    );
}

/// A breaker that opened at once, for a short time.
fn opened() -> Breaker {
    let short = Duration::from_millis(1);
    let mut breaker =
        Breaker::new(BreakerSettings { failures: 1, window: Duration::ZERO, open: short, open_max: short });
    let now = Instant::now();
    let permit = breaker.admit(now).expect("closed");
    breaker.failed(permit, now, 1.0);
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker
}
