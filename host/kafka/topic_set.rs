//! Which topics a configuration means: names, and patterns that begin with `^`. Pure.
//!
//! A pattern is read here as Rust's `regex` reads it, which for the names of topics is what
//! librdkafka does. One that `regex` does not take matches nothing.

use regex::Regex;

/// Names and patterns of topics.
#[derive(Clone, Debug, Default)]
pub struct TopicSet {
    names: Vec<String>,
    patterns: Vec<Regex>,
}

impl TopicSet {
    /// The set of what `[kafka] topics` may hold.
    pub fn new<'a>(topics: impl IntoIterator<Item = &'a String>) -> Self {
        let mut set = Self::default();
        for topic in topics {
            match topic.strip_prefix('^') {
                None => set.names.push(topic.clone()),
                Some(_) => set.patterns.extend(Regex::new(topic)),
            }
        }
        set
    }

    /// Whether this topic is meant.
    pub fn contains(&self, topic: &str) -> bool {
        self.names.iter().any(|name| name == topic) || self.patterns.iter().any(|p| p.is_match(topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_and_patterns_begin() {
        let topics = ["push", "^chat\\.", "^exact$", "^broken["].map(str::to_owned);
        let set = TopicSet::new(&topics);
        for meant in ["push", "chat.eu", "exact"] {
            assert!(set.contains(meant), "{meant}");
        }
        for other in ["push2", "payments", "my-chat.eu", "chatter", "exactly", "broken[", ""] {
            assert!(!set.contains(other), "{other}");
        }
    }
}
