//! Rate limit on failed token attempts.
//!
//! Each client has a token bucket that refills slowly; a correct token costs nothing. Above its limit
//! a client is refused before its token is compared. All clients share a second bucket: when that is
//! empty, only clients that have failed before are refused. So a client that never failed is never
//! refused, whatever others do. Nothing waits, and the table is bounded. Pure: the clock is an
//! argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::http_server::peer::PeerKey;

/// Failed attempts of one client: burst, and refill rate.
const PER_CLIENT: BucketRate = BucketRate { burst: 10.0, per_second: 0.5 };
/// The same for all clients together.
const ALL: BucketRate = BucketRate { burst: 100.0, per_second: 10.0 };
/// Maximum number of clients in the table; the one whose last failure is oldest is evicted.
const MAX_CLIENTS: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct BucketRate {
    burst: f64,
    per_second: f64,
}

/// The remaining attempts.
#[derive(Clone, Copy, Debug)]
struct TokenBucket {
    left: f64,
    at: Instant,
}

impl TokenBucket {
    fn full(rate: BucketRate, now: Instant) -> Self {
        Self { left: rate.burst, at: now }
    }

    fn refill(&mut self, rate: BucketRate, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        *self = Self { left: (self.left + since * rate.per_second).min(rate.burst), at: now };
    }

    /// How long until the next attempt is allowed.
    fn wait(&self, rate: BucketRate) -> Duration {
        Duration::from_secs_f64(((1.0 - self.left) / rate.per_second).max(0.0))
    }
}

/// The token buckets.
#[derive(Debug)]
pub(crate) struct AuthRateLimiter {
    clients: HashMap<PeerKey, TokenBucket>,
    all: TokenBucket,
}

impl AuthRateLimiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { clients: HashMap::new(), all: TokenBucket::full(ALL, now) }
    }

    /// Takes one attempt from the buckets; [`AuthRateLimiter::refund`] returns it.
    ///
    /// # Errors
    /// How long to wait before the next attempt.
    pub(crate) fn take(&mut self, client: PeerKey, now: Instant) -> Result<(), Duration> {
        self.all.refill(ALL, now);
        match self.clients.get_mut(&client) {
            Some(own) => {
                own.refill(PER_CLIENT, now);
                let wait = own.wait(PER_CLIENT).max(self.all.wait(ALL));
                if !wait.is_zero() {
                    return Err(wait);
                }
                own.left -= 1.0;
            }
            None => {
                self.make_room();
                let mut own = TokenBucket::full(PER_CLIENT, now);
                own.left -= 1.0;
                self.clients.insert(client, own);
            }
        }
        self.all.left = (self.all.left - 1.0).max(0.0);
        Ok(())
    }

    /// The token was correct: returns the attempt.
    pub(crate) fn refund(&mut self, client: PeerKey) {
        self.all.left = (self.all.left + 1.0).min(ALL.burst);
        if let Some(own) = self.clients.get_mut(&client) {
            own.left += 1.0;
            if own.left >= PER_CLIENT.burst {
                self.clients.remove(&client);
            }
        }
    }

    fn make_room(&mut self) {
        if self.clients.len() < MAX_CLIENTS {
            return;
        }
        let least = self.clients.iter().min_by_key(|(_, budget)| budget.at).map(|(client, _)| *client);
        if let Some(least) = least {
            self.clients.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> PeerKey {
        PeerKey::V4(number.into())
    }

    /// How many of these attempts are allowed.
    fn tries(auth_rate_limit: &mut AuthRateLimiter, client: PeerKey, tries: usize, now: Instant) -> usize {
        (0..tries).filter(|_| auth_rate_limit.take(client, now).is_ok()).count()
    }

    #[test]
    fn a_guessing_client_is_limited_and_gets_retry_after() {
        let start = Instant::now();
        let mut auth_rate_limit = AuthRateLimiter::new(start);
        assert_eq!(tries(&mut auth_rate_limit, client(1), 5_000, start), 10);
        assert_eq!(auth_rate_limit.take(client(1), start), Err(Duration::from_secs(2)));
        assert_eq!(tries(&mut auth_rate_limit, client(1), 5_000, start + Duration::from_secs(60)), 10);
        // Over an hour: one every two seconds.
        let hour = (1..=3600)
            .map(|s| tries(&mut auth_rate_limit, client(1), 100, start + Duration::from_secs(60 + s)));
        assert_eq!(hour.sum::<usize>(), 1800);
    }

    #[test]
    fn a_correct_token_is_never_locked_out_by_others() {
        let start = Instant::now();
        let mut auth_rate_limit = AuthRateLimiter::new(start);
        for other in 10..3_000 {
            tries(&mut auth_rate_limit, client(other), 12, start);
            assert!(auth_rate_limit.clients.len() <= MAX_CLIENTS);
        }
        for _ in 0..1_000 {
            assert_eq!(auth_rate_limit.take(client(1), start), Ok(()));
            auth_rate_limit.refund(client(1));
        }
        assert!(
            !auth_rate_limit.clients.contains_key(&client(1)),
            "a client that never failed is not tracked"
        );
    }

    #[test]
    fn many_clients_share_a_limit() {
        let start = Instant::now();
        let mut auth_rate_limit = AuthRateLimiter::new(start);
        let spent: usize = (0..50).map(|other| tries(&mut auth_rate_limit, client(other), 100, start)).sum();
        // The shared bucket, plus one attempt for each client that came after it was empty.
        assert_eq!(spent, 100 + 40);
        let later = start + Duration::from_secs(1);
        let spent: usize = (0..50).map(|other| tries(&mut auth_rate_limit, client(other), 100, later)).sum();
        assert_eq!(spent, 10);
    }
}
