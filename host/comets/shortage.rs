//! Files and ports that this process lacks. No comet is at fault when a connection cannot be
//! made for want of them: nothing counts against a breaker, and an operator has to act.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::error;

/// For how long after the last time it stands in the readiness warnings.
const LASTS: Duration = Duration::from_secs(30);
const LOG_EVERY: Duration = Duration::from_secs(10);
const REMEDY: &str =
    "raise the limit of open files (`ulimit -n`, LimitNOFILE= of systemd); every comet takes one";

/// What was lacking last.
#[derive(Debug, Default)]
pub(super) struct Shortage(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    last: Option<(Instant, String)>,
    logged: Option<Instant>,
}

impl Shortage {
    /// A connection could not be made because of this.
    pub(super) fn note(&self, why: &str, now: Instant) {
        let mut noted = self.0.lock();
        if noted.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_EVERY) {
            noted.logged = Some(now);
            error!(error = why, "comets cannot be connected to: this process lacks files or ports; {REMEDY}");
        }
        noted.last = Some((now, why.to_owned()));
    }

    /// The warning, while it has not been long.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        let noted = self.0.lock();
        let (_, why) = noted.last.as_ref().filter(|(at, _)| now.duration_since(*at) < LASTS)?;
        Some(format!("comets cannot be connected to: {why}; {REMEDY}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_of_until_it_is_over() {
        let (shortage, now) = (Shortage::default(), Instant::now());
        assert_eq!(shortage.warning(now), None);
        shortage.note("Too many open files (os error 24)", now);
        let warning = shortage.warning(now).expect("just noted");
        assert!(warning.contains("os error 24") && warning.contains("LimitNOFILE"), "{warning}");
        assert_eq!(shortage.warning(now + LASTS), None);
    }
}
