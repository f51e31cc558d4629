//! The findings of a replay, as counts. Their size does not grow with the traffic.

use std::collections::BTreeMap;

use crate::cli::replay::replayed_plugin::{DecisionKind, ReplayDecision, change};
use crate::cli::replay::traffic::SkippedRecord;
use crate::decision::PluginVersion;

/// The maximum number of reasons of one kind that are counted separately.
const REASONS: usize = 100;
/// How many characters distinguish reasons.
const REASON: usize = 120;
/// Where further reasons are counted.
const OTHERS: &str = "(other reasons)";

/// Everything that is reported at the end.
pub(super) struct Findings {
    pub(super) topic: String,
    pub(super) version: PluginVersion,
    pub(super) against_version: Option<PluginVersion>,
    /// Records in the time range.
    pub(super) records: u64,
    /// Those that no policy sees, by kind.
    pub(super) skipped: BTreeMap<SkippedRecord, u64>,
    pub(super) candidate: Decisions,
    pub(super) against: Decisions,
    /// Messages that are decided differently, of all kinds.
    pub(super) changed: u64,
    pub(super) changes: BTreeMap<String, u64>,
    pub(super) examples: Vec<ChangedMessage>,
    wanted_examples: usize,
}

/// Messages by kind and reason.
#[derive(Default)]
pub(super) struct Decisions(pub(super) BTreeMap<DecisionKind, BTreeMap<String, u64>>);

/// One message that is decided differently.
#[derive(serde::Serialize)]
pub(super) struct ChangedMessage {
    pub(super) id: String,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) change: String,
    pub(super) before: String,
    pub(super) after: String,
    /// The beginning of the original body.
    pub(super) body: String,
}

impl Findings {
    pub(super) fn new(
        topic: &str,
        version: &PluginVersion,
        against: Option<&PluginVersion>,
        wanted_examples: usize,
    ) -> Self {
        Self {
            topic: topic.to_owned(),
            version: version.clone(),
            against_version: against.cloned(),
            records: 0,
            skipped: BTreeMap::new(),
            candidate: Decisions::default(),
            against: Decisions::default(),
            changed: 0,
            changes: BTreeMap::new(),
            examples: Vec::new(),
            wanted_examples,
        }
    }

    /// Counts a record that no policy sees.
    pub(super) fn left_out(&mut self, what: SkippedRecord) {
        self.records += 1;
        *self.skipped.entry(what).or_default() += 1;
    }

    /// Counts the decisions about a batch, and those of the version that it is compared with.
    pub(super) fn add(&mut self, candidate: Vec<ReplayDecision>, against: Option<Vec<ReplayDecision>>) {
        self.records += candidate.len() as u64;
        for after in &candidate {
            self.candidate.count(after);
        }
        for (before, after) in against.iter().flatten().zip(&candidate) {
            self.against.count(before);
            if let Some(change) = change(before, after) {
                self.changed += 1;
                if self.examples.len() < self.wanted_examples {
                    self.examples.push(ChangedMessage::of(change.clone(), before, after));
                }
                *self.changes.entry(change).or_default() += 1;
            }
        }
    }
}

impl Decisions {
    fn count(&mut self, decided: &ReplayDecision) {
        let reasons = self.0.entry(decided.kind).or_default();
        let mut why: String = decided.why.chars().take(REASON).collect();
        if !reasons.contains_key(&why) && reasons.len() >= REASONS {
            why = OTHERS.to_owned();
        }
        *reasons.entry(why).or_default() += 1;
    }

    /// The number of messages of this kind with this reason.
    pub(super) fn of(&self, kind: DecisionKind, why: &str) -> u64 {
        self.0.get(&kind).and_then(|reasons| reasons.get(why)).copied().unwrap_or_default()
    }

    /// The number of messages that the plugin failed on.
    pub(super) fn failed(&self) -> u64 {
        self.0.get(&DecisionKind::Failed).map_or(0, |reasons| reasons.values().sum())
    }
}

impl ChangedMessage {
    fn of(change: String, before: &ReplayDecision, after: &ReplayDecision) -> Self {
        let words = |decided: &ReplayDecision| match decided.why.as_str() {
            "" => decided.kind.as_str().to_owned(),
            why => format!("{}: {why}", decided.kind.as_str()),
        };
        let message = &before.filtered.message;
        // The message may have been amended; the original body is in the record.
        let came = crate::message::Message::decode(std::sync::Arc::clone(&message.record));
        let body = came.map(|message| message.body).unwrap_or_default();
        Self {
            id: message.id.to_string(),
            timestamp_ms: message.record.timestamp_ms,
            change,
            before: words(before),
            after: words(after),
            body: String::from_utf8_lossy(&body[..body.len().min(240)]).chars().take(60).collect(),
        }
    }
}
