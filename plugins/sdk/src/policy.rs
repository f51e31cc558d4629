//! The base of every policy, whatever its hooks: a value that is created from configuration.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

/// A policy and its construction from configuration, once per instance.
///
/// A type that is `Deserialize` is a policy already, and its own configuration: there is nothing to
/// implement. A policy that prepares something from its configuration, or checks it, implements this
/// trait (and is not `Deserialize` itself):
///
/// ```
/// use halley_plugin::prelude::*;
///
/// #[derive(Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     operations: Vec<i32>,
/// }
///
/// struct Allowed(std::collections::HashSet<i32>);
///
/// impl Policy for Allowed {
///     type Config = Config;
///
///     fn new(config: Config) -> Result<Self, String> {
///         if config.operations.is_empty() {
///             return Err("operations: empty, so that nothing would pass; name at least one".to_owned());
///         }
///         Ok(Self(config.operations.into_iter().collect()))
///     }
/// }
///
/// impl Filter for Allowed {
///     fn filter(&mut self, message: &Message) -> Verdict {
///         if self.0.contains(&message.operation) {
///             return Verdict::Pass;
///         }
///         Verdict::drop(format!("operation {} is not allowed", message.operation))
///     }
/// }
///
/// halley_plugin::export!(Allowed: Filter);
/// ```
pub trait Policy: Sized + 'static {
    /// The type of the plugin's `config` table. Whether unknown keys are refused
    /// (`#[serde(deny_unknown_fields)]`, recommended) and which keys have defaults
    /// (`#[serde(default)]`) is up to the type. Without a table it is deserialized from `{}`.
    type Config: DeserializeOwned;

    /// Creates the policy.
    ///
    /// # Errors
    /// The text names the wrong key and its remedy. It refuses the version.
    fn new(config: Self::Config) -> Result<Self, String>;
}

impl<T: DeserializeOwned + 'static> Policy for T {
    type Config = T;

    fn new(config: T) -> Result<Self, String> {
        Ok(config)
    }
}

/// The configuration of a policy without settings: an empty table. Keys are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Creates a policy from its configuration as JSON.
pub(crate) fn from_json<P: Policy>(config: &str) -> Result<P, String> {
    let config = if config.is_empty() { "{}" } else { config };
    let value: serde_json::Value = serde_json::from_str(config).map_err(|e| format!("config: {e}"))?;
    // Through a `Value`: the author wrote TOML, so a line and column of JSON would mislead.
    let config = serde_path_to_error::deserialize(value).map_err(describe)?;
    P::new(config)
}

/// Prefixes the key, unless the error is about the table as a whole.
fn describe(error: serde_path_to_error::Error<serde_json::Error>) -> String {
    let inside = error.path().iter().any(|segment| !matches!(segment, Segment::Unknown));
    if inside {
        format!("config.{}: {}", error.path(), error.inner())
    } else {
        format!("config: {}", error.inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Cooldown {
        seconds: u64,
        #[serde(default)]
        rooms: Vec<String>,
    }

    #[test]
    fn a_deserializable_policy_is_its_own_configuration() {
        let made = from_json::<Cooldown>(r#"{"seconds": 3}"#);
        assert_eq!(made, Ok(Cooldown { seconds: 3, rooms: Vec::new() }));
    }

    #[test]
    fn an_error_names_the_key() {
        let error = |json| from_json::<Cooldown>(json).expect_err("does not fit");
        assert_eq!(
            error(r#"{"seconds": 3, "rooms": ["a", 1]}"#),
            "config.rooms[1]: invalid type: integer `1`, expected a string"
        );
        assert_eq!(error(""), "config: missing field `seconds`");
        assert_eq!(
            error(r#"{"secs": 3}"#),
            "config.secs: unknown field `secs`, expected `seconds` or `rooms`"
        );
    }

    #[test]
    fn no_configuration_is_an_empty_table() {
        assert_eq!(from_json::<NoConfig>("{}"), Ok(NoConfig {}));
        assert!(from_json::<NoConfig>(r#"{"words": []}"#).is_err());
    }
}
