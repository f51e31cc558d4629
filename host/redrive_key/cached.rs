//! The key as cached by a gateway: read when a record carries a proof, and again if a proof does not
//! match, because the key may have changed. Forged proofs cause at most one read every two seconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{RedriveKeys, Unavailable};
use crate::message::RedriveKey;

/// Minimum interval between reads.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The cached key.
pub struct CachedRedriveKey {
    keys: Arc<dyn RedriveKeys>,
    last: Mutex<Option<(RedriveKey, Instant)>>,
}

impl CachedRedriveKey {
    /// Empty; the key is read from `keys`.
    pub fn new(keys: Arc<dyn RedriveKeys>) -> Self {
        Self { keys, last: Mutex::default() }
    }

    /// The cached key, if any.
    pub fn get(&self) -> Option<RedriveKey> {
        self.last.lock().as_ref().map(|(key, _)| key.clone())
    }

    /// Whether to read it again for a proof that does not match. Always, if there was no key: the
    /// first redrive may have created it meanwhile.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.last.lock().as_ref().is_none_or(|(_, at)| now.saturating_duration_since(*at) >= AGAIN_AFTER)
    }

    /// Reads the key.
    ///
    /// # Errors
    /// If it cannot be read now: the cached key is kept.
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
    async fn a_key_is_reread_later_and_a_missing_one_at_once() {
        let keys = MemoryRedriveKeys::default();
        let known = CachedRedriveKey::new(Arc::new(keys.clone()));
        assert!(known.read().await.expect("it answers").is_none());
        assert!(known.get().is_none() && known.is_stale(Instant::now()), "there may be one now");
        let made = keys.read_or_create().await.expect("made");
        assert!(known.read().await.expect("it answers").is_some());
        assert_eq!(known.get().expect("known").bytes(), made.bytes());
        let now = Instant::now();
        assert!(!known.is_stale(now) && known.is_stale(now + AGAIN_AFTER));
    }
}
