//! What a chain returns to its caller: plain data that never mentions WebAssembly.

use crate::decision::{
    Disposition, Effect, FailureKind, Guard, MessagePart, Overrides, PluginVersion, Retention, TrailEntry,
    Verdict,
};
use crate::message::Message;
use crate::telemetry::label_enum;

/// What the filters decided about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilteredMessage {
    /// The message as amended.
    pub message: Message,
    /// Whether it passes.
    pub verdict: Verdict,
    /// Which comets receive it.
    pub overrides: Overrides,
    /// The guards that it must pass.
    pub guards: Vec<Guard>,
    /// Where it is kept in addition to its delivery, as policies say. `[offline] always_store` and
    /// `[history] rooms` may keep it as well.
    pub retention: Retention,
    /// One entry for each plugin that did more than pass.
    pub trail: Vec<TrailEntry>,
}

label_enum! {
    /// How two versions of a plugin differ on a message.
    #[derive(serde::Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum DifferenceKind as "kind" {
        /// One lets it pass and the other does not, or they stop it differently.
        Verdict = "verdict",
        /// They change its body, its operation or its recipients differently.
        Message = "message",
        /// They allow or add different comets.
        Comets = "comets",
        /// They ask for different guards.
        Guards = "guards",
        /// They keep it in different places.
        Retention = "retention",
        /// One fails.
        Failed = "failed",
    }
}

/// What a plugin decided for one absent recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineDecision {
    /// What to do with the message.
    pub disposition: Disposition,
    /// The plugin that caused it.
    pub by: PluginVersion,
}

/// A plugin failed that must not be bypassed (`on_error = "stall"`, or no instance could be started).
/// Nothing was decided. The caller retries, with the set that is active then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "plugin {plugin} {error}; its partition holds its records (on_error = \"stall\") until it is mended or replaced"
)]
pub struct PolicyStalled {
    /// The plugin that failed.
    pub plugin: PluginVersion,
    /// How.
    pub kind: FailureKind,
    /// The second half of a sentence that begins with the plugin.
    pub error: String,
}

impl FilteredMessage {
    /// A message that no filter has seen.
    pub fn untouched(message: Message) -> Self {
        Self {
            message,
            verdict: Verdict::Pass,
            overrides: Overrides::default(),
            guards: Vec::new(),
            retention: Retention::default(),
            trail: Vec::new(),
        }
    }

    /// The parts in which two outcomes for a message differ, apart from the verdict and the deciding
    /// plugin.
    pub fn differing(&self, other: &Self) -> Vec<MessagePart> {
        let guards = |filtered: &Self| -> Vec<_> {
            filtered.guards.iter().map(|guard| (guard.key.clone(), guard.ttl)).collect()
        };
        let (one, another) = (&self.message, &other.message);
        let parts = [
            (MessagePart::Body, one.body != another.body),
            (MessagePart::Operation, one.operation != another.operation),
            (MessagePart::Recipients, one.audience != another.audience),
            (MessagePart::Comets, self.overrides != other.overrides),
            (MessagePart::Guards, guards(self) != guards(other)),
            (MessagePart::Retention, self.retention != other.retention),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part).collect()
    }

    /// What the last plugin did to the message. The first `earlier` entries of the trail are of the
    /// plugins before it. That it keeps the message counts if it did nothing else.
    pub fn effect_after(&self, earlier: usize) -> &Effect {
        let own = || self.trail.iter().skip(earlier).rev().map(|entry| &entry.effect);
        let other = own().find(|effect| !matches!(effect, Effect::Retained(_)));
        other.or_else(|| own().next()).unwrap_or(&Effect::Passed)
    }

    /// Adds to the trail.
    pub(crate) fn note(&mut self, by: &PluginVersion, effect: Effect) {
        self.trail.push(TrailEntry { by: by.clone(), effect });
    }
}
