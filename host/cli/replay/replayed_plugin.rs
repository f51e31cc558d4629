//! Replays messages through one version of a policy, and compares decisions.

use prometheus_client::registry::Registry;

use crate::artifact::PluginSource;
use crate::decision::{Effect, FilteredMessage, MessagePart, PluginVersion};
use crate::message::Message;
use crate::policy::{Chain, Fraction, OnError, PluginConfig, Policies, QuarantineAction, StateScope};
use crate::telemetry::label_enum;
use crate::wasm::{self, RuntimeConfig};

/// A plugin with its own state.
pub(super) struct ReplayedPlugin {
    chain: Chain,
    version: PluginVersion,
}

label_enum! {
    /// The kind of a decision.
    #[derive(PartialOrd, Ord, serde::Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub(super) enum DecisionKind {
        Passed = "passed",
        Amended = "amended",
        /// Passed unchanged, and kept.
        Retained = "retained",
        Dropped = "dropped",
        DeadLettered = "dead-lettered",
        /// The plugin failed; its `on_error` would decide.
        Failed = "failed",
    }
}

/// One message's decision.
pub(super) struct ReplayDecision {
    pub(super) kind: DecisionKind,
    /// The policy's reason, the amended parts, or the failure; empty for `passed`.
    pub(super) why: String,
    pub(super) filtered: FilteredMessage,
}

impl ReplayedPlugin {
    /// Loads this file with these settings, into a runtime with this configuration.
    pub(super) fn new(
        settings: &PluginConfig,
        file: PluginSource,
        runtime: RuntimeConfig,
    ) -> anyhow::Result<Self> {
        let mut config = PluginConfig { path: file.clone(), ..settings.clone() };
        // A pin applies to the configured file, and a candidate is not what is replayed.
        config.sha256 = None;
        config.rollout = None;
        // Failures must be visible, and nothing may stall, whatever `on_error` says.
        config.on_error = OnError::DeadLetter.into();
        config.quarantine.action = QuarantineAction::Never;
        // The budget must not skip messages.
        config.time_budget = Fraction(1.0);
        config.state = StateScope::Local;
        let policies = Policies::start(wasm::Runtime::with(&mut Registry::default(), runtime)?, &[config])?;
        let set = policies.current();
        anyhow::ensure!(
            set.sees_batches(),
            "{} exports neither `filter` nor `retention`; only their decisions can be replayed",
            file
        );
        Ok(Self { version: set.versions()[0].clone(), chain: set.chain() })
    }

    pub(super) fn version(&self) -> &PluginVersion {
        &self.version
    }

    /// Decides about messages of one partition.
    pub(super) fn decide(&mut self, batch: &[Message]) -> anyhow::Result<Vec<ReplayDecision>> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let origin = first.record.origin.clone();
        let filtered = self.chain.filter(&origin.topic, origin.partition, batch.to_vec())?;
        Ok(filtered.into_iter().map(decided).collect())
    }
}

fn decided(filtered: FilteredMessage) -> ReplayDecision {
    // Filters decide nothing about absent recipients.
    let (kind, why) = match filtered.effect_after(0) {
        Effect::Passed | Effect::DecidedOffline { .. } => (DecisionKind::Passed, String::new()),
        Effect::Amended(parts) if filtered.retention.is_empty() => {
            (DecisionKind::Amended, MessagePart::names(parts))
        }
        Effect::Amended(parts) => {
            (DecisionKind::Amended, format!("{}, retention", MessagePart::names(parts)))
        }
        Effect::Retained(retention) => (DecisionKind::Retained, retention.names().join(", ")),
        Effect::Dropped { reason } => (DecisionKind::Dropped, reason.clone()),
        Effect::DeadLettered { reason } => (DecisionKind::DeadLettered, reason.clone()),
        Effect::Failed { text, .. } => (DecisionKind::Failed, text.to_string()),
    };
    ReplayDecision { kind, why, filtered }
}

/// How one decision differs from another, such as `passed -> dropped`; `None` if it does not.
pub(super) fn change(before: &ReplayDecision, after: &ReplayDecision) -> Option<String> {
    if before.kind != after.kind {
        return Some(format!("{} -> {}", before.kind.as_str(), after.kind.as_str()));
    }
    match after.kind {
        DecisionKind::Passed => None,
        DecisionKind::Failed => None,
        DecisionKind::Dropped | DecisionKind::DeadLettered => {
            (before.why != after.why).then(|| format!("{} for another reason", after.kind.as_str()))
        }
        DecisionKind::Retained => (before.why != after.why)
            .then(|| format!("retained differently: {} -> {}", before.why, after.why)),
        DecisionKind::Amended => {
            let parts = before.filtered.differing(&after.filtered);
            (!parts.is_empty()).then(|| format!("amended differently: {}", MessagePart::names(&parts)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decision::{FailureKind, OnError, Retention};
    use crate::message::{Audience, Origin, Record, encode};

    fn message() -> Message {
        let record = Record {
            origin: Origin { topic: "push".into(), partition: 0, offset: 1 },
            timestamp_ms: None,
            key: None,
            value: Some(encode(&Audience::Room("lobby".into()), 4, b"hello")),
            headers: Vec::new(),
            trusted: false,
        };
        Message::decode(Arc::new(record)).unwrap()
    }

    fn with(hash: &str, effect: Effect, body: &'static str) -> ReplayDecision {
        let mut filtered = FilteredMessage::untouched(message());
        filtered.message.body = body.into();
        if effect != Effect::Passed {
            filtered.note(&PluginVersion { name: "p".into(), hash: hash.into() }, effect);
        }
        decided(filtered)
    }

    #[test]
    fn decisions_are_told_apart_and_compared() {
        let drop = |reason: &str, hash| with(hash, Effect::Dropped { reason: reason.into() }, "hello");
        let passed = || with("a", Effect::Passed, "hello");
        let amended = |body| with("a", Effect::Amended(vec![MessagePart::Body]), body);
        let trap = "trapped: no; dead-lettered";
        let (kind, then) = (FailureKind::Trap, OnError::DeadLetter);
        let failed = with("a", Effect::Failed { kind, text: trap.into(), then }, "hello");
        assert_eq!((failed.kind, &*failed.why), (DecisionKind::Failed, trap), "no part of it is cut off");
        assert_eq!((amended("x").kind, &*amended("x").why), (DecisionKind::Amended, "body"));

        assert_eq!(change(&passed(), &passed()), None);
        assert_eq!(change(&passed(), &drop("spam", "a")), Some("passed -> dropped".into()));
        assert_eq!(change(&drop("spam", "a"), &drop("spam", "b")), None, "another version, the same word");
        assert_eq!(change(&drop("spam", "a"), &drop("ham", "a")), Some("dropped for another reason".into()));
        let retained = |retention| with("a", Effect::Retained(retention), "hello");
        let (inbox, both) =
            (Retention { inbox: true, history: false }, Retention { inbox: true, history: true });
        assert_eq!(change(&passed(), &retained(inbox)), Some("passed -> retained".into()));
        assert_eq!(change(&retained(both), &retained(both)), None);
        let differently = "retained differently: inbox, history -> inbox";
        assert_eq!(change(&retained(both), &retained(inbox)), Some(differently.into()));
        assert_eq!(change(&amended("x"), &amended("x")), None);
        assert_eq!(change(&amended("x"), &amended("y")), Some("amended differently: body".into()));
    }
}
