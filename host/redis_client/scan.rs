//! Goes over keys in small steps, on one server or on the nodes of a cluster one after another.

use std::time::Instant;

use super::reply::{elements, text};
use super::{RedisClient, Unavailable};

/// The operation's name in metrics.
const SCAN: &str = "scan_keys";

/// How far a scan has come. While slots move, keys may be missed until the next scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCursor {
    node: usize,
    cursor: u64,
}

impl RedisClient {
    /// Looks at about `count` keys. Returns those that match, and where to continue; `None` at the end. A
    /// key may be returned twice.
    ///
    /// # Errors
    /// If Redis is unreachable or refuses.
    pub async fn scan_keys(
        &self,
        at: ScanCursor,
        pattern: &str,
        count: usize,
    ) -> Result<(Vec<String>, Option<ScanCursor>), Unavailable> {
        let scan = redis::cmd("SCAN").arg(at.cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(count).take();
        let started = Instant::now();
        let scanned = self.0.reads.run_on_node(SCAN, at.node, scan).await;
        let Some(reply) = self.record_call(SCAN, started, scanned)? else {
            return Ok((Vec::new(), None));
        };
        if let Some(refused) = super::refusal(&reply) {
            return Err(self.refused(SCAN, format!("{refused:?} (the ACL rule for it: `+scan`)")));
        }
        let mut parts = elements(reply).into_iter();
        let cursor = parts.next().and_then(|cursor| text(cursor).filled()?.parse().ok()).unwrap_or(0);
        let keys = elements(parts.next().unwrap_or_default());
        let next = match cursor {
            0 => ScanCursor { node: at.node + 1, cursor: 0 },
            cursor => ScanCursor { node: at.node, cursor },
        };
        Ok((keys.into_iter().filter_map(|key| text(key).filled()).collect(), Some(next)))
    }
}
