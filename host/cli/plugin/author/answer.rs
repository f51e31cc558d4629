//! A policy's answer: how it ended, or statements that people read and that can be compared.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::decision::{Disposition, Verdict};
use crate::decision::{FilteredMessage, OfflineDecision};
use crate::membership::{CurrentPlacement, Grouping};
use crate::message::{Audience, CometAddr, Message};
use crate::telemetry::label_enum;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PolicyAnswer {
    /// The message goes no further, for this reason; or the plugin failed.
    Ended(EndKind, String),
    /// Everything else, one line per statement.
    Statements(Vec<String>),
}

label_enum! {
    /// How a message ended.
    pub(super) enum EndKind {
        Dropped = "drop",
        DeadLettered = "dead-letter",
        Failed = "fail",
    }
}

impl PolicyAnswer {
    pub(super) fn line(text: impl Into<String>) -> Self {
        Self::Statements(vec![text.into()])
    }

    /// The plugin failed.
    pub(super) fn failed(why: impl std::fmt::Display) -> Self {
        Self::Ended(EndKind::Failed, why.to_string())
    }

    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Self::Ended(EndKind::Failed, _))
    }

    /// The answer as people read it.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::Ended(kind, reason) => vec![format!("{}: {reason}", kind.as_str())],
            Self::Statements(lines) => lines.clone(),
        }
    }

    /// The outcome of a message.
    pub(super) fn of_filter(asked: &Message, filtered: &FilteredMessage) -> Self {
        match &filtered.verdict {
            Verdict::Drop { reason, .. } => return Self::Ended(EndKind::Dropped, reason.to_string()),
            Verdict::DeadLetter { reason, .. } => {
                return Self::Ended(EndKind::DeadLettered, reason.to_string());
            }
            Verdict::Pass => {}
        }
        let message = &filtered.message;
        let mut lines = Vec::new();
        if message.body != asked.body {
            lines.push(body(&message.body));
        }
        if message.operation != asked.operation {
            lines.push(operation(message.operation));
        }
        match &message.audience {
            Audience::Room(now) if message.audience != asked.audience => lines.push(room(now.as_str())),
            Audience::Keys { keys: now, .. } if message.audience != asked.audience => {
                lines.push(names("keys", now.iter()));
            }
            _ => {}
        }
        let overrides = &filtered.overrides;
        lines.extend(overrides.only.iter().map(|only| comets("only", only)));
        for (word, some) in [("except", &overrides.except), ("also", &overrides.also)] {
            if !some.is_empty() {
                lines.push(comets(word, some));
            }
        }
        lines.extend(filtered.guards.iter().map(|guard| {
            // The gateway prefixes keys with the plugin's name.
            let own = guard.key.strip_prefix(&*guard.by.name).and_then(|key| key.strip_prefix(':'));
            once(own.unwrap_or(&guard.key), guard.ttl)
        }));
        lines.extend(keep(&filtered.retention.names()));
        if lines.is_empty() { Self::line("pass") } else { Self::Statements(lines) }
    }

    /// The disposition of a message for an absent user.
    pub(super) fn of_offline(decided: Option<&OfflineDecision>) -> Self {
        Self::line(match decided.map(|decided| &decided.disposition) {
            None => "pass".to_owned(),
            Some(Disposition::Drop) => "drop".to_owned(),
            Some(Disposition::Store { retention: None }) => "store".to_owned(),
            Some(Disposition::Store { retention: Some(time) }) => store_for(*time),
            Some(Disposition::Notify { channel }) => notify(channel),
        })
    }

    /// The connections that were moved.
    pub(super) fn of_grouping(grouping: &Grouping) -> Self {
        let mut lines = Vec::new();
        for (member, place) in grouping.members() {
            let before = &grouping.membership().comets[member.comet as usize];
            match place {
                CurrentPlacement::Skipped => lines.push(moved(member.id.as_str(), "skip")),
                CurrentPlacement::Offline => lines.push(moved(member.id.as_str(), "offline")),
                CurrentPlacement::At(comet) => {
                    let now = &grouping.comets()[comet as usize];
                    if now != before {
                        lines.push(moved(member.id.as_str(), now.as_str()));
                    }
                }
            }
        }
        lines.sort();
        if lines.is_empty() { Self::line("stays") } else { Self::Statements(lines) }
    }
}

/// The lines of an answer; expectations of cases are built from the same functions.
pub(super) fn body(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("body: {text:?}"),
        Err(_) => format!("body_base64: {}", STANDARD.encode(bytes)),
    }
}

pub(super) fn operation(number: i32) -> String {
    format!("operation: {number}")
}

pub(super) fn room(id: &str) -> String {
    format!("room: {id}")
}

pub(super) fn names(what: &str, names: impl IntoIterator<Item = impl ToString>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    format!("{what}: {}", names.join(", "))
}

/// Comets in the spelling that policies and the gateway compare.
pub(super) fn comets(what: &str, comets: &[impl AsRef<str>]) -> String {
    names(what, comets.iter().map(|comet| CometAddr::from(comet.as_ref())))
}

pub(super) fn once(key: &str, ttl: Duration) -> String {
    format!("once: {key} for {}", humantime::format_duration(ttl))
}

/// Where a message is kept; `None` if nowhere.
pub(super) fn keep(places: &[&str]) -> Option<String> {
    (!places.is_empty()).then(|| names("keep", places))
}

pub(super) fn store_for(time: Duration) -> String {
    format!("store: {}", humantime::format_duration(time))
}

pub(super) fn notify(channel: &str) -> String {
    format!("notify: {channel}")
}

pub(super) fn moved(id: &str, to: &str) -> String {
    format!("{id}: {to}")
}
