//! The functions that the gateway offers to a policy. Inside of a gateway these are imports of the
//! component; native tests use [`testing`](crate::testing) instead.

use std::time::Duration;

#[cfg(target_family = "wasm")]
use crate::bindings::common::halley::policy::host as gateway;
#[cfg(not(target_family = "wasm"))]
use crate::testing::stand_in as gateway;

/// The time since 1970-01-01 UTC, in whole milliseconds, by the gateway's clock.
pub fn now() -> Duration {
    Duration::from_millis(gateway::now())
}

/// Adds to one of the policy's own counters, exported as `halley_plugin_counter_total{plugin, name}`.
/// The number of names is limited: use one name per kind of event, not per room.
///
/// ```
/// use halley_plugin::prelude::*;
/// use halley_plugin::testing::{Harness, room};
///
/// #[derive(Deserialize)]
/// struct Gifts {}
///
/// impl Filter for Gifts {
///     fn filter(&mut self, message: &Message) -> Verdict {
///         if message.operation == 7 {
///             counter_add("gifts", 1);
///         }
///         Verdict::Pass
///     }
/// }
///
/// let mut policy = Harness::<Gifts>::new(serde_json::json!({}));
/// policy.filter([room("video_1").operation(7), room("video_1")]);
/// assert_eq!(policy.counter("gifts"), 1);
/// ```
pub fn counter_add(name: &str, value: u64) {
    gateway::counter_add(name, value);
}

/// Sets one of the policy's own gauges, exported as `halley_plugin_gauge{plugin, name}`.
pub fn gauge_set(name: &str, value: f64) {
    gateway::gauge_set(name, value);
}

/// The plugin's `config` table as JSON.
#[cfg(target_family = "wasm")]
pub(crate) fn config() -> String {
    gateway::config()
}

/// Writes lines to the gateway's log, under the plugin's name and version: `log::info!("{} words",
/// words.len())`.
///
/// The gateway limits rate and length. Use `debug!` or a counter for what happens per message.
pub mod log {
    use super::gateway;

    pub use crate::bindings::common::halley::policy::host::Level;
    pub use crate::{
        __log_debug as debug, __log_error as error, __log_info as info, __log_trace as trace,
        __log_warn as warn,
    };

    /// Writes one line; the macros are shorter.
    pub fn write(level: Level, message: &str) {
        gateway::log(level, message);
    }
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_trace {
    ($($text:tt)*) => {
        $crate::log::write($crate::log::Level::Trace, &::std::format!($($text)*))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug {
    ($($text:tt)*) => {
        $crate::log::write($crate::log::Level::Debug, &::std::format!($($text)*))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_info {
    ($($text:tt)*) => {
        $crate::log::write($crate::log::Level::Info, &::std::format!($($text)*))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn {
    ($($text:tt)*) => {
        $crate::log::write($crate::log::Level::Warn, &::std::format!($($text)*))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_error {
    ($($text:tt)*) => {
        $crate::log::write($crate::log::Level::Error, &::std::format!($($text)*))
    };
}

/// Small values that outlive instances and versions of the policy, but not the gateway's process: all
/// its workers share them. To enforce something across the whole fleet, use a guard
/// ([`Verdict::once`](crate::Verdict::once)), or `state = "shared"` in the gateway's configuration.
///
/// With `state = "shared"`, the same functions, in [`Filter`](crate::Filter), read and write what all
/// gateways see, for at most 7 days. Read first, then count and log: if a value has not been fetched
/// yet, the gateway fetches everything that the batch requested and calls the filter again, and
/// discards what came after the read. Do not count in fields of the policy: they see such a call
/// twice. Concurrent writers of the same key do not see each other, so use keys that one partition
/// writes, such as rooms.
pub mod state {
    use std::time::Duration;

    use super::gateway;

    /// Returns a value that was stored and has not expired.
    pub fn get(key: &str) -> Option<Vec<u8>> {
        gateway::state_get(key)
    }

    /// Stores a value, for `ttl` or until the process ends.
    ///
    /// # Errors
    /// When a limit of the gateway was exceeded; the text names it.
    pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), String> {
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        gateway::state_set(key, value, ttl_ms)
    }

    /// Deletes a value.
    pub fn delete(key: &str) {
        gateway::state_delete(key);
    }
}
