//! The limit of a history in bytes. Redis bounds streams by length and age only, so the size of a room's
//! stream is measured now and then, and its oldest entries are dropped while it is too large.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tracing::warn;

use super::Unavailable;
use crate::redis_client::{RedisClient, refusal};
use crate::telemetry::LogThrottle;

/// The names of the operations in metrics.
const MEASURE: &str = "measure_history";
const TRIM: &str = "trim_history";
/// A room is measured again once this part of its limit has been added.
const PART: u64 = 16;
/// How often a room is trimmed and measured again at most.
const ROUNDS: usize = 16;
/// How often it is logged that sizes cannot be measured.
const WARNING: Duration = Duration::from_secs(60);

/// Holds rooms to a size.
#[derive(Clone, Debug)]
pub(super) struct ByteLimit {
    client: RedisClient,
    most: u64,
    throttle: Arc<LogThrottle>,
}

impl ByteLimit {
    pub(super) fn new(client: RedisClient, most: u64) -> Self {
        Self { client, most, throttle: Arc::new(LogThrottle::new(1, WARNING)) }
    }

    /// Whether a room has to be measured that has grown by this much.
    pub(super) fn is_due(&self, grown: u64) -> bool {
        grown >= self.most / PART
    }

    /// Drops the oldest entries of streams that are too large.
    ///
    /// # Errors
    /// If Redis cannot be used now.
    pub(super) async fn apply(&self, mut keys: Vec<String>) -> Result<(), Unavailable> {
        for _ in 0..ROUNDS {
            let measure = |key: &String| {
                let size = redis::cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0).take();
                [size, redis::cmd("XLEN").arg(key).take()]
            };
            let replies = self.client.run_reads(MEASURE, keys.iter().flat_map(measure).collect()).await?;
            let (mut trims, mut too_large) = (Vec::new(), Vec::new());
            for (key, replies) in keys.into_iter().zip(replies.chunks(2)) {
                let [size, length] = replies else { continue };
                if let Some(why) = refusal(size)
                    && self.throttle.admit().is_some()
                {
                    let most = self.most;
                    warn!(
                        ?why,
                        "cannot hold histories to {most} bytes; allow +memory|usage, or rely on `[history] max_per_room`"
                    );
                }
                let (Value::Int(size), Value::Int(length)) = (size, length) else { continue };
                let (size, length) = (size.unsigned_abs(), length.unsigned_abs());
                if let Some(keep) = keep(length, size, self.most) {
                    trims.push(redis::cmd("XTRIM").arg(&key).arg("MAXLEN").arg("=").arg(keep).take());
                    too_large.push(key);
                }
            }
            if trims.is_empty() {
                return Ok(());
            }
            let (_, problem) = self.client.run_bulk(TRIM, trims).await;
            if let Some(problem) = problem {
                return Err(problem);
            }
            keys = too_large;
        }
        Ok(())
    }
}

/// How many of a stream's entries stay if it is too large. At most a quarter goes at once: the oldest may be
/// larger than the others. The newest always stays.
fn keep(length: u64, size: u64, most: u64) -> Option<u64> {
    if size <= most || length <= 1 {
        return None;
    }
    let in_proportion = (u128::from(length) * u128::from(most) / u128::from(size)) as u64;
    let step = (length / 4).max(1);
    Some(in_proportion.clamp(length - step, length - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_room_that_is_too_large_loses_some_and_keeps_the_newest(length: u32, size: u32, most in 1_u64..1 << 32) {
            let (length, size) = (u64::from(length), u64::from(size));
            match keep(length, size, most) {
                None => prop_assert!(size <= most || length <= 1),
                Some(kept) => prop_assert!(kept >= 1 && kept < length && kept >= length - (length / 4).max(1)),
            }
        }
    }
}
