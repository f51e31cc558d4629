//! Limits the concurrency of requests that load the gateway or Redis.
//!
//! A few run at a time, a few wait with a deadline, and a pause follows each, so that they use only a
//! share of the time whatever the demand.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LimiterConfig {
    /// How many run at a time.
    pub(crate) max_concurrent: usize,
    /// How many may wait.
    pub(crate) max_waiting: usize,
    /// How long one may wait.
    pub(crate) wait: Duration,
    /// A request that took one second is followed by a pause of this many seconds.
    pub(crate) pause: u32,
}

/// The limiter.
pub(crate) struct ConcurrencyLimiter {
    limits: LimiterConfig,
    limiter: Semaphore,
    queue: Semaphore,
    /// When the pause after the last request ends.
    free_at: Mutex<Option<Instant>>,
}

/// A permit; its duration is measured until drop.
pub(crate) struct LimiterPermit<'a> {
    limiter: &'a ConcurrencyLimiter,
    since: Instant,
    _turn: SemaphorePermit<'a>,
}

/// No permit in time; when to retry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Busy(pub(crate) Duration);

impl ConcurrencyLimiter {
    pub(crate) fn new(limits: LimiterConfig) -> Self {
        let (limiter, queue) = (Semaphore::new(limits.max_concurrent), Semaphore::new(limits.max_waiting));
        Self { limits, limiter, queue, free_at: Mutex::new(None) }
    }

    /// Waits for a permit, within the limits.
    ///
    /// # Errors
    /// If too many wait, or no permit was free in time.
    pub(crate) async fn next(&self) -> Result<LimiterPermit<'_>, Busy> {
        let _place = self.queue.try_acquire().map_err(|_| Busy(self.limits.wait))?;
        let until = Instant::now() + self.limits.wait;
        let busy = |_| Busy(self.limits.wait);
        let turn = tokio::time::timeout_at(until.into(), self.limiter.acquire()).await.map_err(busy)?;
        // The semaphore is never closed.
        let turn = turn.map_err(|_| Busy(self.limits.wait))?;
        if let Some(free_at) = self.free_at() {
            if free_at > until {
                return Err(Busy(free_at.saturating_duration_since(Instant::now())));
            }
            tokio::time::sleep_until(free_at.into()).await;
        }
        Ok(LimiterPermit { limiter: self, since: Instant::now(), _turn: turn })
    }

    fn free_at(&self) -> Option<Instant> {
        *self.free_at.lock()
    }
}

impl Drop for LimiterPermit<'_> {
    fn drop(&mut self) {
        let ConcurrencyLimiter { limits, free_at, .. } = self.limiter;
        let now = Instant::now();
        let pause = now.saturating_duration_since(self.since) * limits.pause;
        *free_at.lock() = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LimiterConfig =
        LimiterConfig { max_concurrent: 1, max_waiting: 2, wait: Duration::from_secs(60), pause: 4 };

    #[tokio::test]
    async fn concurrency_and_queue_are_bounded() {
        let limiter = ConcurrencyLimiter::new(LIMITS);
        let first = limiter.next().await.unwrap();
        let (mut second, mut third) = (Box::pin(limiter.next()), Box::pin(limiter.next()));
        assert!(
            futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending()
        );
        assert!(matches!(limiter.next().await, Err(Busy(_))), "the queue is full");
        drop(first);
        drop(second.await.unwrap());
        drop(third.await.unwrap());
        assert!(limiter.next().await.is_ok());
    }

    #[tokio::test]
    async fn a_rejected_request_learns_when_to_retry() {
        let limiter = ConcurrencyLimiter::new(LimiterConfig { wait: Duration::from_millis(1), ..LIMITS });
        let turn = limiter.next().await.unwrap();
        assert!(matches!(limiter.next().await, Err(Busy(_))), "no turn in time");
        drop(turn);
        *limiter.free_at.lock() = Some(Instant::now() + Duration::from_secs(20));
        let Err(Busy(wait)) = limiter.next().await else { panic!("the pause is longer than the wait") };
        assert!(wait > Duration::from_secs(15), "{wait:?}");
    }

    #[tokio::test]
    async fn a_permit_is_followed_by_a_proportional_pause() {
        let limiter = ConcurrencyLimiter::new(LIMITS);
        let mut turn = limiter.next().await.unwrap();
        turn.since -= Duration::from_secs(5);
        drop(turn);
        let pause = limiter.free_at().unwrap().saturating_duration_since(Instant::now());
        assert!(pause > Duration::from_secs(18) && pause < Duration::from_secs(22), "{pause:?}");
    }
}
