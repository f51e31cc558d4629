//! Claims in memory: for the demo, `memory://` and tests.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{GuardClaim, Guards, Unavailable};
use crate::expiring::ExpiringMap;
use crate::message::MessageId;
use crate::redis_client::lifetime_ms;

/// Claims in memory, by key, with the messages that hold them. Beyond the capacity, the claims that
/// expire soonest are dropped.
#[derive(Debug)]
pub struct MemoryGuards(Mutex<ExpiringMap<String, MessageId>>);

impl MemoryGuards {
    /// With this capacity.
    pub fn new(capacity: usize) -> Self {
        Self(Mutex::new(ExpiringMap::new(capacity)))
    }

    fn claim_at(&self, claims: &[GuardClaim], now: Instant) -> Vec<bool> {
        let mut owners = self.0.lock();
        owners.sweep(now);
        let mut claim = |claim: &GuardClaim| match owners.get(&claim.key, now) {
            Some(owner) => *owner == claim.message,
            None => {
                let ttl = Duration::from_millis(lifetime_ms(claim.ttl));
                owners.insert(claim.key.clone(), claim.message.clone(), ttl, now);
                true
            }
        };
        claims.iter().map(&mut claim).collect()
    }
}

#[async_trait]
impl Guards for MemoryGuards {
    async fn claim(&self, claims: &[GuardClaim]) -> Result<Vec<bool>, Unavailable> {
        Ok(self.claim_at(claims, Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(key: &str, millis: u64, message: &str) -> GuardClaim {
        GuardClaim { key: key.to_owned(), ttl: Duration::from_millis(millis), message: message.into() }
    }

    #[test]
    fn a_claim_expires_exactly() {
        let guards = MemoryGuards::new(10);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(guards.claim_at(&[claim("k", 100, "m/0/1")], at(0)), [true]);
        assert_eq!(guards.claim_at(&[claim("k", 100, "m/0/2")], at(99)), [false]);
        assert_eq!(guards.claim_at(&[claim("k", 100, "m/0/1")], at(99)), [true], "does not prolong it");
        assert_eq!(guards.claim_at(&[claim("k", 100, "m/0/2")], at(100)), [true]);
        assert_eq!(guards.claim_at(&[claim("k", 100, "m/0/1")], at(101)), [false]);
    }

    #[test]
    fn its_memory_is_bounded() {
        let guards = MemoryGuards::new(3);
        let start = Instant::now();
        for number in 0..100 {
            let claims = [claim(&format!("k{number}"), 1000 + number, "m/0/1")];
            assert_eq!(guards.claim_at(&claims, start), [true]);
        }
        assert_eq!(guards.0.lock().len(), 3);
    }
}
