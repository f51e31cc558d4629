//! A filter for benchmarks: drops bodies in capital letters, or, if it is configured with words,
//! messages that contain one of them.

mod rule;

use halley_plugin::prelude::*;

halley_plugin::export!(Measured: Filter);

#[derive(Deserialize)]
struct Measured {
    words: Vec<String>,
}

impl Filter for Measured {
    fn filter(&mut self, message: &Message) -> Verdict {
        let found = match self.words.is_empty() {
            true => rule::shouts(&message.body),
            false => rule::holds_a_word(&message.body, &self.words),
        };
        if found { Verdict::drop("not here") } else { Verdict::Pass }
    }
}
