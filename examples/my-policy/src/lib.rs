//! A first policy: messages that contain one of the configured words are not delivered.

use halley_plugin::prelude::*;
use schemars::JsonSchema;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Blocklist {
    /// Messages that contain one of these are dropped.
    words: Vec<String>,
}

impl Filter for Blocklist {
    fn filter(&mut self, message: &Message) -> Verdict {
        let found = self.words.iter().find(|word| message.text().contains(*word));
        found.map_or(Verdict::Pass, |word| Verdict::drop(format!("contains {word}")))
    }
}

halley_plugin::export!(Blocklist: Filter, Settings);
halley_plugin::settings!(Blocklist);

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, room};

    use super::*;

    #[test]
    fn a_word_stops_a_message() {
        let mut policy = Harness::<Blocklist>::new(serde_json::json!({ "words": ["spam"] }));
        assert!(policy.deliver(room("video_1").body("hello")).is_some());
        assert!(policy.deliver(room("video_1").body("buy spam")).is_none());
    }
}
