//! The key in memory: for the demo, `memory://` and tests. Other processes do not know it.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{RedriveKeys, Unavailable, new_key};
use crate::message::RedriveKey;

/// A key in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryRedriveKeys(Arc<Mutex<Option<RedriveKey>>>);

#[async_trait]
impl RedriveKeys for MemoryRedriveKeys {
    async fn read(&self) -> Result<Option<RedriveKey>, Unavailable> {
        Ok(self.0.lock().clone())
    }

    async fn read_or_create(&self) -> anyhow::Result<RedriveKey> {
        let mut kept = self.0.lock();
        if kept.is_none() {
            *kept = Some(new_key()?);
        }
        kept.clone().ok_or_else(|| anyhow::anyhow!("no key"))
    }
}
