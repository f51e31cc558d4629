//! The topics of a configuration: names, and patterns that begin with `^`. Pure.
//!
//! Patterns are parsed as in [`crate::kafka::patterns`]. They match no topic that the consumer would
//! not read: the gateway's own, Kafka's own (`__consumer_offsets`), and those of `topic.blacklist`.
//! An invalid pattern matches nothing.

use regex::Regex;

use crate::kafka::Config;
use crate::kafka::patterns::is_pattern;

/// Names and patterns of topics.
#[derive(Clone, Debug, Default)]
pub struct TopicSet {
    names: Vec<String>,
    patterns: Vec<Regex>,
    /// Topics that no pattern matches, by name.
    excluded: Vec<String>,
    /// The same by pattern; `None` if one of these is invalid.
    excluded_patterns: Option<Vec<Regex>>,
}

impl TopicSet {
    /// The topics of `[kafka] topics`, and `more`; `own` are the gateway's own topics.
    pub fn consumed_with(config: &Config, more: &[String], own: &[&str]) -> Self {
        let blacklist = config.properties.get("topic.blacklist").map_or("", String::as_str);
        let blacklist = blacklist.split(',').filter(|text| !text.is_empty()).map(Regex::new);
        let mut set = Self {
            excluded: own.iter().map(|&own| own.to_owned()).collect(),
            excluded_patterns: blacklist.collect::<Result<_, _>>().ok(),
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

    /// Whether the set contains this topic.
    pub fn contains(&self, topic: &str) -> bool {
        self.names.iter().any(|name| name == topic)
            || (self.may_match(topic) && self.patterns.iter().any(|pattern| pattern.is_match(topic)))
    }

    fn may_match(&self, topic: &str) -> bool {
        !topic.starts_with("__")
            && !self.excluded.iter().any(|name| name == topic)
            && self
                .excluded_patterns
                .as_ref()
                .is_some_and(|patterns| !patterns.iter().any(|p| p.is_match(topic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(topics: &[&str], blacklist: &str) -> TopicSet {
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        let properties = [("topic.blacklist".to_owned(), blacklist.to_owned())].into();
        let config = Config { topics, properties, ..Config::default() };
        TopicSet::consumed_with(&config, &["payments".to_owned()], &["push.dead-letter", "push.offline"])
    }

    #[test]
    fn names_match_exactly_and_patterns_by_regex() {
        let set = set(&["push", "^chat\\.", "^exact$", "^broken["], "");
        for meant in ["push", "chat.eu", "exact", "payments"] {
            assert!(set.contains(meant), "{meant}");
        }
        for other in ["push2", "my-chat.eu", "chatter", "exactly", "broken[", ""] {
            assert!(!set.contains(other), "{other}");
        }
    }

    #[test]
    fn a_pattern_matches_only_consumed_topics() {
        let all = set(&["^.*"], "^secret");
        assert!(all.contains("chat") && all.contains("payments"));
        for other in ["push.dead-letter", "push.offline", "__consumer_offsets", "secrets"] {
            assert!(!all.contains(other), "{other}");
        }
        assert!(!set(&["^.*"], "^broken[").contains("chat"), "nobody knows what is left out");
    }
}
