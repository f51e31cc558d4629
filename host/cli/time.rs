//! Times as commands read and compare them.

use std::time::SystemTime;

use humantime_serde::re::humantime;

/// A UTC time, or the beginning of a day: `2026-01-31T12:00:00Z`, `2026-01-31`.
pub(super) fn date(text: &str) -> Option<SystemTime> {
    let midnight = format!("{text}T00:00:00Z");
    humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&midnight)).ok()
}

/// Milliseconds since 1970; 0 for what was before.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
