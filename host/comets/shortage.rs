//! Detects that this process is out of files or ports. A connection that fails for that reason does
//! not count against a comet's breaker, and an operator has to act.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::error;

use crate::telemetry::LogThrottle;

/// How long the readiness warning lasts after the last shortage.
const LASTS: Duration = Duration::from_secs(30);
const REMEDY: &str =
    "raise the limit of open files (`ulimit -n`, LimitNOFILE= of systemd); every comet takes one";

/// The last shortage of a local resource.
#[derive(Debug)]
pub(super) struct ResourceShortage {
    last: Mutex<Option<(Instant, String)>>,
    log: LogThrottle,
}

impl Default for ResourceShortage {
    fn default() -> Self {
        Self { last: Mutex::default(), log: LogThrottle::per_record() }
    }
}

impl ResourceShortage {
    /// Records that a connection could not be made because of this.
    pub(super) fn note(&self, why: &str, now: Instant) {
        if let Some(held_back) = self.log.admit() {
            error!(
                error = why,
                held_back, "cannot connect to comets: this process is out of files or ports; {REMEDY}"
            );
        }
        *self.last.lock() = Some((now, why.to_owned()));
    }

    /// The warning, if it is recent.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        let last = self.last.lock();
        let (_, why) = last.as_ref().filter(|(at, _)| now.duration_since(*at) < LASTS)?;
        Some(format!("cannot connect to comets: {why}; {REMEDY}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_reported_for_a_while() {
        let (shortage, now) = (ResourceShortage::default(), Instant::now());
        assert_eq!(shortage.warning(now), None);
        shortage.note("Too many open files (os error 24)", now);
        let warning = shortage.warning(now).expect("just noted");
        assert!(warning.contains("os error 24") && warning.contains("LimitNOFILE"), "{warning}");
        assert_eq!(shortage.warning(now + LASTS), None);
    }
}
