//! Bounds the bytes of messages that are pending over all comets, and waits for room.
//!
//! A message's content counts once, however many comets it is queued for: its calls share it.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use super::capacity::Capacity;

/// How much is taken at a time for messages that follow each other, and which part of the limit at most.
const AHEAD: usize = 64 * 1024;
const AHEAD_PART: usize = 16;

/// A waiter is woken when half of the room is free, and checks again after this long: others may
/// take the free room first.
const RECHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The limit on pending bytes.
#[derive(Debug)]
pub(super) struct PendingBytes {
    capacity: Capacity,
    limit: usize,
    freed: Notify,
    /// The used bytes, for metrics.
    bytes: Gauge,
}

impl PendingBytes {
    pub(super) fn new(limit: usize, bytes: Gauge) -> Arc<Self> {
        Arc::new(Self { capacity: Capacity::default(), limit, freed: Notify::new(), bytes })
    }

    /// Takes room for this many bytes, if there is room.
    pub(super) fn try_take(self: &Arc<Self>, bytes: usize) -> Option<PendingPermit> {
        if !self.capacity.take(bytes, self.limit) {
            return None;
        }
        self.bytes.inc_by(bytes as i64);
        Some(PendingPermit { pending: Arc::clone(self), bytes })
    }

    /// Waits for room for this many bytes. The calls that hold it have their outcome in bounded
    /// time: see [`super::CallHandle`].
    pub(super) async fn take(self: &Arc<Self>, bytes: usize) -> PendingPermit {
        retry_until(&self.freed, || self.try_take(bytes).ok_or(())).await
    }
}

/// Room that is released on drop.
#[derive(Debug)]
pub(super) struct PendingPermit {
    pending: Arc<PendingBytes>,
    bytes: usize,
}

/// Room for the messages of a batch, taken ahead: once for many of them.
#[derive(Debug, Default)]
pub struct ReservedBytes {
    room: Option<PendingPermit>,
    /// How much of it is promised to messages whose run does not have it yet.
    promised: usize,
}

impl ReservedBytes {
    /// Promises room for this many bytes, if there is room.
    pub(super) fn promise(&mut self, pending: &Arc<PendingBytes>, bytes: usize) -> bool {
        let has_room = self.promised + bytes <= self.room.as_ref().map_or(0, |room| room.bytes)
            || self.grow(pending, bytes.max(AHEAD.min(pending.limit / AHEAD_PART)))
            || self.grow(pending, bytes);
        self.promised += if has_room { bytes } else { 0 };
        has_room
    }

    fn grow(&mut self, pending: &Arc<PendingBytes>, bytes: usize) -> bool {
        let Some(more) = pending.try_take(bytes) else { return false };
        match &mut self.room {
            Some(room) => room.absorb(more),
            None => self.room = Some(more),
        }
        true
    }

    /// Hands over what was promised to a run of messages.
    pub(super) fn take(&mut self, bytes: usize) -> Option<PendingPermit> {
        let room = self.room.as_mut().filter(|room| bytes > 0 && bytes <= room.bytes)?;
        self.promised = self.promised.saturating_sub(bytes);
        room.bytes -= bytes;
        Some(PendingPermit { pending: Arc::clone(&room.pending), bytes })
    }

    /// Releases what is not promised to anybody.
    pub fn release(&mut self) {
        drop(self.room.take_if(|_| self.promised == 0));
    }
}

impl PendingPermit {
    fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let PendingBytes { capacity, limit, freed, bytes } = &*self.pending;
        bytes.dec_by(self.bytes as i64);
        if capacity.release(self.bytes) <= limit / 2 {
            freed.notify_waiters();
        }
    }
}

/// Tries until it succeeds: after every notification, and at intervals.
pub(super) async fn retry_until<T, E>(freed: &Notify, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    loop {
        if let Ok(done) = try_or_wait(freed, &mut attempt).await {
            return done;
        }
    }
}

/// Tries once; after a failure, waits until another attempt is worthwhile.
pub(super) async fn try_or_wait<T, E>(
    freed: &Notify,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut notified = std::pin::pin!(freed.notified());
    // Registered before the attempt, so that nothing is missed between the two.
    notified.as_mut().enable();
    let result = attempt();
    if result.is_err() {
        let _ = tokio::time::timeout(RECHECK_INTERVAL, notified).await;
    }
    result
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_waiter_gets_released_room() {
        let pending = PendingBytes::new(100, Gauge::default());
        let held = pending.try_take(60).expect("room");
        assert!(pending.try_take(41).is_none());
        let mut waiting = std::pin::pin!(pending.take(41));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        let held = waiting.await;
        assert_eq!(pending.bytes.get(), 41);
        drop(held);
        assert_eq!((pending.capacity.taken(), pending.bytes.get()), (0, 0));
    }

    #[test]
    fn room_is_taken_once_for_many_messages_and_held_for_each_run() {
        let pending = PendingBytes::new(1600, Gauge::default());
        let mut reserved = ReservedBytes::default();
        let taken = || pending.capacity.taken();
        assert!(reserved.promise(&pending, 30) && reserved.promise(&pending, 70));
        assert_eq!(taken(), 100, "a sixteenth of the limit, ahead");
        let run = reserved.take(70).expect("promised");
        reserved.release();
        assert_eq!(taken(), 100, "the rest is still promised");
        let other = reserved.take(30).expect("promised");
        assert!(reserved.promise(&pending, 1450), "more than is taken ahead");
        assert!(!reserved.promise(&pending, 100), "there is no room");
        assert!(reserved.promise(&pending, 50), "the last of it");
        drop((run, other));
        let last = reserved.take(1500).expect("promised");
        reserved.release();
        assert_eq!((taken(), pending.bytes.get()), (1500, 1500));
        drop(last);
        assert_eq!((taken(), pending.bytes.get()), (0, 0));
    }

    #[test]
    fn a_message_above_the_limit_waits_until_it_is_alone() {
        let pending = PendingBytes::new(100, Gauge::default());
        let small = pending.try_take(1).expect("room");
        assert!(pending.try_take(1000).is_none());
        drop(small);
        assert!(pending.try_take(1000).is_some());
    }
}
