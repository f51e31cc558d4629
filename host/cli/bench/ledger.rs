//! What was sent, what arrived, and how late. Pure.
//!
//! Messages of a room are numbered from 1. Each comet of a room should get each of them once, in order.

use std::time::Duration;

use hdrhistogram::Histogram;
use smart_default::SmartDefault;

/// One message, as its body says. The time is that of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) run: u32,
    pub(super) room: usize,
    pub(super) number: u64,
    /// When it was sent.
    pub(super) sent: Duration,
}

/// How a message reaches a comet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Delivery {
    /// By a call of the dialect.
    Unary,
    /// By a stream (`proto/delivery.proto`).
    Stream,
}

/// The names of all rooms, users and connections begin with this.
pub(super) const PREFIX: &str = "halley-bench-";

/// The first word of every body.
const MARK: &str = "halley-bench";

impl Stamp {
    /// A body of about this size.
    pub(super) fn body(self, size: usize) -> Vec<u8> {
        let Self { run, room, number, sent } = self;
        let mut body = format!("{MARK} {run:08x} {room} {number} {} ", sent.as_micros()).into_bytes();
        body.resize(body.len().max(size), b'.');
        body
    }

    /// The message of this body; `None` if it is not one of a benchmark.
    pub(super) fn of(body: &[u8]) -> Option<Self> {
        let mut words = body.split(|byte| *byte == b' ').map(|word| std::str::from_utf8(word).ok());
        let mut next = || words.next().flatten();
        (next()? == MARK).then_some(())?;
        let run = u32::from_str_radix(next()?, 16).ok()?;
        let (room, number) = (next()?.parse().ok()?, next()?.parse().ok()?);
        Some(Self { run, room, number, sent: Duration::from_micros(next()?.parse().ok()?) })
    }
}

/// What one comet got of one room.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// A bit for each number.
    seen: Vec<u64>,
    highest: u64,
    received: u64,
    repeated: u64,
    reordered: u64,
}

impl Lane {
    fn arrived(&mut self, number: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.repeated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        self.reordered += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
    }

    fn has(&self, number: u64) -> bool {
        self.seen.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// What arrived at all comets.
#[derive(Debug)]
pub(super) struct Ledger {
    /// By comet and room.
    lanes: Vec<Vec<Lane>>,
    /// How many messages of each room were sent, and which Kafka did not confirm.
    sent: Vec<u64>,
    unconfirmed: Vec<Vec<u64>>,
    /// How many arrived by streams, repeated ones included.
    streamed: u64,
    latencies: Latencies,
}

/// The sums of a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Totals {
    /// Messages that Kafka confirmed.
    pub(super) sent: u64,
    /// Messages that Kafka did not confirm.
    pub(super) unconfirmed: u64,
    /// What should arrive, and what did.
    pub(super) expected: u64,
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) reordered: u64,
    /// What came by streams, repeated messages included.
    pub(super) streamed: u64,
}

/// Latencies in microseconds, to a thousandth.
#[derive(Debug, SmartDefault)]
pub(super) struct Latencies(#[default(Histogram::new(3).expect("three digits are possible"))] Histogram<u64>);

impl Latencies {
    fn add(&mut self, latency: Duration) {
        self.0 += latency.as_micros() as u64;
    }

    /// The latency that this share of messages does not exceed, rounded up; `None` without messages.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        (!self.0.is_empty()).then(|| Duration::from_micros(self.0.value_at_quantile(share)))
    }

    pub(super) fn longest(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }
}

impl Ledger {
    pub(super) fn new(comets: usize, rooms: usize) -> Self {
        Self {
            lanes: vec![vec![Lane::default(); rooms]; comets],
            sent: vec![0; rooms],
            unconfirmed: vec![Vec::new(); rooms],
            streamed: 0,
            latencies: Latencies::default(),
        }
    }

    /// The number of the next message of a room, which is sent now.
    pub(super) fn next(&mut self, room: usize) -> u64 {
        self.sent[room] += 1;
        self.sent[room]
    }

    /// Kafka may not have a message.
    pub(super) fn not_confirmed(&mut self, room: usize, number: u64) {
        self.unconfirmed[room].push(number);
    }

    /// A comet got a message, at this time of the run, in this way.
    pub(super) fn arrived(&mut self, comet: usize, stamp: Stamp, at: Duration, by: Delivery) {
        let is_sent = self.sent.get(stamp.room).is_some_and(|sent| (1..=*sent).contains(&stamp.number));
        let Some(lane) = self.lanes.get_mut(comet).and_then(|rooms| rooms.get_mut(stamp.room)) else {
            return;
        };
        // Foreign numbers would cost memory.
        if is_sent {
            lane.arrived(stamp.number);
            self.streamed += u64::from(by == Delivery::Stream);
            self.latencies.add(at.saturating_sub(stamp.sent));
        }
    }

    /// Forgets how late messages were so far.
    pub(super) fn forget_latencies(&mut self) {
        self.latencies = Latencies::default();
    }

    pub(super) fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    pub(super) fn totals(&self) -> Totals {
        let comets = self.lanes.len() as u64;
        let unconfirmed = self.unconfirmed.iter().map(|numbers| numbers.len() as u64).sum();
        let sent = self.sent.iter().sum::<u64>() - unconfirmed;
        let (expected, streamed) = (sent * comets, self.streamed);
        let mut totals = Totals { sent, unconfirmed, expected, streamed, ..Totals::default() };
        for lane in self.lanes.iter().flatten() {
            totals.received += lane.received;
            totals.repeated += lane.repeated;
            totals.reordered += lane.reordered;
        }
        // An unconfirmed message may arrive all the same.
        let arrived = |lane: &Lane, room: usize| {
            self.unconfirmed[room].iter().filter(|number| lane.has(**number)).count() as u64
        };
        let extra: u64 = self
            .lanes
            .iter()
            .flat_map(|rooms| rooms.iter().enumerate().map(|(room, lane)| arrived(lane, room)))
            .sum();
        totals.lost = totals.expected.saturating_sub(totals.received - extra);
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(room: usize, number: u64) -> Stamp {
        Stamp { run: 7, room, number, sent: Duration::from_millis(number) }
    }

    #[test]
    fn a_body_carries_its_stamp() {
        let stamp = stamp(3, 42);
        for size in [0, 10, 500] {
            let body = stamp.body(size);
            assert!(body.len() >= size);
            assert_eq!(Stamp::of(&body), Some(stamp));
        }
        for other in [&b""[..], b"hello", b"halley-bench 7", b"halley-bench zz 1 1 1 ", b"\xff"] {
            assert_eq!(Stamp::of(other), None);
        }
    }

    #[test]
    fn each_comet_should_get_each_message_once_and_in_order() {
        let mut ledger = Ledger::new(2, 2);
        for _ in 0..4 {
            ledger.next(0);
        }
        ledger.next(1);
        for (comet, room, number) in [
            (0, 0, 1),
            (0, 0, 2),
            (0, 0, 2),
            (0, 0, 4),
            (0, 0, 3),
            (0, 1, 1),
            (1, 0, 1),
            (1, 0, 9),
            (7, 0, 1),
        ] {
            let by = if room == 0 { Delivery::Unary } else { Delivery::Stream };
            ledger.arrived(comet, stamp(room, number), Duration::from_secs(1), by);
        }
        ledger.not_confirmed(0, 2);
        let expected = Totals {
            sent: 4,
            unconfirmed: 1,
            expected: 8,
            received: 6,
            lost: 3,
            repeated: 1,
            reordered: 1,
            streamed: 1,
        };
        assert_eq!(ledger.totals(), expected);
        assert!(ledger.latencies().quantile(0.5).is_some_and(|half| half > Duration::from_millis(990)));
    }

    #[test]
    fn a_quantile_is_that_of_the_messages() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        (1..=1_000).for_each(|ms| latencies.add(Duration::from_millis(ms)));
        let near = |share, ms: u64| {
            let found = latencies.quantile(share).expect("there are messages").as_micros() as u64;
            assert!((ms * 1_000..=ms * 1_001).contains(&found), "{share}: {found}");
        };
        near(0.5, 500);
        near(0.99, 990);
        near(1.0, 1_000);
    }
}
