//! Which topics a configuration means: names, and patterns that begin with `^`. Pure.
//!
//! A pattern is read here as in [`crate::kafka::patterns`]. It means no topic that a consumer would
//! not read: none of the gateway's own, of Kafka's own (`__consumer_offsets`), of `topic.blacklist`.
//! One that cannot be read means nothing.

use regex::Regex;

use crate::kafka::Config;
use crate::kafka::patterns::is_pattern;

/// Names and patterns of topics.
#[derive(Clone, Debug, Default)]
pub struct TopicSet {
    names: Vec<String>,
    patterns: Vec<Regex>,
    /// What no pattern means, by name.
    not_these: Vec<String>,
    /// The same by pattern; `None` when one of these cannot be read.
    nor_these: Option<Vec<Regex>>,
}

impl TopicSet {
    /// The topics of `[kafka] topics`, and these; `own` are the gateway's own.
    pub fn consumed_and(config: &Config, more: &[String], own: &[&str]) -> Self {
        let blacklist = config.properties.get("topic.blacklist").map_or("", String::as_str);
        let blacklist = blacklist.split(',').filter(|text| !text.is_empty()).map(Regex::new);
        let mut set = Self {
            not_these: own.iter().map(|&own| own.to_owned()).collect(),
            nor_these: blacklist.collect::<Result<_, _>>().ok(),
            ..Self::default()
        };
        for topic in config.topics.iter().chain(more) {
            match is_pattern(topic) {
                false => set.names.push(topic.clone()),
                true => set.patterns.extend(Regex::new(topic)),
            }
        }
        set
    }

    /// Whether this topic is meant.
    pub fn contains(&self, topic: &str) -> bool {
        self.names.iter().any(|name| name == topic)
            || (self.may_match(topic) && self.patterns.iter().any(|pattern| pattern.is_match(topic)))
    }

    fn may_match(&self, topic: &str) -> bool {
        !topic.starts_with("__")
            && !self.not_these.iter().any(|name| name == topic)
            && self.nor_these.as_ref().is_some_and(|patterns| !patterns.iter().any(|p| p.is_match(topic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(topics: &[&str], blacklist: &str) -> TopicSet {
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        let properties = [("topic.blacklist".to_owned(), blacklist.to_owned())].into();
        let config = Config { topics, properties, ..Config::default() };
        TopicSet::consumed_and(&config, &["payments".to_owned()], &["push.dead-letter", "push.offline"])
    }

    #[test]
    fn names_are_whole_and_patterns_begin() {
        let set = set(&["push", "^chat\\.", "^exact$", "^broken["], "");
        for meant in ["push", "chat.eu", "exact", "payments"] {
            assert!(set.contains(meant), "{meant}");
        }
        for other in ["push2", "my-chat.eu", "chatter", "exactly", "broken[", ""] {
            assert!(!set.contains(other), "{other}");
        }
    }

    #[test]
    fn a_pattern_means_nothing_that_is_not_read() {
        let all = set(&["^.*"], "^secret");
        assert!(all.contains("chat") && all.contains("payments"));
        for other in ["push.dead-letter", "push.offline", "__consumer_offsets", "secrets"] {
            assert!(!all.contains(other), "{other}");
        }
        assert!(!set(&["^.*"], "^broken[").contains("chat"), "nobody knows what is left out");
    }
}
