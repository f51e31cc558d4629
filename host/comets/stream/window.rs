//! What one stream has sent and the comet has not settled: numbers, credit, acknowledgements.
//!
//! Pure: times come as arguments. Messages are numbered 1, 2, 3, ... in the order in which they are
//! sent. A frame of the comet that breaks the protocol changes nothing; the caller ends the stream and
//! sends what is [left](SendWindow::into_unsettled) in another way, in the same order.
//!
//! A message costs a slot in a ring buffer, and its acknowledgement a move out of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::comets::proto::delivery::{Acks, Credit};

/// How the comet settled a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::comets) enum Settled {
    /// It was delivered.
    Acknowledged,
    /// It was delivered, but not to these connections, which are gone; all of them if the list is
    /// empty.
    Missing(Vec<String>),
    /// It will never be accepted: why.
    Refused(String),
}

/// Why a comet's frame breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::comets) enum Violation {
    /// It names a message that was not sent.
    #[error("it acknowledged message {named}, but only {sent} were sent")]
    NotSent { named: u64, sent: u64 },
    /// `up_to` is smaller than before.
    #[error("it acknowledged up to {now}, after {before}")]
    WentBack { now: u64, before: u64 },
    /// Credit is smaller than before.
    #[error("its credit shrank")]
    CreditShrank,
    /// A second Welcome.
    #[error("it sent Welcome twice")]
    WelcomeTwice,
}

/// The effect of an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::comets) struct Progress {
    /// How many messages it settled.
    pub(in crate::comets) settled: usize,
    /// How long the oldest message had been out, if it was settled.
    pub(in crate::comets) took: Option<Duration>,
}

/// The unsettled messages of one stream.
#[derive(Debug)]
pub(in crate::comets) struct SendWindow<T> {
    /// From the oldest unsettled one; `None` where a later one was settled first.
    out: VecDeque<Option<T>>,
    /// The number of the first of `out`.
    first: u64,
    unsettled: usize,
    sent_bytes: u64,
    credit: Credit,
    up_to: u64,
    /// The last number of each batch, and when it was sent.
    batches: VecDeque<(u64, Instant)>,
}

impl<T> SendWindow<T> {
    /// Nothing was sent yet, and this much may be sent.
    pub(in crate::comets) fn new(credit: Credit) -> Self {
        Self {
            out: VecDeque::new(),
            first: 1,
            unsettled: 0,
            sent_bytes: 0,
            credit,
            up_to: 0,
            batches: VecDeque::new(),
        }
    }

    /// How many messages were sent.
    pub(in crate::comets) fn sent(&self) -> u64 {
        self.first - 1 + self.out.len() as u64
    }

    /// How many messages are unsettled.
    pub(in crate::comets) fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// Whether the credit allows a message with a body of this size. One that exceeds the credit for
    /// bytes may go alone: a comet could not ask for more of a credit that is smaller than a message.
    pub(in crate::comets) fn allows(&self, bytes: usize) -> bool {
        let fits = self.sent_bytes.saturating_add(bytes as u64) <= self.credit.bytes;
        self.sent() < self.credit.messages && (fits || self.unsettled == 0)
    }

    /// Records a message that is sent now; returns its number.
    pub(in crate::comets) fn push(&mut self, message: T, bytes: usize, now: Instant) -> u64 {
        self.out.push_back(Some(message));
        self.unsettled += 1;
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64);
        let number = self.sent();
        match self.batches.back_mut() {
            Some((last, at)) if *at == now => *last = number,
            _ => self.batches.push_back((number, now)),
        }
        number
    }

    /// More may be sent.
    ///
    /// # Errors
    /// If it is less than before.
    pub(in crate::comets) fn grant(&mut self, credit: Credit) -> Result<(), Violation> {
        if credit.messages < self.credit.messages || credit.bytes < self.credit.bytes {
            return Err(Violation::CreditShrank);
        }
        self.credit = credit;
        Ok(())
    }

    /// Settles what the comet acknowledged. Each message is settled once, in order where `up_to` covers
    /// it; numbers that are already settled are ignored.
    ///
    /// # Errors
    /// If the frame breaks the protocol; then nothing is settled.
    pub(in crate::comets) fn acknowledge(
        &mut self,
        acks: Acks,
        now: Instant,
        mut settle: impl FnMut(T, Settled),
    ) -> Result<Progress, Violation> {
        self.check(&acks)?;
        let Acks { up_to, also, missing, refused } = acks;
        let (before, oldest) = (self.unsettled, self.oldest_sent());
        for refused in refused {
            self.take(refused.seq)
                .into_iter()
                .for_each(|it| settle(it, Settled::Refused(refused.reason.clone())));
        }
        for missing in missing {
            if let Some(message) = self.take(missing.seq) {
                settle(message, Settled::Missing(missing.ids));
            }
        }
        for number in also {
            self.take(number).into_iter().for_each(|message| settle(message, Settled::Acknowledged));
        }
        self.up_to = up_to;
        while self.first <= up_to
            && let Some(message) = self.out.pop_front()
        {
            self.first += 1;
            if let Some(message) = message {
                self.unsettled -= 1;
                settle(message, Settled::Acknowledged);
            }
        }
        self.drop_settled();
        let took = oldest.filter(|oldest| self.oldest_sent() != Some(*oldest));
        Ok(Progress {
            settled: before - self.unsettled,
            took: took.map(|sent| now.saturating_duration_since(sent)),
        })
    }

    fn check(&self, acks: &Acks) -> Result<(), Violation> {
        let sent = self.sent();
        let missing = acks.missing.iter().map(|missing| missing.seq);
        let refused = acks.refused.iter().map(|refused| refused.seq);
        let named = acks.also.iter().copied().chain(missing).chain(refused);
        if let Some(named) = named.chain([acks.up_to]).find(|named| *named > sent) {
            return Err(Violation::NotSent { named, sent });
        }
        if acks.up_to < self.up_to {
            return Err(Violation::WentBack { now: acks.up_to, before: self.up_to });
        }
        Ok(())
    }

    /// Takes a message out of its slot, unless it is settled.
    fn take(&mut self, number: u64) -> Option<T> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let message = self.out.get_mut(at)?.take();
        self.unsettled -= usize::from(message.is_some());
        message
    }

    /// Drops the slots and the batches before the oldest unsettled message.
    fn drop_settled(&mut self) {
        while let Some(None) = self.out.front() {
            self.out.pop_front();
            self.first += 1;
        }
        while self.batches.front().is_some_and(|(last, _)| *last < self.first) {
            self.batches.pop_front();
        }
    }

    /// When the oldest unsettled message was sent.
    pub(in crate::comets) fn oldest_sent(&self) -> Option<Instant> {
        self.batches.front().map(|(_, at)| *at)
    }

    /// The unsettled messages, in order.
    pub(in crate::comets) fn into_unsettled(self) -> impl Iterator<Item = T> {
        self.out.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comets::proto::delivery::{Missing, Refused};
    use proptest::prelude::*;

    const MUCH: Credit = Credit { messages: u64::MAX, bytes: u64::MAX };

    fn up_to(up_to: u64) -> Acks {
        Acks { up_to, ..Acks::default() }
    }

    fn sent(count: u64) -> SendWindow<u64> {
        let (mut window, now) = (SendWindow::new(MUCH), Instant::now());
        (1..=count).for_each(|number| assert_eq!(window.push(number, 1, now), number));
        window
    }

    /// What an acknowledgement settles.
    fn settled(window: &mut SendWindow<u64>, acks: Acks) -> Vec<(u64, Settled)> {
        let mut all = Vec::new();
        let progress = window.acknowledge(acks, Instant::now(), |number, how| all.push((number, how)));
        assert_eq!(progress.expect("allowed").settled, all.len());
        all
    }

    #[test]
    fn exceptions_count_before_what_up_to_covers() {
        let mut window = sent(5);
        let acks = Acks {
            up_to: 3,
            also: vec![5, 1],
            missing: vec![Missing { seq: 2, ids: vec!["c".into()] }],
            refused: vec![Refused { seq: 3, reason: "no".into() }],
        };
        let wanted = [
            (3, Settled::Refused("no".into())),
            (2, Settled::Missing(vec!["c".into()])),
            (5, Settled::Acknowledged),
            (1, Settled::Acknowledged),
        ];
        assert_eq!(settled(&mut window, acks), wanted);
        assert_eq!((window.unsettled(), window.sent()), (1, 5));
        assert_eq!(settled(&mut window, Acks { also: vec![2], ..up_to(4) }), [(4, Settled::Acknowledged)]);
        assert!(window.oldest_sent().is_none());
    }

    #[test]
    fn a_frame_that_breaks_the_protocol_changes_nothing() {
        let mut window = sent(3);
        settled(&mut window, up_to(2));
        let none = |acks| window.acknowledge(acks, Instant::now(), |_, _| panic!("settled"));
        let named = |named| Err(Violation::NotSent { named, sent: 3 });
        let mut none = none;
        assert_eq!(none(up_to(4)), named(4));
        assert_eq!(none(Acks { also: vec![3, 9], ..up_to(3) }), named(9));
        let missing = vec![Missing { seq: 5, ids: Vec::new() }];
        assert_eq!(none(Acks { missing, ..up_to(3) }), named(5));
        let refused = vec![Refused { seq: 6, reason: String::new() }];
        assert_eq!(none(Acks { refused, ..up_to(3) }), named(6));
        assert_eq!(none(up_to(1)), Err(Violation::WentBack { now: 1, before: 2 }));
        assert_eq!(window.into_unsettled().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn credit_bounds_messages_and_bytes_and_never_shrinks() {
        let mut window = SendWindow::new(Credit { messages: 2, bytes: 10 });
        assert!(window.allows(10) && window.allows(11), "a large message goes alone");
        window.push(1, 6, Instant::now());
        assert!(window.allows(4) && !window.allows(5));
        window.push(2, 4, Instant::now());
        assert!(!window.allows(0), "no credit for messages");
        assert_eq!(window.grant(Credit { messages: 3, bytes: 9 }), Err(Violation::CreditShrank));
        assert_eq!(window.grant(Credit { messages: 1, bytes: 90 }), Err(Violation::CreditShrank));
        window.grant(Credit { messages: 3, bytes: 10 }).expect("more");
        assert!(window.allows(0) && !window.allows(1));
        settled(&mut window, up_to(2));
        assert!(window.allows(100));
    }

    #[test]
    fn the_age_is_that_of_the_oldest_unsettled_message() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut window = SendWindow::new(MUCH);
        for at in 0..3 {
            window.push(at, 0, start + at as u32 * second);
        }
        let mut acknowledge = |acks, at| window.acknowledge(acks, at, |_, _| ()).expect("allowed");
        let progress = acknowledge(Acks { also: vec![2], ..up_to(0) }, start + 3 * second);
        assert_eq!(progress, Progress { settled: 1, took: None });
        let progress = acknowledge(up_to(1), start + 4 * second);
        assert_eq!(progress, Progress { settled: 1, took: Some(4 * second) });
        assert_eq!(window.oldest_sent(), Some(start + 2 * second));
    }

    /// What a comet and a gateway do.
    #[derive(Clone, Debug)]
    enum Step {
        Send(usize),
        Acks(Acks),
        Credit(Credit),
    }

    fn step() -> impl Strategy<Value = Step> {
        let number = 0u64..30;
        let acks = (number.clone(), proptest::collection::vec(number.clone(), 0..4), number.clone(), number)
            .prop_map(|(up_to, also, missing, refused)| Acks {
                up_to,
                also,
                missing: vec![Missing { seq: missing, ids: Vec::new() }],
                refused: vec![Refused { seq: refused, reason: String::new() }],
            });
        prop_oneof![
            (0usize..20).prop_map(Step::Send),
            acks.prop_map(Step::Acks),
            (0u64..40, 0u64..200).prop_map(|(messages, bytes)| Step::Credit(Credit { messages, bytes })),
        ]
    }

    proptest! {
        /// Against a map of numbers: each message is settled once or left at the end, in order; credit
        /// is kept; a violation changes nothing.
        #[test]
        fn every_message_is_settled_once_or_left(steps in proptest::collection::vec(step(), 1..60)) {
            let mut window = SendWindow::new(Credit { messages: 5, bytes: 50 });
            let (mut open, mut sent, mut last_up_to) = (std::collections::BTreeSet::new(), 0, 0);
            let (mut credit, mut bytes) = (Credit { messages: 5, bytes: 50 }, 0);
            for step in steps {
                match step {
                    Step::Send(size) => {
                        let fits = bytes + size as u64 <= credit.bytes || open.is_empty();
                        prop_assert_eq!(window.allows(size), sent < credit.messages && fits);
                        if window.allows(size) {
                            (sent, bytes) = (sent + 1, bytes + size as u64);
                            prop_assert_eq!(window.push(sent, size, Instant::now()), sent);
                            open.insert(sent);
                        }
                    }
                    Step::Credit(more) => {
                        let grows = more.messages >= credit.messages && more.bytes >= credit.bytes;
                        prop_assert_eq!(window.grant(more).is_ok(), grows);
                        if grows { credit = more; }
                    }
                    Step::Acks(acks) => {
                        let mut settled = Vec::new();
                        let result = window.acknowledge(acks.clone(), Instant::now(), |n, _| settled.push(n));
                        let named = acks.also.iter().copied().chain([acks.up_to, acks.missing[0].seq, acks.refused[0].seq]);
                        let is_allowed = named.clone().all(|named| named <= sent) && acks.up_to >= last_up_to;
                        prop_assert_eq!(result.is_ok(), is_allowed);
                        let expected: std::collections::BTreeSet<u64> = if is_allowed {
                            last_up_to = acks.up_to;
                            let named: Vec<u64> = named.collect();
                            open.iter().copied().filter(|n| *n <= acks.up_to || named.contains(n)).collect()
                        } else {
                            Default::default()
                        };
                        prop_assert_eq!(settled.len(), expected.len());
                        for number in settled {
                            prop_assert!(expected.contains(&number) && open.remove(&number));
                        }
                    }
                }
                prop_assert_eq!(window.unsettled(), open.len());
                prop_assert_eq!(window.oldest_sent().is_some(), !open.is_empty());
            }
            prop_assert!(window.into_unsettled().eq(open));
        }
    }
}
