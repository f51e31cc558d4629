//! What a plugin did to a message, as a type. It is converted to text only for display.

use std::sync::Arc;

use crate::decision::{PluginVersion, Retention};
use crate::telemetry::label_enum;

/// What one plugin did to one message. [`fmt::Display`] formats it for logs and `halley explain`.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
pub enum Effect {
    /// It let the message pass unchanged. A trail has no entry for this.
    #[display("passed")]
    Passed,
    /// It changed these parts.
    #[display("amended {}", MessagePart::names(_0))]
    Amended(Vec<MessagePart>),
    /// It dropped the message.
    #[display("dropped: {reason}")]
    Dropped {
        /// What the policy said.
        reason: String,
    },
    /// It dead-lettered the message.
    #[display("dead-lettered: {reason}")]
    DeadLettered {
        /// What the policy said.
        reason: String,
    },
    /// It failed on the message.
    #[display("failed: {text}; {}", then.consequence())]
    Failed {
        /// How.
        kind: FailureKind,
        /// The second half of a sentence that begins with the plugin.
        text: Arc<str>,
        /// What happened to the message because of it.
        then: OnError,
    },
    /// It keeps the message here, in addition to its delivery.
    #[display("keeps it in: {}", _0.names().join(", "))]
    Retained(Retention),
    /// It decided about absent recipients of the message.
    #[display("decided about {decided} of {absent}")]
    DecidedOffline {
        /// The number of recipients that it, or a plugin after it, decided about.
        decided: usize,
        /// The number of absent recipients.
        absent: usize,
    },
}

label_enum! {
    /// A part of a message that plugins can change.
    pub enum MessagePart {
        /// The body.
        Body = "body",
        /// The operation.
        Operation = "operation",
        /// The room.
        Room = "room",
        /// The keys.
        Keys = "keys",
        /// The room or the keys.
        Recipients = "recipients",
        /// The comets that it may take, or takes in addition.
        Comets = "comets",
        /// The guards that it must pass.
        Guards = "guards",
        /// Where it is kept in addition to its delivery.
        Retention = "retention",
    }
}

label_enum! {
    /// How a plugin failed.
    pub enum FailureKind as "kind" {
        /// It trapped.
        Trap = "trap",
        /// It exceeded its deadline.
        Deadline = "deadline",
        /// It failed after a memory allocation beyond its limit.
        Memory = "memory",
        /// It returned an invalid answer.
        BadAnswer = "bad-answer",
        /// It could not be instantiated, or `init` returned an error.
        Start = "start",
    }
}

/// What happens to a message when a plugin fails on it: it traps, exceeds its deadline or its memory
/// limit, or returns an invalid answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The message continues as if the plugin did not exist.
    #[default]
    Pass,
    /// It is not delivered.
    Drop,
    /// It goes to the dead-letter topic; the reason names plugin, version and error.
    DeadLetter,
    /// Its partition holds its records and retries, until the plugin is fixed or replaced.
    Stall,
}

/// What one plugin did to a message.
#[derive(Clone, Debug, PartialEq, Eq, derive_more::Display)]
#[display("{by}: {effect}")]
pub struct TrailEntry {
    /// The plugin.
    pub by: PluginVersion,
    /// What it did.
    pub effect: Effect,
}

impl MessagePart {
    /// The names of some parts, separated by commas.
    pub fn names(parts: &[Self]) -> String {
        let names: Vec<_> = parts.iter().map(|part| part.as_str()).collect();
        names.join(", ")
    }
}

impl OnError {
    /// The value as written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::DeadLetter => "dead-letter",
            Self::Stall => "stall",
        }
    }

    /// What happened to the message.
    fn consequence(self) -> &'static str {
        match self {
            Self::Pass => "passed on without it",
            Self::Drop => "dropped",
            Self::DeadLetter => "dead-lettered",
            Self::Stall => "its partition holds its records",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_shown_as_sentences() {
        let failed = |then| Effect::Failed { kind: FailureKind::Trap, text: "trapped: no".into(), then };
        let shown = [
            (Effect::Passed, "passed"),
            (Effect::Amended(vec![MessagePart::Body, MessagePart::Room]), "amended body, room"),
            (Effect::Dropped { reason: "spam".into() }, "dropped: spam"),
            (Effect::DeadLettered { reason: "odd".into() }, "dead-lettered: odd"),
            (failed(OnError::Pass), "failed: trapped: no; passed on without it"),
            (failed(OnError::Drop), "failed: trapped: no; dropped"),
            (failed(OnError::DeadLetter), "failed: trapped: no; dead-lettered"),
            (Effect::Retained(Retention { inbox: true, history: true }), "keeps it in: inbox, history"),
            (Effect::DecidedOffline { decided: 2, absent: 3 }, "decided about 2 of 3"),
        ];
        for (effect, words) in shown {
            assert_eq!(effect.to_string(), words);
        }
        let by = PluginVersion { name: "p".into(), hash: "0a1b".into() };
        assert_eq!(TrailEntry { by, effect: Effect::Passed }.to_string(), "p@0a1b: passed");
    }
}
