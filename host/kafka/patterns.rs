//! Matches topics with a pattern of `[kafka] topics` (`^push.*`). Pure.
//!
//! librdkafka uses the C library's extended regular expressions, this module the `regex` crate. Both
//! agree on the syntax that is useful for topic names.

use anyhow::{Context as _, ensure};
use regex::Regex;

use crate::kafka::Config;

/// How many topics are listed.
const NAMED: usize = 10;

/// The topics that a pattern matches.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PatternMatches {
    /// Topics that are consumed.
    pub(super) topics: Vec<String>,
    /// The gateway's own topics, which are not.
    own: Vec<String>,
}

/// Whether an entry of `[kafka] topics` is a pattern.
pub(crate) fn is_pattern(topic: &str) -> bool {
    topic.starts_with('^')
}

/// Which of these topics a pattern matches.
pub(super) fn matches(
    pattern: &str,
    topics: &[String],
    outputs: &[(&str, &str)],
    config: &Config,
) -> anyhow::Result<PatternMatches> {
    let regex = |text: &str| Regex::new(text).with_context(|| format!("cannot tell what `{text}` matches"));
    let pattern = regex(pattern)?;
    let ignored = config.properties.get("topic.blacklist").map_or("", String::as_str);
    let ignored: Vec<_> =
        ignored.split(',').filter(|text| !text.is_empty()).map(regex).collect::<Result<_, _>>()?;
    let mut found = PatternMatches::default();
    for topic in topics.iter().filter(|topic| pattern.is_match(topic)) {
        let is_output = |topic: &str| outputs.iter().any(|(_, output)| *output == topic);
        if *topic == config.dead_letter_topic || is_output(topic) {
            found.own.push(topic.clone());
        } else if !ignored.iter().any(|ignored| ignored.is_match(topic)) {
            found.topics.push(topic.clone());
        }
    }
    found.topics.sort_unstable();
    Ok(found)
}

impl PatternMatches {
    /// A description for the operator.
    pub(super) fn found(&self) -> anyhow::Result<String> {
        let own: Vec<_> = self
            .own
            .iter()
            .map(|topic| format!("; also `{topic}`, which is the gateway's own and is never consumed"))
            .collect();
        let own = own.concat();
        ensure!(
            !self.topics.is_empty(),
            "it matches no topic{own}; create one, or check the pattern (a topic that is created later is found within `topic.metadata.refresh.interval.ms`, 10 s by default)"
        );
        if let Some(kafkas) = self.topics.iter().find(|topic| topic.starts_with("__")) {
            anyhow::bail!(
                "it matches `{kafkas}`, an internal topic of Kafka; narrow the pattern, or exclude the topic with `topic.blacklist` in [kafka.properties]"
            );
        }
        let named: Vec<_> = self.topics.iter().take(NAMED).map(String::as_str).collect();
        let more = match self.topics.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let plural = if self.topics.len() == 1 { "" } else { "s" };
        Ok(format!("it matches {} topic{plural}: {}{more}{own}", self.topics.len(), named.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pattern: &str, topics: &[&str], ignored: &str) -> String {
        let topics: Vec<_> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let properties = [("topic.blacklist".to_owned(), ignored.to_owned())].into();
        let config = Config { dead_letter_topic: "push.dead-letter".into(), properties, ..Config::default() };
        let outputs = [("notify", "push.offline")];
        let found = matches(pattern, &topics, &outputs, &config).and_then(|matches| matches.found());
        found.unwrap_or_else(|error| format!("mistake: {error:#}"))
    }

    #[test]
    fn matching_topics_are_listed() {
        assert_eq!(said("^push.*", &["push", "push-2", "other"], ""), "it matches 2 topics: push, push-2");
        let own = said("^push", &["push", "push.dead-letter", "push.offline"], "");
        assert!(
            own.starts_with("it matches 1 topic: push; also `push.dead-letter`")
                && own.contains("`push.offline`"),
            "{own}"
        );
        assert_eq!(said("^push", &["push", "push.test"], "^push\\.test"), "it matches 1 topic: push");
        let many: Vec<_> = (10..30).map(|n| format!("push-{n}")).collect();
        let many = said("^push", &many.iter().map(String::as_str).collect::<Vec<_>>(), "");
        assert!(many.contains("20 topics: push-10") && many.ends_with("push-19 and 10 more"), "{many}");
    }

    #[test]
    fn a_pattern_that_matches_nothing_useful_is_a_mistake() {
        assert!(said("^pusj", &["push"], "").starts_with("mistake: it matches no topic; "));
        assert!(
            said("^push\\.d", &["push", "push.dead-letter"], "")
                .contains("no topic; also `push.dead-letter`")
        );
        assert!(said("^.*", &["push", "__consumer_offsets"], "").contains("`__consumer_offsets`"));
        assert!(said("^push(", &["push"], "").starts_with("mistake: cannot tell what `^push(` matches"));
    }
}
