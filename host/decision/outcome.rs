//! What a chain returns to its caller: plain data that never mentions WebAssembly.

use crate::decision::{Disposition, Guard, Overrides, PluginVersion, Verdict};
use crate::message::Message;

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
    /// One entry for each plugin that did more than pass.
    pub trail: Vec<TrailEntry>,
}

/// What one plugin did to a message, as text: for logs and `halley explain`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TrailEntry {
    /// The plugin that decided.
    pub by: PluginVersion,
    /// Such as `amended body, room`, `dropped: spam`, `failed: trapped: ...`.
    pub what: String,
}

/// What a plugin decided for one absent recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineDecision {
    /// What to do with the message.
    pub disposition: Disposition,
    /// The plugin that decided.
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
            trail: Vec::new(),
        }
    }

    /// The parts in which two outcomes for a message differ, apart from the verdict and the deciding
    /// plugin: `body`, `operation`, `recipients`, `comets`, `guards`.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let guards = |filtered: &Self| -> Vec<_> {
            filtered.guards.iter().map(|guard| (guard.key.clone(), guard.ttl)).collect()
        };
        let (one, another) = (&self.message, &other.message);
        let parts = [
            ("body", one.body != another.body),
            ("operation", one.operation != another.operation),
            ("recipients", one.audience != another.audience),
            ("comets", self.overrides != other.overrides),
            ("guards", guards(self) != guards(other)),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part).collect()
    }

    /// Adds to the trail.
    pub(crate) fn note(&mut self, by: &PluginVersion, what: String) {
        self.trail.push(TrailEntry { by: by.clone(), what });
    }
}
