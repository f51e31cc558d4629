//! Claims inside the process: for the demo, `memory://` and tests.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Claim, Guards, Unavailable};
use crate::message::MessageId;

/// Claims in memory, bounded: beyond its capacity the claim that runs out soonest is forgotten.
#[derive(Debug)]
pub struct MemoryGuards {
    table: Mutex<Table>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Table {
    owners: HashMap<String, (MessageId, Instant)>,
    /// The same claims by the time at which they run out.
    by_end: BTreeSet<(Instant, String)>,
}

impl MemoryGuards {
    /// Room for so many claims.
    pub fn new(capacity: usize) -> Self {
        Self { table: Mutex::default(), capacity }
    }

    fn claim_at(&self, claims: &[Claim], now: Instant) -> Vec<bool> {
        let mut table = self.table.lock();
        claims.iter().map(|claim| table.claim(claim, now, self.capacity)).collect()
    }
}

#[async_trait]
impl Guards for MemoryGuards {
    async fn claim(&self, claims: &[Claim]) -> Result<Vec<bool>, Unavailable> {
        Ok(self.claim_at(claims, Instant::now()))
    }
}

impl Table {
    fn claim(&mut self, claim: &Claim, now: Instant, capacity: usize) -> bool {
        while self.by_end.first().is_some_and(|(end, _)| *end <= now) {
            self.forget_soonest();
        }
        if let Some((owner, _)) = self.owners.get(&claim.key) {
            return *owner == claim.message;
        }
        let end = now + Duration::from_millis(claim.millis());
        self.owners.insert(claim.key.clone(), (claim.message.clone(), end));
        self.by_end.insert((end, claim.key.clone()));
        while self.owners.len() > capacity {
            self.forget_soonest();
        }
        true
    }

    fn forget_soonest(&mut self) {
        if let Some((_, key)) = self.by_end.pop_first() {
            self.owners.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(key: &str, millis: u64, message: &str) -> Claim {
        Claim { key: key.to_owned(), ttl: Duration::from_millis(millis), message: message.into() }
    }

    #[test]
    fn a_claim_holds_exactly_as_long_as_asked() {
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
        let table = guards.table.lock();
        assert_eq!((table.owners.len(), table.by_end.len()), (3, 3));
    }
}
