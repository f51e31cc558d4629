//! The benchmark's load: one task that sends at a rate, and users who come and go.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::poll_immediate;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;

use super::ledger::{Ledger, Stamp};
use crate::directory::{Registration, Registrations};
use crate::kafka::{Producer, WriteError};
use crate::message::{Audience, RoomId, encode};

/// How many messages may wait for Kafka. Beyond that, fewer are sent than was asked for.
const UNCONFIRMED: usize = 5_000;
/// How often messages are sent.
const TICK: Duration = Duration::from_millis(2);
/// The operation of the messages.
const OPERATION: i32 = 4;

/// Sends numbered messages to rooms.
pub(super) struct Sender {
    pub(super) producer: Producer,
    pub(super) topic: String,
    pub(super) rooms: Vec<RoomId>,
    pub(super) size: usize,
    pub(super) run: u32,
    pub(super) began: Instant,
    pub(super) ledger: Arc<Mutex<Ledger>>,
}

/// Messages that wait for Kafka, each with its room and number.
type Unconfirmed<'a> =
    FuturesUnordered<Pin<Box<dyn Future<Output = (usize, u64, Result<(), WriteError>)> + Send + 'a>>>;

impl Sender {
    /// Sends one message to each room, and waits for Kafka.
    ///
    /// # Errors
    /// If Kafka does not take one.
    pub(super) async fn send_to_each(&self) -> Result<(), WriteError> {
        let mut unconfirmed = Unconfirmed::new();
        for room in 0..self.rooms.len() {
            self.send(room, &mut unconfirmed).await;
        }
        let mut failed = None;
        while let Some(confirmed) = unconfirmed.next().await {
            failed = failed.or(self.note(confirmed));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends to the rooms in turn, at this rate per second. Returns why Kafka did not take messages, if so.
    pub(super) async fn run(&self, rate: f64, lasts: Duration) -> Option<WriteError> {
        let (mut unconfirmed, mut failed) = (Unconfirmed::new(), None);
        let (since, mut sent) = (Instant::now(), 0_u64);
        while since.elapsed() < lasts {
            let due = (since.elapsed().as_secs_f64() * rate) as u64;
            while sent < due && unconfirmed.len() < UNCONFIRMED {
                let room = (sent % self.rooms.len() as u64) as usize;
                self.send(room, &mut unconfirmed).await;
                sent += 1;
            }
            // What could not be sent in time is not made up for.
            sent = sent.max(due.saturating_sub(rate as u64));
            let tick = tokio::time::sleep(TICK);
            tokio::pin!(tick);
            loop {
                tokio::select! {
                    biased;
                    () = &mut tick => break,
                    confirmed = unconfirmed.next(), if !unconfirmed.is_empty() => {
                        failed = failed.or(confirmed.and_then(|confirmed| self.note(confirmed)));
                    }
                }
            }
        }
        while let Some(confirmed) = unconfirmed.next().await {
            failed = failed.or(self.note(confirmed));
        }
        failed
    }

    /// Puts a message into the producer's queue: those of a room stay in order.
    async fn send<'a>(&'a self, room: usize, unconfirmed: &mut Unconfirmed<'a>) {
        let number = self.ledger.lock().next(room);
        let stamp = Stamp { run: self.run, room, number, sent: self.began.elapsed() };
        let value = encode(&Audience::Room(self.rooms[room].clone()), OPERATION, &stamp.body(self.size));
        let mut write = Box::pin(async move {
            let key = self.rooms[room].as_str().as_bytes();
            (room, number, self.producer.put(&self.topic, key, &value).await)
        });
        match poll_immediate(&mut write).await {
            Some(confirmed) => drop(self.note(confirmed)),
            None => unconfirmed.push(write),
        }
    }

    fn note(&self, (room, number, confirmed): (usize, u64, Result<(), WriteError>)) -> Option<WriteError> {
        let error = confirmed.err()?;
        self.ledger.lock().not_confirmed(room, number);
        Some(error)
    }
}

/// Users who come and go while others stay: at this rate per second, one who is there leaves, or one who is
/// not joins. Returns why Redis did not take it, if so; and then stops.
pub(super) async fn churn(
    registrations: &Registrations,
    guests: &[Registration],
    rate: f64,
) -> Option<crate::directory::Unavailable> {
    if guests.is_empty() || rate <= 0.0 {
        return std::future::pending().await;
    }
    let mut is_there = vec![false; guests.len()];
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    loop {
        ticks.tick().await;
        let at = fastrand::usize(..guests.len());
        let guest = std::slice::from_ref(&guests[at]);
        let changed = match is_there[at] {
            true => registrations.leave(guest).await,
            false => registrations.join(guest).await,
        };
        if let Err(error) = changed {
            return Some(error);
        }
        is_there[at] = !is_there[at];
    }
}
