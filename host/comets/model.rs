//! A comet's queue, order and breaker under many interleavings of threads, by shuttle. A failure
//! prints the seed that brings it back (`SHUTTLE_RANDOM_SEED`).
//!
//! `cargo test --features models --lib model::` runs it.
//!
//! What is real: `places.rs`, over shuttle's atomic; `OrderQueues`; `Breaker`.
//! What stands in: the comet's task is a thread, tokio's bounded channel a bounded channel of
//! shuttle's, and a call ends when the thread says so. Order queues and breaker belong to the task
//! alone and need no lock; the breaker gets one here, so that callers really are threads.

use std::time::{Duration, Instant};

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use shuttle::sync::{self, Arc, Mutex};
use shuttle::thread;

use super::breaker::{Breaker, Settings, State};
use super::order::{Keys, OrderQueues, Token, Window};
use super::places::Places;

/// How many interleavings are tried.
const RUNS: usize = 2_000;
const SENDERS: usize = 3;
const EACH: usize = 4;

/// A call: its sender, and its number.
type Parcel = (usize, usize);

#[test]
fn calls_are_delivered_in_order_and_closing_ends() {
    shuttle::check_random(|| assert_eq!(send_and_deliver(SENDERS * EACH), 0), RUNS);
}

#[test]
fn a_full_queue_refuses_and_never_overflows() {
    shuttle::check_random(
        || {
            let refused = send_and_deliver(2);
            assert!(refused <= SENDERS * EACH - 2, "the first two always have places");
        },
        RUNS,
    );
}

/// Several threads send to one comet and go away. Returns how many parcels were
/// refused because all places were taken.
fn send_and_deliver(limit: usize) -> usize {
    let places = Arc::new(Places::default());
    let (inbox, received) = sync_channel(limit);
    let comet = {
        let places = Arc::clone(&places);
        thread::spawn(move || deliver(&received, &places))
    };
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (inbox, places) = (inbox.clone(), Arc::clone(&places));
            thread::spawn(move || send(sender, &inbox, &places, limit))
        })
        .collect();
    drop(inbox);
    let sent: Vec<Vec<Parcel>> = senders.into_iter().map(|sender| sender.join().expect("sends")).collect();
    let delivered = comet.join().expect("delivers");
    assert_eq!(places.taken(), 0, "every place was given back");
    for (sender, sent) in sent.iter().enumerate() {
        let got: Vec<Parcel> = delivered.iter().filter(|(from, _)| *from == sender).copied().collect();
        assert_eq!(got, *sent, "what one sender sent, in its order");
    }
    SENDERS * EACH - delivered.len()
}

/// What `Comet::send` does.
fn send(sender: usize, inbox: &SyncSender<Parcel>, places: &Places, limit: usize) -> Vec<Parcel> {
    let mut sent = Vec::new();
    for number in 0..EACH {
        if !places.take(1, limit) {
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

/// What a comet's task does: takes over what has come, starts what may start, and ends calls
/// at any time. Each sender has a key; the first sender's parcels are barriers.
fn deliver(inbox: &Receiver<Parcel>, places: &Places) -> Vec<Parcel> {
    let window = Window { time: Duration::ZERO, items: 100, bytes: 1000 };
    let (mut queues, mut in_flight, mut delivered) =
        (OrderQueues::new(window), Vec::<(Token, Vec<Parcel>)>::new(), Vec::new());
    let now = Instant::now();
    let mut open = true;
    while open || !queues.is_empty() {
        // Only a task with nothing in flight sleeps until something comes.
        match if in_flight.is_empty() { inbox.recv().ok() } else { inbox.try_recv().ok() } {
            Some(parcel) => queues.push(keys_of(parcel.0), (parcel.0 > 0).then_some(1), parcel, now),
            None if in_flight.is_empty() => open = false,
            None => {}
        }
        while let Some((token, parcel)) = queues.next_ready(now) {
            let joined = queues.join_next(&token, |next: &Parcel| next.0 == parcel.0);
            in_flight.push((token, [parcel].into_iter().chain(joined).collect()));
        }
        assert!(in_flight.len() <= 2, "two in flight of one key");
        if !in_flight.is_empty() {
            let (token, parcels) = in_flight.swap_remove(thread_rng().gen_range(0..in_flight.len()));
            queues.finish(token, now);
            parcels.iter().for_each(|_| {
                places.give_back(1);
            });
            delivered.extend(parcels);
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
            let places = Arc::new(Places::default());
            assert!(places.take(1, 1));
            let other = {
                let places = Arc::clone(&places);
                thread::spawn(move || places.take(1, 1))
            };
            places.give_back(1);
            let mine = places.take(1, 1);
            let others = other.join().expect("takes");
            assert!(mine || others, "the one place is free, and both were refused");
            assert_eq!(places.taken(), usize::from(mine) + usize::from(others));
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
            assert_eq!(breaker.state(), State::Closed);
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
        if breaker.state() == State::HalfOpen {
            assert_eq!(probes.fetch_add(1, SeqCst), 0, "two probes at a time");
        }
        permit
    };
    thread::yield_now();
    let mut breaker = breaker.lock().unwrap();
    if breaker.state() == State::HalfOpen {
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
                thread::spawn(move || breaker.lock().unwrap().is_back())
            };
            back.join().expect("reports");
            let state = breaker.lock().unwrap().state();
            prober.join().expect("probes");
            let after = breaker.lock().unwrap().state();
            assert!(state != State::Closed || after == State::Closed, "{state:?}, then {after:?}");
        },
        RUNS,
    );
}

/// A breaker that opened at once, for a short time.
fn opened() -> Breaker {
    let short = Duration::from_millis(1);
    let mut breaker =
        Breaker::new(Settings { failures: 1, patience: Duration::ZERO, open: short, open_max: short });
    let now = Instant::now();
    let permit = breaker.admit(now).expect("closed");
    breaker.failed(permit, now, 1.0);
    assert_eq!(breaker.state(), State::Open);
    breaker
}
