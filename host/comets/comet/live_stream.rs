//! An open stream of one comet: what waits for it, what is out on it, and when it has failed.
//!
//! Messages wait in one queue, in order; one stream is one order. They are sent in batches: at once
//! while nothing is out, and otherwise with the next acknowledgement, when many wait, or after a
//! millisecond, as in Nagle's algorithm. So a lone message does not wait, and under load a batch costs
//! one write, however many messages it carries.
//!
//! The number of messages that are out follows the comet's credit and how soon it acknowledges, so that
//! a comet with much credit and little speed does not miss deadlines.

use std::collections::{HashSet, VecDeque};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::concurrency::ConcurrencyLimit;
use crate::comets::breaker::AttemptPermit;
use crate::comets::grpc::printable;
use crate::comets::order::OrderToken;
use crate::comets::proto::delivery::{Acks, FromComet, from_comet};
use crate::comets::queued_call::QueuedCall;
use crate::comets::stream::frames::{self, BatchWriter};
use crate::comets::stream::open::{OpenStream, StreamEnd, StreamNews};
use crate::comets::stream::window::{Messages as _, Progress, SendWindow, Settled, Violation};
use crate::comets::{CallOutcome, CallTimeouts, PartialDelivery};
use crate::message::{CallTarget, ConnectionId};

/// While messages are out, fewer than this many runs of messages wait for others.
const ENOUGH: usize = 64;
/// But not longer than this.
const GATHER: Duration = Duration::from_millis(1);
/// The shortest interval of Pings.
const MIN_HEARTBEAT: Duration = Duration::from_millis(100);

pub(super) struct LiveStream {
    stream: Box<OpenStream>,
    window: SendWindow<QueuedCall>,
    /// Messages that are not sent yet, in order.
    waiting: VecDeque<QueuedCall>,
    /// The order and the permit of the messages that probe a comet whose breaker is not closed.
    probe: Option<(OrderToken, AttemptPermit)>,
    writer: BatchWriter,
    timing: CallTimeouts,
    with_ids: bool,
    heartbeat: Option<Duration>,
    /// When a frame was last sent, and when an unanswered Ping was.
    written_at: Instant,
    pinged_at: Option<Instant>,
    /// Whether the comet has acknowledged something since a batch was sent, and at all.
    acknowledged: bool,
    has_progress: bool,
    /// How many more messages are sent one at a time, and whether the last one was.
    send_alone: usize,
    was_alone: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The comet or its server is going to end: nothing more is sent.
    GoingAway,
    /// Finish was sent.
    Finished,
}

/// Why a stream is over.
#[derive(Debug)]
pub(super) enum Over {
    /// The comet ended it, or broke the protocol, or the connection broke.
    Comet(StreamEnd),
    /// Acknowledgements or a Pong did not come in time.
    Overdue,
    /// A message has waited too long to be sent.
    Stalled,
    /// The comet went away, and everything that was out is settled.
    Drained,
}

/// What is left of a stream.
pub(super) struct Leftovers {
    /// The unsettled messages, in order, and how many of them were sent.
    pub(super) calls: VecDeque<QueuedCall>,
    pub(super) sent: usize,
    pub(super) probe: Option<(OrderToken, AttemptPermit)>,
    /// Whether the comet acknowledged anything.
    pub(super) has_progress: bool,
    /// Whether the only message that was sent had to be alone.
    pub(super) was_alone: bool,
}

impl LiveStream {
    pub(super) fn new(stream: Box<OpenStream>, timing: CallTimeouts, with_ids: bool, now: Instant) -> Self {
        let heartbeat = Duration::from_millis(u64::from(stream.welcome.heartbeat_ms));
        Self {
            window: SendWindow::new(stream.welcome.credit.unwrap_or_default()),
            stream,
            waiting: VecDeque::new(),
            probe: None,
            writer: BatchWriter::default(),
            timing,
            with_ids,
            heartbeat: (!heartbeat.is_zero()).then(|| heartbeat.max(MIN_HEARTBEAT)),
            written_at: now,
            pinged_at: None,
            acknowledged: false,
            has_progress: false,
            send_alone: 0,
            was_alone: false,
            phase: Phase::Open,
        }
    }

    /// The next messages, this many, are sent one at a time.
    pub(super) fn send_alone(&mut self, messages: usize) {
        self.send_alone = messages;
    }

    /// The messages behind it probe the comet. They keep the order of their keys meanwhile.
    pub(super) fn probe(&mut self, token: OrderToken, permit: AttemptPermit, calls: VecDeque<QueuedCall>) {
        self.probe = Some((token, permit));
        self.waiting.extend(calls);
    }

    /// The probe, once the comet has acknowledged something.
    pub(super) fn take_probe(&mut self) -> Option<(OrderToken, AttemptPermit)> {
        self.probe.take()
    }

    pub(super) fn push(&mut self, call: QueuedCall) {
        self.waiting.push_back(call);
    }

    /// Whether nothing waits and nothing is out.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.window.unsettled() == 0
    }

    /// Sends what may be sent now. Returns how many messages that were.
    pub(super) fn send(&mut self, limit: &ConcurrencyLimit, now: Instant) -> usize {
        if self.phase != Phase::Open || !self.stream.is_writable() || !self.is_due(now) {
            return 0;
        }
        let mut count = 0;
        while !self.writer.is_full()
            && let Some(call) = self.waiting.front()
        {
            if call.is_cancelled() {
                drop(self.waiting.pop_front());
                continue;
            }
            let mut written = 0;
            for message in call.messages() {
                let bytes = message.payload.body_len();
                let is_allowed = self.window.allows(bytes) && self.has_room(limit, written);
                if !is_allowed || self.writer.is_full() {
                    break;
                }
                self.was_alone = self.send_alone > 0;
                self.send_alone = self.send_alone.saturating_sub(1);
                let seq = self.window.take_credit(bytes);
                self.writer.push(&call.outgoing(message, seq, self.with_ids));
                written += 1;
            }
            let is_whole = written == call.len();
            let sent = match self.waiting.front_mut() {
                _ if is_whole => self.waiting.pop_front(),
                Some(call) if written > 0 => Some(call.split_first(written)),
                _ => None,
            };
            sent.into_iter().for_each(|sent| self.window.push(sent, now));
            count += written;
            if !is_whole {
                break;
            }
        }
        if count > 0 {
            self.writer.finish().into_iter().for_each(|piece| self.stream.write(piece));
            (self.written_at, self.acknowledged) = (now, false);
        }
        count
    }

    fn is_due(&self, now: Instant) -> bool {
        let is_idle = self.acknowledged || self.window.unsettled() == 0;
        is_idle || self.waiting.len() >= ENOUGH || now >= self.written_at + GATHER
    }

    /// Writes and reads what is possible.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        frames: &mut Vec<FromComet>,
    ) -> Poll<StreamNews> {
        self.stream.poll(context, frames)
    }

    /// The comet or its server is going to end.
    pub(super) fn go_away(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::GoingAway;
            // Lets a server end that waits for its calls.
            self.stream.write(frames::finish());
        }
    }

    /// Nothing more arrives: says so, once everything is sent.
    pub(super) fn finish(&mut self) {
        if self.waiting.is_empty() && self.phase == Phase::Open {
            self.phase = Phase::Finished;
            self.stream.write(frames::finish());
        }
    }

    /// Ends the gateway's side.
    pub(super) fn end(&mut self) {
        self.stream.end();
    }

    /// Handles one of the comet's frames.
    ///
    /// # Errors
    /// If it breaks the protocol.
    pub(super) fn handle(&mut self, frame: FromComet, now: Instant) -> Result<Progress, Violation> {
        self.pinged_at = None;
        match frame.frame {
            Some(from_comet::Frame::Acks(acks)) => return self.acknowledge(acks, now),
            Some(from_comet::Frame::Credit(credit)) => {
                self.window.grant(credit)?;
            }
            Some(from_comet::Frame::GoAway(_)) => self.go_away(),
            Some(from_comet::Frame::Welcome(_)) => return Err(Violation::WelcomeTwice),
            // A frame of a later version is ignored.
            Some(from_comet::Frame::Pong(_)) | None => {}
        }
        Ok(Progress::default())
    }

    fn acknowledge(&mut self, acks: Acks, now: Instant) -> Result<Progress, Violation> {
        let settle = |call: QueuedCall, settled| {
            let outcome = outcome(&call.target, settled);
            call.settle(&outcome);
        };
        let progress = self.window.acknowledge(acks, now, settle)?;
        if progress.settled > 0 {
            (self.acknowledged, self.has_progress) = (true, true);
        }
        Ok(progress)
    }

    /// When [`LiveStream::check`] or [`LiveStream::send`] have something to do, unless the comet does
    /// something before.
    pub(super) fn wakes_at(&self, limit: &ConcurrencyLimit) -> Instant {
        let CallTimeouts { request_timeout, delivery_timeout } = self.timing;
        let overdue =
            self.window.oldest_sent().into_iter().chain(self.pinged_at).map(|at| at + request_timeout);
        let stalled = self.waiting.front().map(|call| call.queued + delivery_timeout);
        let gathered = self.waiting.front().map(|_| self.written_at + GATHER);
        // What may not be sent waits for the comet's next frame.
        let gathered = gathered.filter(|_| self.may_send(limit)).into_iter();
        let ping = self.heartbeat.filter(|_| self.pinged_at.is_none()).map(|every| self.written_at + every);
        let never = self.written_at + Duration::from_secs(3600);
        overdue.chain(stalled).chain(gathered).chain(ping).min().unwrap_or(never)
    }

    fn may_send(&self, limit: &ConcurrencyLimit) -> bool {
        let bytes = self.waiting.front().map_or(0, |call| call.payload().body_len());
        let is_open = self.phase == Phase::Open && self.stream.is_writable();
        is_open && self.window.allows(bytes) && self.has_room(limit, 0)
    }

    /// Whether another message may be out, after this many that are being written.
    fn has_room(&self, limit: &ConcurrencyLimit, written: usize) -> bool {
        let unsettled = self.window.unsettled();
        let is_alone = self.send_alone > 0 || self.was_alone;
        limit.allows(unsettled) && (unsettled + written == 0 || !is_alone)
    }

    /// Whether it is meant to end.
    pub(super) fn is_ending(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Sends a Ping if one is due. Returns why the stream is over, if it is.
    pub(super) fn check(&mut self, now: Instant) -> Option<Over> {
        let CallTimeouts { request_timeout, delivery_timeout } = self.timing;
        let mut awaited = self.window.oldest_sent().into_iter().chain(self.pinged_at);
        if awaited.any(|at| at + request_timeout <= now) {
            return Some(Over::Overdue);
        }
        if self.phase == Phase::GoingAway && self.window.unsettled() == 0 {
            return Some(Over::Drained);
        }
        if self.probe.is_some() && self.is_empty() {
            // What probed the comet was cancelled.
            return Some(Over::Drained);
        }
        if self.waiting.front().is_some_and(|call| call.queued + delivery_timeout <= now) {
            return Some(Over::Stalled);
        }
        if self.pinged_at.is_none() && self.heartbeat.is_some_and(|every| self.written_at + every <= now) {
            (self.pinged_at, self.written_at) = (Some(now), now);
            self.stream.write(frames::ping(fastrand::u64(..)));
        }
        None
    }

    /// Ends it.
    pub(super) fn into_leftovers(self) -> Leftovers {
        let sent = self.window.unsettled();
        let calls = self.window.into_unsettled().flat_map(QueuedCall::into_singles).chain(self.waiting);
        let calls = calls.collect();
        let was_alone = self.was_alone && sent == 1;
        Leftovers { calls, sent, probe: self.probe, has_progress: self.has_progress, was_alone }
    }
}

/// The outcome of a message for its target.
fn outcome(target: &CallTarget, settled: Settled) -> CallOutcome {
    let ids = match settled {
        Settled::Acknowledged => return CallOutcome::Acknowledged,
        Settled::Refused(why) if why.is_empty() => {
            return CallOutcome::Refused("the comet refused it".to_owned());
        }
        Settled::Refused(why) => return CallOutcome::Refused(printable(&why)),
        Settled::Missing(ids) => ids,
    };
    let missing: Vec<ConnectionId> = match target {
        CallTarget::Room(_) if ids.is_empty() => return CallOutcome::NobodyThere,
        CallTarget::Room(_) => ids.into_iter().map(Into::into).collect(),
        CallTarget::Connections(keys) if ids.is_empty() => keys.clone(),
        CallTarget::Connections(keys) => {
            let ids: HashSet<String> = ids.into_iter().collect();
            keys.iter().filter(|key| ids.contains(key.as_str())).cloned().collect()
        }
        // Whoever is not there has nothing to miss.
        CallTarget::Everyone { .. } => Vec::new(),
    };
    if missing.is_empty() {
        return CallOutcome::Acknowledged;
    }
    CallOutcome::Partial(Box::new(PartialDelivery { missing, ..PartialDelivery::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_connections_are_those_of_the_call() {
        let (room, everyone) = (CallTarget::Room("r".into()), CallTarget::Everyone { speed: 0 });
        let keys = CallTarget::Connections(vec!["a".into(), "b".into()]);
        let missing = |ids: &[&str]| Settled::Missing(ids.iter().map(|id| (*id).to_owned()).collect());
        let partly = |ids: &[&str]| {
            let missing = ids.iter().map(|id| (*id).into()).collect();
            CallOutcome::Partial(Box::new(PartialDelivery { missing, ..PartialDelivery::default() }))
        };
        assert_eq!(outcome(&room, missing(&[])), CallOutcome::NobodyThere);
        assert_eq!(outcome(&room, missing(&["a"])), partly(&["a"]));
        assert_eq!(outcome(&keys, missing(&[])), partly(&["a", "b"]));
        assert_eq!(outcome(&keys, missing(&["b", "other"])), partly(&["b"]));
        assert_eq!(outcome(&keys, missing(&["other"])), CallOutcome::Acknowledged);
        assert_eq!(outcome(&everyone, missing(&["a"])), CallOutcome::Acknowledged);
        assert_eq!(outcome(&room, Settled::Acknowledged), CallOutcome::Acknowledged);
        assert_eq!(outcome(&room, Settled::Refused("no\n".into())), CallOutcome::Refused("no ".into()));
    }
}
