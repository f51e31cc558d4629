//! The comets that did not accept a message, and why. Pure.
//!
//! A BROADCAST may fail at thousands of comets, each with its own error text. The text is bounded
//! as it is built: the first few comets with their reasons, and how many more.

use crate::dead_letter::{DeadLetterReason, Stage};
use crate::decision::TrailEntry;
use crate::message::CometAddr;
use crate::telemetry::escape::cut;

/// How many comets, and how many decisions, are named with their texts.
const NAMED: usize = 5;
/// The most characters of one of these texts.
const LONGEST: usize = 150;

/// The comets, and the first few reasons.
#[derive(Debug, Default)]
pub(super) struct FailedComets {
    comets: Vec<CometAddr>,
    why: Vec<String>,
}

impl FailedComets {
    /// Adds a comet that did not accept the message.
    pub(super) fn add(&mut self, comet: CometAddr, why: &str) {
        if self.why.len() < NAMED {
            self.why.push(format!("{comet}: {}", cut(why, LONGEST)));
        }
        self.comets.push(comet);
    }

    /// Adds the comets of `other`.
    pub(super) fn append(&mut self, mut other: Self) {
        other.why.truncate(NAMED.saturating_sub(self.why.len()));
        self.why.append(&mut other.why);
        self.comets.append(&mut other.comets);
    }

    /// How many comets.
    pub(super) fn len(&self) -> usize {
        self.comets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.comets.is_empty()
    }

    /// The reason of the dead letter, with what policies did to the message, as they may be the cause.
    pub(super) fn into_reason(self, trail: &[TrailEntry]) -> DeadLetterReason {
        let mut text = self.why.join("; ");
        more(&mut text, self.comets.len() - self.why.len(), "comets");
        if !trail.is_empty() {
            let told = trail.iter().take(NAMED);
            let told: Vec<_> = told
                .map(|entry| format!("{}: {}", entry.by, cut(&entry.effect.to_string(), LONGEST)))
                .collect();
            let mut decisions = told.join("; ");
            more(&mut decisions, trail.len() - told.len(), "decisions");
            text = format!("{text} (policies: {decisions})");
        }
        let mut reason = DeadLetterReason::new(Stage::Deliver, text);
        reason.comets = self.comets;
        reason
    }
}

fn more(text: &mut String, count: usize, what: &str) {
    if count > 0 {
        text.push_str(&format!("; and {count} more {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Effect, PluginVersion};

    #[test]
    fn thousands_of_failed_comets_make_a_short_reason() {
        let mut failed_comets = FailedComets::default();
        for n in 0..4_096 {
            failed_comets
                .add(format!("10.0.{}.{}:50051", n / 256, n % 256).into(), &"no answer ".repeat(1_000));
        }
        assert_eq!((failed_comets.len(), failed_comets.is_empty()), (4_096, false));
        let by = PluginVersion { name: "spam".into(), hash: "0a1b".into() };
        let decision = TrailEntry { by, effect: Effect::Dropped { reason: "spam ".repeat(1_000) } };
        let reason = failed_comets.into_reason(&vec![decision; 100]);
        assert!(reason.text.starts_with("10.0.0.0:50051: no answer "), "{}", reason.text);
        assert!(reason.text.contains("; and 4091 more comets (policies: spam@0a1b: "), "{}", reason.text);
        assert!(reason.text.chars().count() <= 1_000, "{}", reason.text.len());
        assert_eq!(reason.comets.len(), 4_096);
    }

    #[test]
    fn a_few_failed_comets_are_all_named() {
        let mut failed_comets = FailedComets::default();
        failed_comets.add("a:1".into(), "refused");
        let mut others = FailedComets::default();
        others.add("b:1".into(), "away");
        failed_comets.append(others);
        let reason = failed_comets.into_reason(&[]);
        assert_eq!(reason.text, "a:1: refused; b:1: away");
        assert_eq!(reason.comets, ["a:1".into(), "b:1".into()]);
    }
}
