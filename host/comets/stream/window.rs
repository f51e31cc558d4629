//! What one stream has sent and the comet has not settled: numbers, credit, acknowledgements.
//!
//! Pure: times come as arguments. Messages are numbered 1, 2, 3, ... in the order in which they are
//! sent. A frame of the comet that breaks the protocol changes nothing; the caller ends the stream and
//! sends what is [left](SendWindow::into_unsettled) in another way, in the same order.
//!
//! Messages that are sent together may be one item ([`Messages`]): they cost one slot, and one move when
//! they are acknowledged together.

#[cfg(test)]
mod tests;

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

/// One or several messages.
pub(in crate::comets) trait Messages {
    /// How many; at least one.
    fn count(&self) -> usize;

    /// Takes the first ones, which are fewer than all.
    fn split_first(&mut self, count: usize) -> Self;
}

/// Messages with consecutive numbers.
#[derive(Debug)]
struct Sent<T> {
    /// The number of the first one, and of the one after the last.
    first: u64,
    end: u64,
    messages: T,
}

/// The unsettled messages of one stream.
#[derive(Debug)]
pub(in crate::comets) struct SendWindow<T> {
    /// In order of their numbers; what is settled is missing.
    out: VecDeque<Sent<T>>,
    /// How many were sent.
    sent: u64,
    unsettled: usize,
    sent_bytes: u64,
    credit: Credit,
    up_to: u64,
    /// The last number of each batch, and when it was sent.
    batches: VecDeque<(u64, Instant)>,
}

impl<T: Messages> SendWindow<T> {
    /// Nothing was sent yet, and this much may be sent.
    pub(in crate::comets) fn new(credit: Credit) -> Self {
        Self {
            out: VecDeque::new(),
            sent: 0,
            unsettled: 0,
            sent_bytes: 0,
            credit,
            up_to: 0,
            batches: VecDeque::new(),
        }
    }

    /// How many messages were sent.
    pub(in crate::comets) fn sent(&self) -> u64 {
        self.sent
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

    /// Takes credit for a message with a body of this size, which is sent now; returns its number. It is
    /// recorded afterwards, perhaps together with others.
    pub(in crate::comets) fn take_credit(&mut self, bytes: usize) -> u64 {
        self.unsettled += 1;
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64);
        self.sent += 1;
        self.sent
    }

    /// Records the messages that took credit last.
    pub(in crate::comets) fn push(&mut self, messages: T, now: Instant) {
        let first = self.sent + 1 - messages.count() as u64;
        self.out.push_back(Sent { first, end: self.sent + 1, messages });
        match self.batches.back_mut() {
            Some((last, at)) if *at == now => *last = self.sent,
            _ => self.batches.push_back((self.sent, now)),
        }
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
        // A frame that only names exceptions leaves it as it is: 0 is what an absent field reads as.
        let acks = Acks { up_to: if acks.up_to == 0 { self.up_to } else { acks.up_to }, ..acks };
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
        while let Some(sent) = self.out.front_mut().filter(|sent| sent.first <= up_to) {
            let messages = if sent.end <= up_to + 1 {
                let Some(sent) = self.out.pop_front() else { break };
                sent.messages
            } else {
                let count = (up_to + 1 - sent.first) as usize;
                sent.first = up_to + 1;
                sent.messages.split_first(count)
            };
            self.unsettled -= messages.count();
            settle(messages, Settled::Acknowledged);
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

    /// Takes one message out, unless it is settled.
    fn take(&mut self, number: u64) -> Option<T> {
        let at = self.out.partition_point(|sent| sent.end <= number);
        self.out.get(at).filter(|sent| sent.first <= number)?;
        let Sent { first, end, mut messages } = self.out.remove(at)?;
        if first < number {
            let before = messages.split_first((number - first) as usize);
            self.out.insert(at, Sent { first, end: number, messages: before });
        }
        if number + 1 < end {
            let taken = messages.split_first(1);
            let rest = Sent { first: number + 1, end, messages };
            self.out.insert(at + usize::from(first < number), rest);
            messages = taken;
        }
        self.unsettled -= 1;
        Some(messages)
    }

    /// Drops the batches before the oldest unsettled message.
    fn drop_settled(&mut self) {
        let first = self.out.front().map_or(self.sent + 1, |sent| sent.first);
        while self.batches.front().is_some_and(|(last, _)| *last < first) {
            self.batches.pop_front();
        }
    }

    /// When the oldest unsettled message was sent.
    pub(in crate::comets) fn oldest_sent(&self) -> Option<Instant> {
        self.batches.front().map(|(_, at)| *at)
    }

    /// The unsettled messages, in order.
    pub(in crate::comets) fn into_unsettled(self) -> impl Iterator<Item = T> {
        self.out.into_iter().map(|sent| sent.messages)
    }
}
