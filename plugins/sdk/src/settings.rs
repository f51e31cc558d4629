//! The description of a policy's settings, which gateways check configurations against.

/// A configuration that describes itself with a JSON Schema (draft 2020-12). With `Settings` in
/// [`export!`](crate::export!), the gateway checks the `config` table before it creates the policy, and
/// reports all mistakes at once with their keys; `halley plugin inspect` and the admin API show the settings.
/// What no schema expresses is checked by [`Policy::new`](crate::Policy::new).
///
/// [`settings!`](crate::settings!) implements it from the type. Or write the schema yourself:
///
/// ```
/// use halley_plugin::Settings;
/// use halley_plugin::prelude::*;
///
/// #[derive(Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Calm {
///     seconds: u64,
/// }
///
/// impl Settings for Calm {
///     fn schema() -> String {
///         r#"{
///             "type": "object",
///             "properties": {
///                 "seconds": { "description": "Between two messages.", "type": "integer", "minimum": 1 }
///             },
///             "required": ["seconds"],
///             "additionalProperties": false
///         }"#
///         .to_owned()
///     }
/// }
///
/// impl Filter for Calm {}
///
/// halley_plugin::export!(Calm: Filter, Settings);
/// ```
pub trait Settings {
    /// The schema, in at most 64 KiB. It contains everything that it refers to.
    fn schema() -> String;
}

/// Implements [`Settings`] for a type that derives schemars' `JsonSchema`: doc comments become descriptions,
/// `#[serde(deny_unknown_fields)]` refuses other keys, and `#[serde(default)]` makes a key optional (its
/// value is shown if it is `Serialize`). It needs the feature `schema` and the crate `schemars`.
///
/// - `settings!(Config)` makes the schema in the policy. The code for that takes about 80 KB.
/// - `settings!(Config: "settings.json")` includes a file, next to `Cargo.toml`, which takes its own length
///   only. A test compares it with the type; with `HALLEY_UPDATE_SETTINGS=1` in the environment it writes the
///   file, which has to exist (`{}`). Only tests need `schemars` and the feature then, as dev-dependencies, and the type derives under
///   `#[cfg_attr(test, derive(schemars::JsonSchema))]`. The bundled policies do so.
#[macro_export]
macro_rules! settings {
    ($config:ty) => {
        impl $crate::Settings for $config {
            fn schema() -> ::std::string::String {
                $crate::schema_of::<$config>()
            }
        }
    };
    ($config:ty: $file:literal) => {
        impl $crate::Settings for $config {
            fn schema() -> ::std::string::String {
                ::std::include_str!(::std::concat!(::std::env!("CARGO_MANIFEST_DIR"), "/", $file)).to_owned()
            }
        }

        #[cfg(test)]
        mod settings_file {
            #[allow(unused_imports, reason = "the type may be named with its path")]
            use super::*;

            #[test]
            fn is_that_of_the_types() {
                $crate::testing::check_settings_file::<$config>(::std::concat!(
                    ::std::env!("CARGO_MANIFEST_DIR"),
                    "/",
                    $file
                ));
            }
        }
    };
}

/// The schema of a type, on several lines.
#[cfg(feature = "schema")]
pub fn schema_of<T: schemars::JsonSchema>() -> String {
    let generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let schema = generator.into_root_schema_for::<T>();
    serde_json::to_string_pretty(schema.as_value()).expect("a schema is JSON")
}
