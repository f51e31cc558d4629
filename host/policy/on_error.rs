//! What happens to a message when a plugin fails on it, by kind of failure.

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::decision::{FailureKind, OnError};
use crate::mistake::{Mistake, mistake};

/// The action for each kind of failure. In the configuration: one word for all of them, or a table,
/// `{ default = "pass", trap = "dead-letter", deadline = "stall" }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case", remote = "Self")]
pub struct OnErrors {
    /// For kinds that are not listed.
    pub default: OnError,
    /// It trapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trap: Option<OnError>,
    /// It exceeded its deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<OnError>,
    /// It failed after a memory allocation beyond its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<OnError>,
    /// It returned an invalid answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_answer: Option<OnError>,
    /// An instance could not be started, although one could when the version was loaded. Unless it is
    /// set, the partition stalls, whatever `default` is: no message passes because a worker has no
    /// instance. `pass` is not allowed here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<OnError>,
}

impl OnErrors {
    /// The action for this kind of failure.
    pub(super) fn on(&self, kind: FailureKind) -> OnError {
        let special = match kind {
            FailureKind::Trap => self.trap,
            FailureKind::Deadline => self.deadline,
            FailureKind::Memory => self.memory,
            FailureKind::BadAnswer => self.bad_answer,
            FailureKind::Start => Some(self.start.unwrap_or(OnError::Stall)),
        };
        special.unwrap_or(self.default)
    }

    /// Mistakes in the values, one sentence each.
    pub(super) fn validate(&self) -> Vec<Mistake> {
        let opens = self.start == Some(OnError::Pass);
        let mistake = || {
            mistake!(
                "on_error.start",
                "cannot be \"pass\": every message would pass where no instance starts; \
                 remove it (the partition stalls), or use \"drop\" or \"dead-letter\""
            )
        };
        opens.then(mistake).into_iter().collect()
    }
}

impl From<OnError> for OnErrors {
    fn from(all: OnError) -> Self {
        Self { default: all, ..Self::default() }
    }
}

impl<'de> Deserialize<'de> for OnErrors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrTable;

        impl<'de> Visitor<'de> for WordOrTable {
            type Value = OnErrors;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "`pass`, `drop`, `dead-letter`, `stall`, or a table of them by kind of error, \
                     such as { default = \"pass\", trap = \"dead-letter\" }",
                )
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<OnErrors, E> {
                let known = OnError::deserialize(StrDeserializer::<E>::new(word));
                known.map(OnErrors::from).map_err(|_| E::invalid_value(Unexpected::Str(word), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<OnErrors, A::Error> {
                OnErrors::deserialize(MapAccessDeserializer::new(table))
            }
        }

        deserializer.deserialize_any(WordOrTable)
    }
}

impl Serialize for OnErrors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::from(self.default) {
            return self.default.serialize(serializer);
        }
        Self::serialize(self, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Section {
        on_error: OnErrors,
    }

    fn read(text: &str) -> Result<OnErrors, toml::de::Error> {
        toml::from_str::<Section>(text).map(|section| section.on_error)
    }

    #[test]
    fn on_error_is_a_word_or_a_table() {
        let all = read("on_error = \"dead-letter\"").unwrap();
        assert_eq!(all.on(FailureKind::Trap), OnError::DeadLetter);
        let table = read("on_error = { default = \"drop\", bad-answer = \"stall\" }").unwrap();
        assert_eq!(table.on(FailureKind::BadAnswer), OnError::Stall);
        assert_eq!(table.on(FailureKind::Deadline), OnError::Drop);
        assert_eq!(table.on(FailureKind::Trap), OnError::Drop);
    }

    #[test]
    fn a_start_failure_never_passes_messages() {
        for text in ["\"pass\"", "\"drop\"", "{ trap = \"drop\" }"] {
            let on_error = read(&format!("on_error = {text}")).unwrap();
            assert_eq!(on_error.on(FailureKind::Start), OnError::Stall, "{text}");
            assert!(on_error.validate().is_empty());
        }
        let own = read("on_error = { start = \"dead-letter\" }").unwrap();
        assert_eq!(own.on(FailureKind::Start), OnError::DeadLetter);
        assert_eq!(read("on_error = { start = \"pass\" }").unwrap().validate().len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(read("on_error = \"explode\"").unwrap_err().to_string().contains("explode"));
        assert!(read("on_error = { oops = \"drop\" }").unwrap_err().to_string().contains("oops"));
        assert!(read("on_error = 3").unwrap_err().to_string().contains("a table of them by kind"));
    }

    #[test]
    fn on_error_serializes_as_written() {
        let json = |errors: OnErrors| serde_json::to_string(&errors).unwrap();
        assert_eq!(json(OnError::Stall.into()), "\"stall\"");
        let table = OnErrors { memory: Some(OnError::Drop), ..OnErrors::default() };
        assert_eq!(json(table), r#"{"default":"pass","memory":"drop"}"#);
    }
}
