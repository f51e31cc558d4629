//! Masks words in bodies, and drops messages whose body is empty.
//!
//! `plugins/languages` has the same policy in JavaScript, Python, C and Go, to compare the cost of a
//! language. For more features use `keyword-filter`.

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// What to look for.
    #[cfg_attr(test, schemars(length(min = 1), inner(length(min = 1))))]
    words: Vec<String>,
    /// Replaces each character of a word.
    #[serde(default = "asterisk")]
    mask: char,
}

fn asterisk() -> char {
    '*'
}

struct MaskWords {
    /// Longest first, so that the longest match wins.
    words: Vec<String>,
    /// Whether a word begins with this byte: skips most positions quickly.
    begins: [bool; 256],
    mask: char,
}

impl Policy for MaskWords {
    type Config = Config;

    fn new(Config { mut words, mask }: Config) -> Result<Self, String> {
        if words.is_empty() || words.iter().any(String::is_empty) {
            return Err("config.words: name at least one word, and no empty ones".to_owned());
        }
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        let mut begins = [false; 256];
        for word in &words {
            begins[usize::from(word.as_bytes()[0])] = true;
        }
        Ok(Self { words, begins, mask })
    }
}

impl Filter for MaskWords {
    fn filter(&mut self, message: &Message) -> Verdict {
        if message.body.is_empty() {
            return Verdict::drop("empty");
        }
        let Ok(text) = std::str::from_utf8(&message.body) else { return Verdict::Pass };
        self.masked(text).map_or(Verdict::Pass, |masked| Verdict::amend().body(masked))
    }
}

impl MaskWords {
    /// The text with each character of each word replaced; `None` if it contains no word.
    fn masked(&self, text: &str) -> Option<String> {
        let mut masked = String::new();
        let (mut copied, mut at) = (0, 0);
        while at < text.len() {
            let Some(word) = self.word_at(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            masked.push_str(&text[copied..at]);
            masked.extend(word.chars().map(|_| self.mask));
            at += word.len();
            copied = at;
        }
        masked.push_str(&text[copied..]);
        (copied > 0).then_some(masked)
    }

    /// The longest word at the beginning of this text, which is not empty.
    fn word_at(&self, text: &[u8]) -> Option<&str> {
        if !self.begins[usize::from(text[0])] {
            return None;
        }
        self.words.iter().map(String::as_str).find(|word| text.starts_with(word.as_bytes()))
    }
}

halley_plugin::export!(MaskWords: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, room};
    use serde_json::json;

    use super::*;

    #[test]
    fn words_are_masked_and_the_longest_wins() {
        let mut policy = Harness::<MaskWords>::new(json!({ "words": ["spam", "spammer", "广告"] }));
        let bodies = ["hello", "a spammer's spam", "看广告"].map(|body| room("video_1").body(body));
        let masked = |body: &str| Verdict::amend().body(body);
        assert_eq!(policy.filter(bodies), [Verdict::Pass, masked("a *******'s ****"), masked("看**")]);
    }

    #[test]
    fn what_is_empty_is_dropped_and_what_is_not_text_passes() {
        let mut policy = Harness::<MaskWords>::new(json!({ "words": ["spam"], "mask": "口" }));
        let bodies = [&b""[..], b"\xffspam", b"spam"].map(|body| room("video_1").body(body));
        assert_eq!(
            policy.filter(bodies),
            [Verdict::drop("empty"), Verdict::Pass, Verdict::amend().body("口口口口")]
        );
    }

    #[test]
    fn a_list_without_words_is_refused() {
        assert!(Harness::<MaskWords>::refusal(json!({ "words": [] })).starts_with("config.words:"));
    }
}
