//! The rooms that a rule applies to.

use serde::Deserialize;
use serde::de::Error;

/// A room id, or a prefix followed by `*`: `video_1` matches that room only, `video_*` every room
/// that begins with `video_`, `*` every room. Deserialized from a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPattern {
    text: String,
    prefix: bool,
}

impl RoomPattern {
    /// Whether a room matches. A message to no room has the empty room id, which no pattern matches.
    pub fn matches(&self, room: &str) -> bool {
        !room.is_empty() && if self.prefix { room.starts_with(&self.text) } else { room == self.text }
    }
}

impl<'de> Deserialize<'de> for RoomPattern {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (text, prefix) = match text.strip_suffix('*') {
            Some(beginning) => (beginning.to_owned(), true),
            None => (text, false),
        };
        if text.contains('*') {
            return Err(D::Error::custom("a room pattern has its `*` at the end, as in `video_*`"));
        }
        if text.is_empty() && !prefix {
            return Err(D::Error::custom("a room pattern must not be empty; `*` matches every room"));
        }
        Ok(Self { text, prefix })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for RoomPattern {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RoomPattern".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A room id, or the beginning of one that ends with `*`.",
            "type": "string",
            "minLength": 1,
            "pattern": r"^[^*]*\*?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<RoomPattern, String> {
        serde_json::from_value(text.into()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_star_ends_a_beginning() {
        let all = |text: &str| {
            let pattern = pattern(text).unwrap();
            ["video_1", "video_12", "live_1", ""].map(|room| pattern.matches(room))
        };
        assert_eq!(all("video_1"), [true, false, false, false]);
        assert_eq!(all("video_*"), [true, true, false, false]);
        assert_eq!(all("*"), [true, true, true, false]);
    }

    #[test]
    fn other_patterns_are_refused() {
        assert!(pattern("*_1").unwrap_err().contains("at the end"));
        assert!(pattern("").unwrap_err().contains("must not be empty"));
    }
}
