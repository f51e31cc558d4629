//! The decisions of policies, as plain data: verdicts, amendments, guards, dispositions.
//!
//! Pure. `policy` produces them from the results of plugins, with every length and index checked.
//! The pipeline and the router act on them and do not know WebAssembly.

mod effect;
mod outcome;

use std::sync::Arc;
use std::time::Duration;

use crate::message::{CometAddr, ConnectionId, NamedBy, UserId};
use crate::telemetry::label_enum;

pub use effect::{Effect, FailureKind, MessagePart, OnError, TrailEntry};
pub use outcome::{DifferenceKind, FilteredMessage, OfflineDecision, PolicyStalled};

/// The name and the content hash of a plugin, as shown in logs, metrics and dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, derive_more::Display)]
#[display("{name}@{hash}")]
pub struct PluginVersion {
    /// The name from the configuration.
    pub name: Arc<str>,
    /// The first twelve hex digits of the SHA-256 of the module.
    pub hash: Arc<str>,
}

/// What the filters decided about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It continues, perhaps amended.
    Pass,
    /// It is not delivered.
    Drop {
        /// What the policy said.
        reason: String,
        /// The plugin that caused it.
        by: PluginVersion,
    },
    /// It goes to the dead-letter topic.
    DeadLetter {
        /// What the policy said, or how it failed.
        reason: String,
        /// The plugin that caused it.
        by: PluginVersion,
    },
}

/// Restrictions and additions of policies to the comets of one message. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Only these comets.
    pub only: Option<Vec<CometAddr>>,
    /// Not these comets.
    pub except: Vec<CometAddr>,
    /// These comets in addition.
    pub also: Vec<CometAddr>,
    /// Those of `also` that come from a plugin with `comets = "any"`.
    pub trusted: Vec<CometAddr>,
}

impl Overrides {
    /// Whether they exclude comets: then it is intended if none is reached.
    pub fn restricts(&self) -> bool {
        self.only.is_some() || !self.except.is_empty()
    }

    /// Maps comets to other addresses, such as those of server names.
    pub fn map_addresses(&mut self, address_of: impl Fn(&CometAddr) -> Option<CometAddr>) {
        let only = self.only.iter_mut().flatten();
        for comet in only.chain(&mut self.except).chain(&mut self.also).chain(&mut self.trusted) {
            if let Some(address) = address_of(comet) {
                *comet = address;
            }
        }
    }

    /// Who named a comet of `also`.
    pub fn named_by(&self, comet: &CometAddr) -> NamedBy {
        if self.trusted.contains(comet) { NamedBy::TrustedPlugin } else { NamedBy::Plugin }
    }

    /// Whether a message may go through this comet.
    pub fn allow(&self, comet: &CometAddr) -> bool {
        let limited_out = self.only.as_ref().is_some_and(|only| !only.contains(comet));
        !limited_out && !self.except.contains(comet)
    }
}

/// Where a message is kept in addition to being delivered. The default is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Retention {
    /// In the inbox of every recipient, also of those who are reached, before the record is settled.
    pub inbox: bool,
    /// In the history of its room.
    pub history: bool,
}

impl Retention {
    /// Whether it is kept nowhere.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Kept wherever one of both keeps it.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { inbox: self.inbox || other.inbox, history: self.history || other.history }
    }

    /// Where it is kept, by name: `inbox`, `history`.
    pub fn names(self) -> Vec<&'static str> {
        let places = [(self.inbox, "inbox"), (self.history, "history")];
        places.into_iter().filter(|(kept, _)| *kept).map(|(_, name)| name).collect()
    }
}

/// "Pass only if the key was not used within this time."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key, prefixed with the plugin's name: plugins cannot block each other's messages.
    pub key: String,
    /// How long the key stays claimed.
    pub ttl: Duration,
    /// The plugin that asked.
    pub by: PluginVersion,
}

label_enum! {
    /// Why a recipient was not reached.
    #[derive(Default, serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum AbsenceCause {
        /// The user is not online, or a policy treats the connection as offline.
        #[default]
        NotOnline = "not-online",
        /// No connection is known for the key.
        NoConnection = "no-connection",
        /// The comet did not accept the message in time.
        CometUnreachable = "comet-unreachable",
    }
}

impl AbsenceCause {
    /// The cause with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == name)
    }
}

/// What an absent recipient's id identifies. Only users have inboxes: an inbox of a connection would
/// never be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// A user.
    #[default]
    User,
    /// A user or a closed connection: a message is stored only if a policy says so.
    Ambiguous,
    /// A connection: nothing is stored.
    Connection,
}

/// One recipient who was not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentRecipient {
    /// The user; the key or the connection id if no user is known.
    pub user: UserId,
    /// What `user` identifies.
    pub identity: IdKind,
    /// The connection, if there is one.
    pub connection: Option<ConnectionId>,
    /// Why.
    pub cause: AbsenceCause,
    /// Whether a policy treats the connection as offline although its user is online.
    pub by_policy: bool,
}

/// What happens to a message for one absent recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing is stored.
    Drop,
    /// It is stored in the user's inbox; `None` is the configured retention.
    Store {
        /// How long it is stored.
        retention: Option<Duration>,
    },
    /// A notification for this channel is written to the notify topic.
    Notify {
        /// The channel, such as `apns`.
        channel: String,
    },
}

/// One value of a plugin's shared state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateKey {
    /// The plugin's name; its versions share the state.
    pub plugin: Arc<str>,
    /// The key; other plugins may use the same key.
    pub key: String,
}

/// A change to a plugin's shared state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// What is changed.
    pub at: StateKey,
    /// The value and its time to live; `None` deletes it.
    pub value: Option<(Vec<u8>, Duration)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_allow_what_they_do_not_exclude() {
        let (a, b) = (CometAddr::from("a:1"), CometAddr::from("b:1"));
        assert!(Overrides::default().allow(&a));
        let only_a = Overrides { only: Some(vec![a.clone()]), ..Default::default() };
        assert!(only_a.allow(&a) && !only_a.allow(&b));
        let both = Overrides { except: vec![a.clone()], ..only_a };
        assert!(!both.allow(&a) && !both.allow(&b));
        let nobody = Overrides { only: Some(Vec::new()), ..Default::default() };
        assert!(!nobody.allow(&a));
    }
}
