//! Drops messages that contain certain words, or masks the words.
//!
//! ```toml
//! [[plugin]]
//! name = "keyword-filter"
//! path = "plugins/keyword_filter.wasm"
//!
//! [plugin.config]
//! words = ["spam", "广告"]       # required
//! action = "mask"               # drop (default) | mask
//! mask = "*"                    # replaces each character of a word
//! ignore_case = true
//! whole_words = false           # true: `ass` is not found in `class`
//! operations = [4]              # only messages with these operations; empty: all
//! rooms = ["video_*"]           # only messages to these rooms; empty: all messages
//! ```
//!
//! Bodies are searched as they are. Words are found in any UTF-8 text, including Chinese. JSON is
//! searched as text, so a word that a producer escapes (`\u5e7f`) is not found. A body that is not
//! UTF-8 is searched by bytes and dropped if it contains a word, but never masked: a new length might
//! break its format. `ignore_case` covers ASCII letters individually; words with letters of other
//! alphabets match as written, all in lower case and all in upper case.

mod words;

use std::ops::Range;

use halley_plugin::RoomPattern;
use halley_plugin::prelude::*;

use words::Words;

halley_plugin::export!(KeywordFilter: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

/// The plugin's `config` table.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// What to look for.
    #[cfg_attr(test, schemars(length(min = 1), inner(length(min = 1))))]
    words: Vec<String>,
    /// What happens to a message that contains one of the words.
    #[serde(default)]
    action: Action,
    /// Replaces each character of a word that is masked.
    #[serde(default = "asterisk")]
    mask: char,
    /// Whether upper and lower case are the same.
    #[serde(default = "yes")]
    ignore_case: bool,
    /// Whether a word is not found inside of a longer one, such as `ass` in `class`.
    #[serde(default)]
    whole_words: bool,
    /// Only messages with these operations; empty: all.
    #[serde(default)]
    operations: Vec<i32>,
    /// Only messages to these rooms; empty: all messages.
    #[serde(default)]
    rooms: Vec<RoomPattern>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum Action {
    #[default]
    Drop,
    Mask,
}

fn asterisk() -> char {
    '*'
}

fn yes() -> bool {
    true
}

struct KeywordFilter {
    config: Config,
    words: Words,
}

impl Policy for KeywordFilter {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.words.is_empty() || config.words.iter().any(String::is_empty) {
            return Err("config.words: name at least one word, and no empty ones".to_owned());
        }
        if config.mask.is_control() || matches!(config.mask, '"' | '\\') {
            return Err(format!(
                "config.mask: {:?} would break JSON bodies; choose another character",
                config.mask
            ));
        }
        let words = Words::new(&spellings(&config), config.ignore_case);
        let words = words.map_err(|why| format!("config.words: {why}"))?;
        Ok(Self { config, words })
    }
}

/// The words to search for, and without case sensitivity also their lower and upper case spellings,
/// for letters that are not ASCII.
fn spellings(config: &Config) -> Vec<String> {
    let mut spellings = config.words.clone();
    if config.ignore_case {
        for word in config.words.iter().filter(|word| !word.is_ascii()) {
            spellings.extend([word.to_lowercase(), word.to_uppercase()]);
        }
    }
    spellings
}

impl Filter for KeywordFilter {
    fn filter(&mut self, message: &Message) -> Verdict {
        if !self.covers(message) || !self.words.occur_in(&message.body) {
            return Verdict::Pass;
        }
        let Some(first) = self.find(&message.body).next() else { return Verdict::Pass };
        let as_text = std::str::from_utf8(&message.body);
        match (self.config.action, as_text) {
            (Action::Drop, _) => {
                let word = String::from_utf8_lossy(&message.body[first]);
                Verdict::drop(format!("contains `{word}`"))
            }
            (Action::Mask, Ok(text)) => Verdict::amend().body(self.masked(text)),
            (Action::Mask, Err(_)) => Verdict::Pass,
        }
    }
}

impl KeywordFilter {
    fn covers(&self, message: &Message) -> bool {
        let Config { operations, rooms, .. } = &self.config;
        (operations.is_empty() || operations.contains(&message.operation))
            && (rooms.is_empty() || rooms.iter().any(|pattern| pattern.matches(&message.room)))
    }

    fn find<'a>(&'a self, body: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
        let found = self.words.find_all(body);
        found.filter(move |word| !self.config.whole_words || is_whole_word(body, word))
    }

    /// The text with each character of each word replaced. Words are UTF-8, so in UTF-8 text they
    /// begin and end at character boundaries.
    fn masked(&self, text: &str) -> String {
        let mut masked = String::with_capacity(text.len());
        let mut copied = 0;
        for word in self.find(text.as_bytes()) {
            masked.push_str(&text[copied..word.start]);
            masked.extend(text[word.clone()].chars().map(|_| self.config.mask));
            copied = word.end;
        }
        masked.push_str(&text[copied..]);
        masked
    }
}

/// Whether the word continues at neither end. Only ASCII letters and digits continue a word: Chinese
/// has no spaces between words.
fn is_whole_word(body: &[u8], word: &Range<usize>) -> bool {
    let letter = |at: Option<usize>| at.and_then(|at| body.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let goes_on_before = letter(Some(word.start)) && letter(word.start.checked_sub(1));
    let goes_on_after = letter(Some(word.end - 1)) && letter(Some(word.end));
    !goes_on_before && !goes_on_after
}

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, keys, room};
    use serde_json::{Value, json};

    use super::*;

    /// The result for a body: `Err` with the reason, or the body as delivered.
    fn sent(config: Value, body: &str) -> Result<String, String> {
        let message = room("video_1").body(body).build();
        match Harness::<KeywordFilter>::new(config).filter([message]).remove(0) {
            Verdict::Pass => Ok(body.to_owned()),
            Verdict::Amend(amendment) => Ok(String::from_utf8(amendment.body.unwrap()).unwrap()),
            Verdict::Drop(reason) | Verdict::DeadLetter(reason) => Err(reason),
        }
    }

    #[test]
    fn a_word_stops_a_message() {
        let config = || json!({ "words": ["spam", "广告"] });
        assert_eq!(sent(config(), "buy SPAM now"), Err("contains `SPAM`".into()));
        assert_eq!(sent(config(), "看广告吧"), Err("contains `广告`".into()));
        assert_eq!(sent(config(), "广 告"), Ok("广 告".into()));
    }

    #[test]
    fn masking_keeps_characters_and_everything_else() {
        let config = || json!({ "words": ["spam", "spammer", "广告"], "action": "mask" });
        assert_eq!(sent(config(), r#"{"msg":"Spammer: 广告!"}"#), Ok(r#"{"msg":"*******: **!"}"#.into()));
        let config = json!({ "words": ["广告"], "action": "mask", "mask": "口" });
        assert_eq!(sent(config, "a广告b"), Ok("a口口b".into()));
    }

    #[test]
    fn case_may_matter() {
        let config = json!({ "words": ["Spam"], "ignore_case": false });
        assert_eq!(sent(config, "spam"), Ok("spam".into()));
        let config = || json!({ "words": ["Реклама"] });
        assert!(sent(config(), "РЕКЛАМА").is_err());
        assert!(sent(config(), "реклама").is_err());
    }

    #[test]
    fn whole_words_only() {
        let config = || json!({ "words": ["ass", "广告"], "action": "mask", "whole_words": true });
        assert_eq!(sent(config(), "class, ass; assay a广告b"), Ok("class, ***; assay a**b".into()));
    }

    #[test]
    fn only_these_operations_and_rooms() {
        let config = json!({ "words": ["spam"], "operations": [4], "rooms": ["video_*"] });
        let mut filter = Harness::<KeywordFilter>::new(config);
        let delivered = |message| filter.deliver(message).is_some();
        let messages = [
            room("video_1").body("spam"),
            room("video_1").body("spam").operation(5),
            room("live_1").body("spam"),
            keys(["ann"]).body("spam"),
        ];
        assert_eq!(messages.map(delivered), [false, true, true, true]);
    }

    #[test]
    fn bodies_that_are_not_text() {
        let body = *b"\xff\xfespam\xff";
        let of = |action: &str| {
            let mut filter = Harness::<KeywordFilter>::new(json!({ "words": ["spam"], "action": action }));
            filter.filter([room("r").body(body)]).remove(0)
        };
        assert_eq!(of("drop"), Verdict::drop("contains `spam`"));
        assert_eq!(of("mask"), Verdict::Pass);
    }

    #[test]
    fn mistakes_in_the_configuration_are_named() {
        let refusal = Harness::<KeywordFilter>::refusal;
        assert_eq!(refusal(json!({})), "config: missing field `words`");
        assert!(refusal(json!({ "words": [] })).starts_with("config.words: name at least one"));
        assert!(refusal(json!({ "words": ["a"], "mask": "\"" })).starts_with("config.mask:"));
        assert!(
            refusal(json!({ "words": ["a"], "action": "kill" }))
                .starts_with("config.action: unknown variant")
        );
        assert!(refusal(json!({ "words": ["a"], "room": [] })).starts_with("config.room: unknown field"));
    }
}
