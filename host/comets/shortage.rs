//! Detects that this process is out of files or ports. A connection that fails for that reason does
//! not count against a comet's breaker, and an operator has to act.

use std::time::Instant;

use smart_default::SmartDefault;
use tracing::error;

use super::recent_warning::RecentWarning;
use crate::telemetry::LogThrottle;

const REMEDY: &str =
    "raise the limit of open files (`ulimit -n`, LimitNOFILE= of systemd); every comet takes one";

/// The last shortage of a local resource.
#[derive(Debug, SmartDefault)]
pub(super) struct ResourceShortage {
    last: RecentWarning,
    #[default(LogThrottle::per_record())]
    log: LogThrottle,
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
        self.last.note(format!("cannot connect to comets: {why}; {REMEDY}"), now);
    }

    /// The warning, if it is recent.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        self.last.get(now)
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
        assert_eq!(shortage.warning(now + RecentWarning::LASTS), None);
    }
}
