//! Limits the concurrency of requests that load the gateway or Redis.
//!
//! A few run at a time, a few wait with a deadline, and a pause follows each, so that they use only a
//! share of the time whatever the demand.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many run at a time.
    pub(super) at_once: usize,
    /// How many may wait.
    pub(super) waiting: usize,
    /// How long one may wait.
    pub(super) wait: Duration,
    /// A request that took one second is followed by a pause of this many seconds.
    pub(super) pause: u32,
}

/// The limiter.
pub(super) struct Turns {
    limits: Limits,
    turns: Semaphore,
    places: Semaphore,
    /// When the pause after the last request ends.
    free_at: Mutex<Option<Instant>>,
}

/// A permit; its duration is measured until drop.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    since: Instant,
    _turn: SemaphorePermit<'a>,
}

/// No permit in time; when to retry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy(pub(super) Duration);

impl Turns {
    pub(super) fn new(limits: Limits) -> Self {
        let (turns, places) = (Semaphore::new(limits.at_once), Semaphore::new(limits.waiting));
        Self { limits, turns, places, free_at: Mutex::new(None) }
    }

    /// Waits for a permit, within the limits.
    ///
    /// # Errors
    /// If too many wait, or no permit was free in time.
    pub(super) async fn next(&self) -> Result<Turn<'_>, Busy> {
        let _place = self.places.try_acquire().map_err(|_| Busy(self.limits.wait))?;
        let until = Instant::now() + self.limits.wait;
        let busy = |_| Busy(self.limits.wait);
        let turn = tokio::time::timeout_at(until.into(), self.turns.acquire()).await.map_err(busy)?;
        // The semaphore is never closed.
        let turn = turn.map_err(|_| Busy(self.limits.wait))?;
        if let Some(free_at) = self.free_at() {
            if free_at > until {
                return Err(Busy(free_at.saturating_duration_since(Instant::now())));
            }
            tokio::time::sleep_until(free_at.into()).await;
        }
        Ok(Turn { turns: self, since: Instant::now(), _turn: turn })
    }

    fn free_at(&self) -> Option<Instant> {
        *self.free_at.lock()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Turns { limits, free_at, .. } = self.turns;
        let now = Instant::now();
        let pause = now.saturating_duration_since(self.since) * limits.pause;
        *free_at.lock() = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { at_once: 1, waiting: 2, wait: Duration::from_secs(60), pause: 4 };

    #[tokio::test]
    async fn one_at_a_time_and_no_more_wait_than_may() {
        let turns = Turns::new(LIMITS);
        let first = turns.next().await.unwrap();
        let (mut second, mut third) = (Box::pin(turns.next()), Box::pin(turns.next()));
        assert!(
            futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending()
        );
        assert!(matches!(turns.next().await, Err(Busy(_))), "the queue is full");
        drop(first);
        drop(second.await.unwrap());
        drop(third.await.unwrap());
        assert!(turns.next().await.is_ok());
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_told_when_to_come_back() {
        let turns = Turns::new(Limits { wait: Duration::from_millis(1), ..LIMITS });
        let turn = turns.next().await.unwrap();
        assert!(matches!(turns.next().await, Err(Busy(_))), "no turn in time");
        drop(turn);
        *turns.free_at.lock() = Some(Instant::now() + Duration::from_secs(20));
        let Err(Busy(wait)) = turns.next().await else { panic!("the pause is longer than the wait") };
        assert!(wait > Duration::from_secs(15), "{wait:?}");
    }

    #[tokio::test]
    async fn a_turn_is_followed_by_a_pause_in_proportion() {
        let turns = Turns::new(LIMITS);
        let mut turn = turns.next().await.unwrap();
        turn.since -= Duration::from_secs(5);
        drop(turn);
        let pause = turns.free_at().unwrap().saturating_duration_since(Instant::now());
        assert!(pause > Duration::from_secs(18) && pause < Duration::from_secs(22), "{pause:?}");
    }
}
