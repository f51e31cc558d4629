//! A filter to be measured: drops what is written in capital letters, or, where it is given
//! words, messages that hold one of them.

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
