//! Test cases of a policy, in TOML or JSON: its input and the expected answers.
//!
//! Unknown keys are errors: a case that is not read proves nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use crate::cli::message_spec::MessageSpec;
use crate::cli::plugin::author::answer::{self, PolicyAnswer};
use crate::cli::plugin::author::expect::{
    Expected, ExpectedFilter, ExpectedOffline, FilterWord, OfflineWord, WordOr,
};
use crate::cli::plugin::author::question::{AbsentUserSpec, ConnectionSpec, OfflineSpec, RoomSpec};
use crate::cli::read_input;
use crate::message::CometAddr;

/// A file of cases.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cases {
    /// The policy's configuration, unless a case has its own.
    #[serde(default)]
    pub(super) config: Option<Value>,
    #[serde(default, rename = "case")]
    pub(super) cases: Vec<Case>,
}

/// One case: a fresh instance with its own state, and inputs in order.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) config: Option<Value>,
    /// A part of the reason for which the configuration must be refused.
    pub(super) refused: Option<String>,
    #[serde(default)]
    pub(super) filter: Vec<FilterCase>,
    /// Asked like those of `filter`: a message passes the filter and then `retention`.
    #[serde(default)]
    pub(super) retention: Vec<FilterCase>,
    #[serde(default)]
    pub(super) offline: Vec<OfflineCase>,
    #[serde(default)]
    pub(super) grouping: Vec<GroupingCase>,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterCase {
    pub(super) message: MessageSpec,
    pub(super) expect: WordOr<FilterWord, ExpectedFilter>,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfflineCase {
    message: MessageSpec,
    absent: AbsentUserSpec,
    pub(super) expect: WordOr<OfflineWord, ExpectedOffline>,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupingCase {
    room: String,
    connections: Vec<ConnectionSpec>,
    #[serde(default, with = "humantime_serde")]
    at: Option<std::time::SystemTime>,
    /// The connections that are moved, by id: to a comet's address, `skip` or `offline`.
    pub(super) expect: BTreeMap<String, String>,
}

impl OfflineCase {
    pub(super) fn question(&self) -> OfflineSpec {
        OfflineSpec { message: self.message.clone(), absent: self.absent.clone() }
    }
}

impl GroupingCase {
    pub(super) fn question(&self) -> RoomSpec {
        RoomSpec { room: self.room.clone(), connections: self.connections.clone(), at: self.at }
    }

    pub(super) fn expected(&self) -> Expected {
        let moved: Vec<String> = self
            .expect
            .iter()
            .map(|(id, to)| answer::moved(id, CometAddr::from(to.as_str()).as_str()))
            .collect();
        Expected::Exactly(match moved.is_empty() {
            true => PolicyAnswer::line("stays"),
            false => PolicyAnswer::Statements(moved),
        })
    }
}

/// Reads a file of cases, as JSON if it has that extension.
///
/// # Errors
/// When it cannot be read, or has an invalid key or value; names the position.
pub(super) fn read(file: &Path) -> anyhow::Result<Cases> {
    let text = read_input(file)?;
    parse(&text, file.extension().is_some_and(|extension| extension == "json"))
        .with_context(|| format!("{} has a mistake", file.display()))
}

fn parse(text: &str, is_json: bool) -> anyhow::Result<Cases> {
    let cases: Cases = match is_json {
        true => {
            let mut json = serde_json::Deserializer::from_str(text);
            serde_path_to_error::deserialize(&mut json)?
        }
        false => toml::from_str(text)?,
    };
    for case in &cases.cases {
        let is_silent = case.filter.is_empty() && case.retention.is_empty();
        let asks = !(is_silent && case.offline.is_empty() && case.grouping.is_empty());
        if asks == case.refused.is_some() {
            anyhow::bail!(
                "case `{}` has no input, or has input and `refused`: give it `[[case.filter]]`, \
                 `[[case.retention]]`, `[[case.offline]]` or `[[case.grouping]]`, or `refused` alone",
                case.name
            );
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(toml: &str) -> Vec<String> {
        let text = format!("[[case]]\nname = \"c\"\n[[case.filter]]\nmessage = {{ room = \"r\" }}\n{toml}\n");
        let cases = parse(&text, false).unwrap();
        cases.cases[0].filter[0].expect.expected().lines()
    }

    #[test]
    fn expectations_are_words_or_tables() {
        assert_eq!(expected("expect = \"pass\""), ["pass"]);
        assert_eq!(expected("expect = \"drop\""), ["drop: ..."]);
        assert_eq!(expected("expect = { dead-letter = \"bad\" }"), ["dead-letter: bad"]);
        assert_eq!(
            expected("expect = { body = \"x\", only = [], once = [{ key = \"k\", ttl = \"2m\" }] }"),
            ["body: \"x\"", "only: ", "once: k for 2m"]
        );
        assert_eq!(expected("expect = { keep = [\"history\", \"inbox\"] }"), ["keep: inbox, history"]);
        assert_eq!(expected("expect = {}"), ["pass"]);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let mistake = |text: &str, is_json| format!("{:#}", parse(text, is_json).unwrap_err());
        let toml = mistake("[[case]]\nname = \"c\"\nfilters = []\n", false);
        assert!(toml.contains("line 3") && toml.contains("unknown field `filters`"), "{toml}");
        let word = "[[case]]\nname = \"c\"\n[[case.filter]]\nmessage = { room = \"r\" }\nexpect = \"stop\"\n";
        let word = mistake(word, false);
        assert!(word.contains("line 5") && word.contains("`dead-letter`"), "{word}");
        let json =
            mistake(r#"{"case":[{"name":"c","filter":[{"message":{"room":1},"expect":"pass"}]}]}"#, true);
        assert!(json.contains("case[0].filter[0].message.room"), "{json}");
        assert!(mistake("[[case]]\nname = \"empty\"\n", false).contains("case `empty` has no input"));
    }
}
