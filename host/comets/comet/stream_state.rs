//! What a comet's task knows about its stream.

use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::call::Asks;
use super::concurrency::ConcurrencyLimit;
use super::live_stream::LiveStream;
use crate::comets::breaker::BreakerState;
use crate::comets::grpc::CallFailure;
use crate::comets::proto::delivery::FromComet;
use crate::comets::stream::open::{Offered, OpenStream, StreamNews};
use crate::comets::{CallTimeouts, DeliveryMode};

/// How long after a comet that does not serve streams was asked it is asked again on the same channel.
pub(super) const ASK_AGAIN: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(600) };
/// The same after a stream that failed; doubled with each failure in a row.
const ASK_SOON: Duration = Duration::from_secs(1);
/// The stream to a comet, and when to ask for another one.
pub(super) struct Streaming {
    pub(super) wanted: DeliveryMode,
    /// Whether the comet has to be asked before calls are made on the current channel.
    pub(super) is_unasked: bool,
    pub(super) live: Option<LiveStream>,
    /// A stream that begins once no call is in flight.
    pub(super) next: Option<Box<OpenStream>>,
    /// How many messages may be out.
    pub(super) limit: ConcurrencyLimit,
    /// How many streams in a row failed or were declined, and how many ended without an
    /// acknowledgement although messages waited.
    pub(super) failures: u32,
    pub(super) fruitless: u32,
    /// Until when nothing is sent, after a stream that ended without an acknowledgement.
    pub(super) held_until: Option<Instant>,
    /// How many messages the next stream sends one at a time: one of them ended the last one.
    pub(super) send_alone: usize,
    pub(super) ask_again_at: Option<Instant>,
    pub(super) asking: Option<BoxFuture<'static, Result<Offered, CallFailure>>>,
    /// Reused.
    pub(super) frames: Vec<FromComet>,
}

/// What the stream's part of the task handles next.
pub(super) enum StreamEvent {
    News(StreamNews),
    /// The answer to a question on a channel on which calls are made.
    Asked(Result<Offered, CallFailure>),
}

impl Streaming {
    pub(super) fn new(wanted: DeliveryMode, timing: CallTimeouts) -> Self {
        Self {
            wanted,
            is_unasked: wanted != DeliveryMode::Unary,
            live: None,
            next: None,
            limit: ConcurrencyLimit::of_messages(timing.request_timeout),
            failures: 0,
            fruitless: 0,
            held_until: None,
            send_alone: 0,
            ask_again_at: None,
            asking: None,
            frames: Vec::new(),
        }
    }

    /// Whether the first call on the current channel asks for a stream.
    pub(super) fn asks(&self) -> Asks {
        match self.wanted {
            _ if !self.is_unasked => Asks::No,
            DeliveryMode::Stream => Asks::Only,
            DeliveryMode::Auto => Asks::First,
            DeliveryMode::Unary => Asks::No,
        }
    }

    /// The channel is replaced: the comet is asked on the next one.
    pub(super) fn channel_renewed(&mut self) {
        self.is_unasked = self.wanted != DeliveryMode::Unary;
        (self.ask_again_at, self.asking, self.next) = (None, None, None);
    }

    /// Schedules the next question on this channel.
    pub(super) fn ask_later(&mut self, now: Instant) {
        let wait = match self.failures {
            0 => ASK_AGAIN,
            failures => ASK_SOON.saturating_mul(1 << (failures - 1).min(16)).min(ASK_AGAIN),
        };
        self.ask_again_at = Some(now + wait);
    }

    /// Whether no attempt may start now. Behind a breaker that is not closed, calls fail instead of
    /// waiting.
    pub(super) fn holds(&self, breaker: BreakerState, now: Instant) -> bool {
        let is_held = self.held_until.is_some_and(|until| now < until);
        self.next.is_some() || (is_held && breaker == BreakerState::Closed)
    }

    /// When its next timer is due.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let live = self.live.as_ref().map(|live| live.wakes_at(&self.limit));
        live.into_iter().chain(self.held_until).chain(self.ask_again_at).min()
    }

    /// Whether it has messages without an outcome.
    pub(super) fn is_empty(&self) -> bool {
        self.live.as_ref().is_none_or(LiveStream::is_empty)
    }

    /// Whether there is a stream, or a question.
    pub(super) fn has_events(&self) -> bool {
        self.live.is_some() || self.asking.is_some()
    }

    /// Waits for an event. Never ready without a stream or a question.
    pub(super) async fn event(&mut self) -> StreamEvent {
        std::future::poll_fn(|context| {
            if let Some(asking) = &mut self.asking
                && let Poll::Ready(offered) = asking.poll_unpin(context)
            {
                self.asking = None;
                return Poll::Ready(StreamEvent::Asked(offered));
            }
            match &mut self.live {
                Some(live) => live.poll(context, &mut self.frames).map(StreamEvent::News),
                None => Poll::Pending,
            }
        })
        .await
    }
}
