//! How configuration values that are written as text appear in the JSON schema of the configuration
//! (`halley config schema`).

#![allow(missing_docs, reason = "named in attributes only; the schema has the texts")]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserializer, Serializer};

/// Declares types that only describe values.
macro_rules! described {
    ($($name:ident: $schema:tt)*) => {$(
        #[derive(Debug)]
        pub struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

described! {
    Duration: {
        "type": "string",
        "pattern": r"^\s*([0-9]+\s*[a-zA-Z]+\s*)+$|^0$",
        "description": "A time with units, such as `250ms`, `30s`, `1h 30m` or `7d`.",
    }
    Size: {
        "type": ["string", "integer"],
        "description": "A size with a unit, such as `64MiB`. A bare number counts bytes.",
    }
    SizeOrWord: {
        "type": "string",
        "description": "A size with a unit, such as `2GiB`; `auto` or `off`.",
    }
    Fraction: {
        "type": ["string", "number"],
        "description": "A share, as `5%` or `0.05`.",
    }
    WordOrTable: {
        "description": "`pass`, `drop`, `dead-letter` or `stall`, or a table of them by kind of error.",
        "anyOf": [
            { "enum": ["pass", "drop", "dead-letter", "stall"] },
            {
                "type": "object",
                "additionalProperties": false,
                "patternProperties": {
                    "^(default|trap|deadline|memory|bad-answer)$": {
                        "enum": ["pass", "drop", "dead-letter", "stall"],
                    },
                    "^start$": { "enum": ["drop", "dead-letter", "stall"] },
                },
            },
        ],
    }
}

/// `#[serde(with = "schema::Duration")]` names the schema of a time and how it is read and written.
impl Duration {
    pub(crate) fn serialize<S: Serializer>(
        time: &std::time::Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        const DAY: u64 = 24 * 3600;
        // humantime would show 90 days as `2months 29days 2h 52m 48s`.
        match (time.as_secs() / DAY, time.as_secs() % DAY, time.subsec_nanos()) {
            (days @ 2.., 0, 0) => serializer.serialize_str(&format!("{days}days")),
            _ => humantime_serde::serialize(time, serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<std::time::Duration, D::Error> {
        humantime_serde::deserialize(deserializer)
    }
}

/// Values that are written as text: serde reads and writes them by `FromStr` and `Display`.
macro_rules! as_text {
    ($($value:ty),+) => {$(
        impl ::serde::Serialize for $value {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $value {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    )+};
}

pub(crate) use as_text;
