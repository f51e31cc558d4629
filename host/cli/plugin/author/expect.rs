//! The expected answer of a case: a word, or a table with details.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::cli::plugin::author::answer::{self, EndKind, PolicyAnswer};
use crate::decision::Retention;

/// An expected answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Exactly(PolicyAnswer),
    /// This end, for a reason that contains this part.
    Ended(EndKind, String),
}

impl Expected {
    pub(super) fn is_met_by(&self, got: &PolicyAnswer) -> bool {
        match self {
            Self::Exactly(answer) => answer == got,
            Self::Ended(expected, part) => {
                matches!(got, PolicyAnswer::Ended(kind, reason) if kind == expected && reason.contains(part))
            }
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::Exactly(answer) => answer.lines(),
            Self::Ended(kind, part) => {
                vec![format!("{}: {}", kind.as_str(), if part.is_empty() { "..." } else { part })]
            }
        }
    }
}

#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FilterWord {
    Pass,
    /// For any reason.
    Drop,
    DeadLetter,
    Fail,
}

#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OfflineWord {
    Pass,
    Drop,
    /// With the gateway's `[offline] retention`.
    Store,
    Fail,
}

/// The expected outcome of a filter. Parts that are not named must be unchanged.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ExpectedFilter {
    drop: Option<String>,
    dead_letter: Option<String>,
    fail: Option<String>,
    body: Option<String>,
    body_base64: Option<String>,
    operation: Option<i32>,
    room: Option<String>,
    keys: Vec<String>,
    only: Option<Vec<String>>,
    except: Vec<String>,
    also: Vec<String>,
    once: Vec<ExpectedGuard>,
    keep: Vec<ExpectedPlace>,
}

/// Where a message is kept; in the order of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ExpectedPlace {
    Inbox,
    History,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedGuard {
    key: String,
    #[serde(with = "humantime_serde")]
    ttl: Duration,
}

/// The expected disposition for an absent user.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ExpectedOffline {
    #[serde(with = "humantime_serde")]
    store: Option<Duration>,
    notify: Option<String>,
    fail: Option<String>,
}

impl WordOr<FilterWord, ExpectedFilter> {
    pub(super) fn expected(&self) -> Expected {
        match self {
            Self::Word(FilterWord::Pass) => Expected::Exactly(PolicyAnswer::line("pass")),
            Self::Word(FilterWord::Drop) => Expected::Ended(EndKind::Dropped, String::new()),
            Self::Word(FilterWord::DeadLetter) => Expected::Ended(EndKind::DeadLettered, String::new()),
            Self::Word(FilterWord::Fail) => Expected::Ended(EndKind::Failed, String::new()),
            Self::Table(outcome) => outcome.expected(),
        }
    }
}

impl ExpectedFilter {
    fn expected(&self) -> Expected {
        if let Some(reason) = &self.drop {
            return Expected::Exactly(PolicyAnswer::Ended(EndKind::Dropped, reason.clone()));
        }
        if let Some(reason) = &self.dead_letter {
            return Expected::Exactly(PolicyAnswer::Ended(EndKind::DeadLettered, reason.clone()));
        }
        if let Some(part) = &self.fail {
            return Expected::Ended(EndKind::Failed, part.clone());
        }
        let mut lines = Vec::new();
        lines.extend(self.body.as_ref().map(|body| answer::body(body.as_bytes())));
        lines.extend(self.body_base64.as_ref().map(|text| format!("body_base64: {text}")));
        lines.extend(self.operation.map(answer::operation));
        lines.extend(self.room.as_deref().map(answer::room));
        if !self.keys.is_empty() {
            lines.push(answer::names("keys", &self.keys));
        }
        lines.extend(self.only.iter().map(|only| answer::comets("only", only)));
        for (word, comets) in [("except", &self.except), ("also", &self.also)] {
            if !comets.is_empty() {
                lines.push(answer::comets(word, comets));
            }
        }
        lines.extend(self.once.iter().map(|once| answer::once(&once.key, once.ttl)));
        let is_kept = |place| self.keep.contains(&place);
        let (inbox, history) = (is_kept(ExpectedPlace::Inbox), is_kept(ExpectedPlace::History));
        lines.extend(answer::keep(&Retention { inbox, history }.names()));
        Expected::Exactly(match lines.is_empty() {
            true => PolicyAnswer::line("pass"),
            false => PolicyAnswer::Statements(lines),
        })
    }
}

impl WordOr<OfflineWord, ExpectedOffline> {
    pub(super) fn expected(&self) -> Expected {
        let exactly = |line: String| Expected::Exactly(PolicyAnswer::line(line));
        match self {
            Self::Word(OfflineWord::Pass) => exactly("pass".to_owned()),
            Self::Word(OfflineWord::Drop) => exactly("drop".to_owned()),
            Self::Word(OfflineWord::Store) => exactly("store".to_owned()),
            Self::Word(OfflineWord::Fail) => Expected::Ended(EndKind::Failed, String::new()),
            Self::Table(ExpectedOffline { store: Some(time), .. }) => exactly(answer::store_for(*time)),
            Self::Table(ExpectedOffline { notify: Some(channel), .. }) => exactly(answer::notify(channel)),
            Self::Table(ExpectedOffline { fail, .. }) => {
                Expected::Ended(EndKind::Failed, fail.clone().unwrap_or_default())
            }
        }
    }
}

/// A word, or a table with details.
#[derive(Clone, Debug)]
pub(super) enum WordOr<W, T> {
    Word(W),
    Table(T),
}

impl<'de, W: Deserialize<'de>, T: Deserialize<'de>> Deserialize<'de> for WordOr<W, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<W, T>(PhantomData<(W, T)>);

        impl<'de, W: Deserialize<'de>, T: Deserialize<'de>> Visitor<'de> for Either<W, T> {
            type Value = WordOr<W, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a table")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Self::Value, E> {
                W::deserialize(StrDeserializer::new(word)).map(WordOr::Word)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(WordOr::Table)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_match_an_end_and_a_part_of_its_reason() {
        let drop = Expected::Ended(EndKind::Dropped, String::new());
        let dropped = |reason: &str| PolicyAnswer::Ended(EndKind::Dropped, reason.into());
        assert!(drop.is_met_by(&dropped("spam")) && !drop.is_met_by(&PolicyAnswer::line("pass")));
        assert!(!drop.is_met_by(&PolicyAnswer::line("drop: a statement")));
        let fail = Expected::Ended(EndKind::Failed, "deadline".into());
        assert!(!fail.is_met_by(&dropped("fail: deadline")), "a reason is not an outcome");
        assert!(fail.is_met_by(&PolicyAnswer::failed("exceeded its deadline of 2s")));
        assert!(!fail.is_met_by(&PolicyAnswer::failed("trapped")));
    }
}
