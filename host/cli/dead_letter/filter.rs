//! Selects dead letters.

use std::time::SystemTime;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use crate::dead_letter::{Filter, Stage};
use crate::time;

/// Selects dead letters: those that match every filter.
#[derive(Debug, clap::Args)]
pub(super) struct FilterArgs {
    /// Only those of this stage.
    #[arg(long, value_parser = stage_parser())]
    pub(super) stage: Option<Stage>,
    /// Only letters that this plugin caused: `name` or `name@version`.
    #[arg(long, value_name = "NAME")]
    pub(super) plugin: Option<String>,
    /// Only letters from this topic.
    #[arg(long, value_name = "ORIGIN")]
    pub(super) topic: Option<String>,
    /// Only letters whose reason contains this text, ignoring case.
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Only messages produced at or after this time: `2026-01-31T12:00:00Z`, `2026-01-31`, or
    /// an age such as `90m` or `2days`.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(super) since: Option<SystemTime>,
    /// Only messages produced before this time.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(super) until: Option<SystemTime>,
    /// At most N, counted from the first match.
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<u64>,
}

impl FilterArgs {
    pub(super) fn filter(&self) -> Filter {
        Filter {
            stage: self.stage,
            plugin: self.plugin.clone(),
            topic: self.topic.clone(),
            reason: self.reason.clone(),
            since_ms: self.since.map(time::to_record_ms),
            until_ms: self.until.map(time::to_record_ms),
        }
    }
}

/// The error for a missing dead-letter topic.
pub(super) fn no_topic(topic: &str) -> String {
    format!(
        "topic `{topic}` not found: no dead letter was written yet, or `[kafka] dead_letter_topic` names another topic"
    )
}

fn stage_parser() -> impl clap::builder::TypedValueParser<Value = Stage> {
    let named = |name: String| Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
    PossibleValuesParser::new(Stage::ALL.map(Stage::as_str))
        .try_map(move |name| named(name).ok_or("unknown stage"))
}
