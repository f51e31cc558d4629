//! Messages that wait for comets, in bytes over all of them, and waiting for room among them.
//!
//! A message's content counts once, however many comets it waits for: its calls share it.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use super::places::Places;

/// Who waits for room is woken when half of it is free, and looks by itself after this long:
/// others may take what becomes free before.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How many bytes may wait for comets.
#[derive(Debug)]
pub(super) struct Pending {
    places: Places,
    limit: usize,
    freed: Notify,
    /// What is taken, for metrics.
    bytes: Gauge,
}

impl Pending {
    pub(super) fn new(limit: usize, bytes: Gauge) -> Arc<Self> {
        Arc::new(Self { places: Places::default(), limit, freed: Notify::new(), bytes })
    }

    /// Takes room for so many bytes, when there is.
    pub(super) fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        if !self.places.take(bytes, self.limit) {
            return None;
        }
        self.bytes.inc_by(bytes as i64);
        Some(Held { pending: Arc::clone(self), bytes })
    }

    /// Waits for room for so many bytes. What holds it has its outcome in bounded time: see
    /// [`super::Receipt`].
    pub(super) async fn take(self: &Arc<Self>, bytes: usize) -> Held {
        until(&self.freed, || self.try_take(bytes).ok_or(())).await
    }
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pending: Arc<Pending>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Pending { places, limit, freed, bytes } = &*self.pending;
        bytes.dec_by(self.bytes as i64);
        if places.give_back(self.bytes) <= limit / 2 {
            freed.notify_waiters();
        }
    }
}

/// Tries until it works: after every notification, and now and then without one.
pub(super) async fn until<T, E>(freed: &Notify, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    loop {
        if let Ok(done) = once_more(freed, &mut attempt).await {
            return done;
        }
    }
}

/// Tries; when that fails, waits until it is worth another attempt.
pub(super) async fn once_more<T, E>(
    freed: &Notify,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut notified = std::pin::pin!(freed.notified());
    // Registered before the attempt, so that nothing is missed between the two.
    notified.as_mut().enable();
    let result = attempt();
    if result.is_err() {
        let _ = tokio::time::timeout(LOOK_AGAIN, notified).await;
    }
    result
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn room_is_waited_for_and_given_back() {
        let pending = Pending::new(100, Gauge::default());
        let held = pending.try_take(60).expect("room");
        assert!(pending.try_take(41).is_none());
        let mut waiting = std::pin::pin!(pending.take(41));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        let held = waiting.await;
        assert_eq!(pending.bytes.get(), 41);
        drop(held);
        assert_eq!((pending.places.taken(), pending.bytes.get()), (0, 0));
    }

    #[test]
    fn what_is_larger_than_the_limit_waits_until_it_is_alone() {
        let pending = Pending::new(100, Gauge::default());
        let small = pending.try_take(1).expect("room");
        assert!(pending.try_take(1000).is_none());
        drop(small);
        assert!(pending.try_take(1000).is_some());
    }
}
