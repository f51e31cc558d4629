//! What the gateway offers to a policy. Inside of a gateway these are imports of the
//! component; in native tests [`testing`](crate::testing) stands in for them.

use std::time::Duration;

#[cfg(target_family = "wasm")]
use crate::bindings::common::halley::policy::host as gateway;
#[cfg(not(target_family = "wasm"))]
use crate::testing::stand_in as gateway;

/// The time since 1970-01-01 UTC, in whole milliseconds, by the gateway's clock.
pub fn now() -> Duration {
    Duration::from_millis(gateway::now())
}

/// Adds to a counter of the policy's own, exported as
/// `halley_plugin_counter_total{plugin, name}`. The number of names is limited: use a name
/// for each kind of event, not for each room.
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

/// Sets a gauge of the policy's own, exported as `halley_plugin_gauge{plugin, name}`.
pub fn gauge_set(name: &str, value: f64) {
    gateway::gauge_set(name, value);
}

/// The plugin's `config` table as JSON.
#[cfg(target_family = "wasm")]
pub(crate) fn config() -> String {
    gateway::config()
}

/// Lines in the gateway's log, under the plugin's name and version:
/// `log::info!("{} words", words.len())`.
///
/// The gateway limits rate and length. For what happens per message use `debug!` or a
/// counter.
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

/// Small values that outlive an instance and a version of the policy, though not the
/// gateway's process: all its workers share them. What has to hold for the whole fleet is
/// better asked for as a guard ([`Verdict::once`](crate::Verdict::once)), or kept with
/// `state = "shared"` in the gateway's configuration.
///
/// Then the same functions, in [`Filter`](crate::Filter), read and write what all gateways see,
/// for at most 7 days. Read first, then count and log: where a value is not there yet, the
/// gateway fetches everything that the batch asked for and calls the filter again, and what
/// came after the read has not happened. Do not count in fields of the policy: they see such a
/// call twice. Two who write the same key at the same time do not see each other, so take keys
/// that one partition writes, such as rooms.
pub mod state {
    use std::time::Duration;

    use super::gateway;

    /// A value that was set and has not expired.
    pub fn get(key: &str) -> Option<Vec<u8>> {
        gateway::state_get(key)
    }

    /// Keeps a value, for `ttl` or until the process ends.
    ///
    /// # Errors
    /// When a limit of the gateway was hit; the text says which.
    pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), String> {
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        gateway::state_set(key, value, ttl_ms)
    }

    /// Forgets a value.
    pub fn delete(key: &str) {
        gateway::state_delete(key);
    }
}
