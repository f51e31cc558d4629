//! A filter to be measured: drops messages that hold one of its words.

mod rule;

use halley_plugin::prelude::*;

halley_plugin::export!(Words: Filter);

#[derive(Deserialize)]
struct Words {
    words: Vec<String>,
}

impl Filter for Words {
    fn filter(&mut self, message: &Message) -> Verdict {
        match rule::holds_a_word(&message.body, &self.words) {
            true => Verdict::drop("holds a word"),
            false => Verdict::Pass,
        }
    }
}
