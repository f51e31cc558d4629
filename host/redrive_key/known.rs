//! The key as a gateway knows it: read when a record brings a proof, and again when a proof does not
//! fit, since the key may be another one now. Who writes proofs that never fit makes that no more
//! than a read in two seconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{RedriveKeys, Unavailable};
use crate::message::RedriveKey;

/// How soon a key is read again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The key that was read last.
pub struct KnownKey {
    keys: Arc<dyn RedriveKeys>,
    last: Mutex<Option<(RedriveKey, Instant)>>,
}

impl KnownKey {
    /// None yet; it is read here.
    pub fn new(keys: Arc<dyn RedriveKeys>) -> Self {
        Self { keys, last: Mutex::default() }
    }

    /// The key, as far as it is known.
    pub fn get(&self) -> Option<RedriveKey> {
        self.last.lock().as_ref().map(|(key, _)| key.clone())
    }

    /// Whether it is time to read it, for a proof that does not fit. Where there was no key, always:
    /// the first redrive may just have made it.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.last.lock().as_ref().is_none_or(|(_, at)| now.saturating_duration_since(*at) >= AGAIN_AFTER)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read now: what was known is still known.
    pub async fn read(&self) -> Result<Option<RedriveKey>, Unavailable> {
        let key = self.keys.read().await?;
        *self.last.lock() = key.clone().map(|key| (key, Instant::now()));
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redrive_key::MemoryRedriveKeys;

    #[tokio::test]
    async fn a_key_is_read_again_after_a_while_and_a_missing_one_at_once() {
        let keys = MemoryRedriveKeys::default();
        let known = KnownKey::new(Arc::new(keys.clone()));
        assert!(known.read().await.expect("it answers").is_none());
        assert!(known.get().is_none() && known.is_stale(Instant::now()), "there may be one now");
        let made = keys.read_or_make().await.expect("made");
        assert!(known.read().await.expect("it answers").is_some());
        assert_eq!(known.get().expect("known").bytes(), made.bytes());
        let now = Instant::now();
        assert!(!known.is_stale(now) && known.is_stale(now + AGAIN_AFTER));
    }
}
