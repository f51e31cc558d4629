//! The state that a comet's task shares with the fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::breaker::BreakerState;
use super::capacity::Capacity;
use super::hold::{HeldKeys, OrderHold};
use super::metrics::CometMetrics;
use super::order_key::keys_of;
use super::shortage::ResourceShortage;
use super::source::{ChannelMode, Source};
use crate::message::{CallTarget, CometAddr, RoomId};

/// The state that a comet's task shares with the fleet.
#[derive(Debug)]
pub(super) struct CometState {
    pub(super) address: CometAddr,
    pub(super) metrics: CometMetrics,
    pub(super) shortage: Arc<ResourceShortage>,
    source: AtomicU8,
    state: AtomicU8,
    mode: AtomicU8,
    /// Calls without an outcome, and their size in bytes.
    unsettled: Capacity,
    bytes: Capacity,
    /// Notified when half of both is free again.
    pub(super) freed: Notify,
    /// Until when the comet counts as too slow, in milliseconds since `created_at`.
    slow_until: AtomicU64,
    /// How many messages may wait because the comet is quick: see `comet::queue_limit`.
    quick: AtomicUsize,
    /// The calls that are in flight.
    in_flight: AtomicUsize,
    /// The keys of messages that were given up and have no durable outcome yet.
    pub(super) held: Arc<HeldKeys>,
    /// The number of the next call.
    pub(super) next_number: AtomicU64,
    created_at: Instant,
    /// The last answer, in milliseconds since `created_at`; 0 if there was none.
    answered: AtomicU64,
    /// When an entry of the directory last named it, and the latest such time that was shared with
    /// the other gateways: in milliseconds since 1970, 0 for never.
    named_at: AtomicU64,
    shared_at: AtomicU64,
    retired_at: AtomicU64,
    /// Whether it was evicted for another comet.
    evicted: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl CometState {
    pub(super) fn new(
        address: CometAddr,
        source: Source,
        metrics: CometMetrics,
        shortage: Arc<ResourceShortage>,
    ) -> Self {
        Self {
            address,
            metrics,
            shortage,
            source: AtomicU8::new(source as u8),
            state: AtomicU8::new(BreakerState::Closed as u8),
            mode: AtomicU8::new(ChannelMode::Unknown as u8),
            unsettled: Capacity::default(),
            bytes: Capacity::default(),
            freed: Notify::new(),
            slow_until: AtomicU64::new(0),
            quick: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            held: Arc::default(),
            next_number: AtomicU64::new(0),
            created_at: Instant::now(),
            answered: AtomicU64::new(0),
            named_at: AtomicU64::new(0),
            shared_at: AtomicU64::new(0),
            retired_at: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            last_error: Mutex::new(None),
        }
    }

    pub(super) fn source(&self) -> Source {
        let value = self.source.load(Ordering::Relaxed);
        Source::ALL.into_iter().find(|source| *source as u8 == value).unwrap_or(Source::Retired)
    }

    pub(super) fn set_source(&self, source: Source) {
        self.source.store(source as u8, Ordering::Relaxed);
    }

    pub(super) fn breaker_state(&self) -> BreakerState {
        let known = [BreakerState::Closed, BreakerState::Open];
        let value = self.state.load(Ordering::Relaxed);
        known.into_iter().find(|state| *state as u8 == value).unwrap_or(BreakerState::HalfOpen)
    }

    pub(super) fn set_breaker_state(&self, state: BreakerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn channel_mode(&self) -> ChannelMode {
        let value = self.mode.load(Ordering::Relaxed);
        ChannelMode::ALL.into_iter().find(|mode| *mode as u8 == value).unwrap_or(ChannelMode::Unknown)
    }

    pub(super) fn set_channel_mode(&self, mode: ChannelMode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
        self.metrics.streaming.set(i64::from(mode == ChannelMode::Stream));
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.taken()
    }

    pub(super) fn in_flight(&self) -> &AtomicUsize {
        &self.in_flight
    }

    /// Evicts it for another comet: its queued calls fail once it has no senders.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
    }

    /// Whether it was evicted for another comet.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// The comet answered a call.
    pub(super) fn note_answer(&self) {
        self.answered.store((self.created_at.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// Whether the comet has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) > 0
    }

    /// An entry of the directory named it, as seen by this or another gateway.
    pub(super) fn note_named(&self, at_ms: u64) {
        self.named_at.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// When an entry of the directory last named it, in milliseconds since 1970; 0 for never.
    pub(super) fn named_at(&self) -> u64 {
        self.named_at.load(Ordering::Relaxed)
    }

    /// An operator no longer lists it.
    pub(super) fn retire(&self, at_ms: u64) {
        self.retired_at.store(at_ms, Ordering::Relaxed);
        self.set_source(Source::Retired);
    }

    /// When it was last retired, in milliseconds since 1970; 0 for never.
    pub(super) fn retired_at(&self) -> u64 {
        self.retired_at.load(Ordering::Relaxed)
    }

    /// The other gateways know that it was named at this moment.
    pub(super) fn note_shared(&self, at_ms: u64) {
        self.shared_at.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// The latest time of being named that the other gateways know.
    pub(super) fn shared_at(&self) -> u64 {
        self.shared_at.load(Ordering::Relaxed)
    }

    /// A call expired before its first attempt: the comet counts as slow for as long again.
    pub(super) fn note_slow(&self, delivery_timeout: Duration) {
        let until = (self.created_at.elapsed() + delivery_timeout).as_millis() as u64;
        self.slow_until.store(until, Ordering::Relaxed);
        self.set_quick(0);
    }

    /// Whether the comet keeps up, so that a full queue is worth waiting for.
    pub(super) fn keeps_up(&self) -> bool {
        let is_behind =
            (self.created_at.elapsed().as_millis() as u64) < self.slow_until.load(Ordering::Relaxed);
        self.breaker_state() == BreakerState::Closed && !is_behind
    }

    /// This many messages may wait, if that is more than configured.
    pub(super) fn set_quick(&self, messages: usize) {
        self.quick.store(messages, Ordering::Relaxed);
    }

    fn max_waiting(&self, room: QueueCapacity) -> usize {
        room.messages.max(self.quick.load(Ordering::Relaxed))
    }

    /// Takes room in the queue for this many messages.
    pub(super) fn take(
        self: &Arc<Self>,
        messages: usize,
        bytes: usize,
        room: QueueCapacity,
    ) -> Option<QueueSlot> {
        if !self.unsettled.take(messages, self.max_waiting(room)) {
            return None;
        }
        if !self.bytes.take(bytes, room.bytes) {
            self.unsettled.release(messages);
            return None;
        }
        self.metrics.waiting.inc_by(messages as i64);
        Some(QueueSlot { state: Arc::clone(self), messages, bytes, room })
    }

    /// Holds the keys of a call that cannot be queued, for calls that are queued later.
    pub(super) fn hold_behind_queue(&self, target: &CallTarget, room: Option<&RoomId>) -> OrderHold {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.held.hold(keys_of(target, room).into_held(), number)
    }

    /// How long the comet has not answered.
    pub(super) fn silent_for(&self) -> Duration {
        self.created_at.elapsed().saturating_sub(Duration::from_millis(self.answered.load(Ordering::Relaxed)))
    }

    pub(super) fn note_error(&self, error: &str) {
        *self.last_error.lock() = Some(error.to_owned());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }
}

/// How much may be queued for one comet.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueCapacity {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// Room in the comet's queue, released on drop.
#[derive(Debug)]
pub(super) struct QueueSlot {
    pub(super) state: Arc<CometState>,
    messages: usize,
    bytes: usize,
    room: QueueCapacity,
}

impl QueueSlot {
    /// The part of this many of its messages, with this many bytes.
    pub(super) fn split(&mut self, messages: usize, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        (self.messages, self.bytes) = (self.messages - messages, self.bytes - bytes);
        Self { state: Arc::clone(&self.state), messages, bytes, room: self.room }
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        let (state, room) = (&self.state, self.room);
        let bytes = state.bytes.release(self.bytes);
        let messages = state.unsettled.release(self.messages);
        state.metrics.waiting.dec_by(self.messages as i64);
        if messages <= state.max_waiting(room) / 2 && bytes <= room.bytes / 2 {
            state.freed.notify_waiters();
        }
    }
}
