//! Trying until it works: what the pipeline does while Redis or Kafka is away. Records wait;
//! nothing is dropped.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The partition was given up before the work was done: its records will be delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abandoned;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// With the clients' own back-off of half a second, work goes on within a second of the other
/// side's return.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// Tries until `attempt` succeeds or the partition is abandoned. The first failure is logged
/// at once, then one line every ten seconds, then one when it works again.
pub(super) async fn persist<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    abandon: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Abandoned> {
    let mut pause = FIRST_PAUSE;
    let mut reminded: Option<Instant> = None;
    loop {
        let result = tokio::select! {
            biased;
            () = abandon.cancelled() => return Err(Abandoned),
            result = attempt() => result,
        };
        match result {
            Ok(done) => {
                if reminded.is_some() {
                    info!(what, "works again");
                }
                return Ok(done);
            }
            Err(error) => {
                if reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
                    reminded = Some(Instant::now());
                    warn!(what, %error, "records wait; trying again until it works");
                }
            }
        }
        tokio::select! {
            () = abandon.cancelled() => return Err(Abandoned),
            // Full jitter, so that the workers of many partitions do not come back together.
            () = tokio::time::sleep(pause.mul_f64(fastrand::f64())) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_tries_until_it_works() {
        let mut left = 3;
        let attempt = || {
            left -= 1;
            let result = if left == 0 { Ok("done") } else { Err("away") };
            async move { result }
        };
        assert_eq!(persist("test", &CancellationToken::new(), attempt).await, Ok("done"));
    }

    #[tokio::test]
    async fn it_ends_when_the_partition_is_abandoned() {
        let abandon = CancellationToken::new();
        let attempt = || {
            abandon.cancel();
            async { Err::<(), _>("away") }
        };
        assert_eq!(persist("test", &abandon, attempt).await, Err(Abandoned));
    }
}
