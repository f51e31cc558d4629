//! The `retention` hook: what is kept in addition to being delivered.

use crate::bindings::filter_columns::exports::halley::policy::filter_columns;
use crate::bindings::retention::exports::halley::policy::retention as columns;
use crate::{Message, Policy, Source};

/// Decides which messages are kept in addition to being delivered. Called once per batch, after the
/// filters of all policies, with the messages that they let pass, as they left them.
///
/// Most policies implement [`retain`](Retention::retain) only. Policies that need the topic, or compare
/// several messages, implement [`retain_all`](Retention::retain_all). Gateways of versions before 0.1.2
/// do not call this.
///
/// ```
/// use halley_plugin::prelude::*;
///
/// /// Calls ring until they are answered; what is pinned stays in the room's history.
/// #[derive(Deserialize)]
/// struct Important {
///     calls: i32,
///     pins: i32,
/// }
///
/// impl Retention for Important {
///     fn retain(&mut self, message: &Message) -> Keep {
///         match message.operation {
///             call if call == self.calls => Keep::NOTHING.inbox(),
///             pin if pin == self.pins => Keep::NOTHING.history(),
///             _ => Keep::NOTHING,
///         }
///     }
/// }
///
/// halley_plugin::export!(Important: Retention);
///
/// // In a test:
/// use halley_plugin::testing::{Harness, keys, room};
///
/// let mut policy = Harness::<Important>::new(serde_json::json!({ "calls": 9, "pins": 5 }));
/// let kept = policy.retain([keys(["ann"]).operation(9), room("video_1").operation(5), room("video_1")]);
/// assert_eq!(kept, [Keep::NOTHING.inbox(), Keep::NOTHING.history(), Keep::NOTHING]);
/// ```
pub trait Retention: Policy {
    /// Where one message is kept.
    fn retain(&mut self, message: &Message) -> Keep {
        let _ = message;
        Keep::NOTHING
    }

    /// Where the messages of a batch are kept: one element per message, in the same order.
    fn retain_all(&mut self, source: &Source, messages: &[Message]) -> Vec<Keep> {
        let _ = source;
        messages.iter().map(|message| self.retain(message)).collect()
    }
}

/// Where a message is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// In the inbox of every recipient, also of users who are online: each device replays the message
    /// until it has acknowledged it.
    pub inbox: bool,
    /// In the history of the room; only messages to rooms have one.
    pub history: bool,
}

impl Keep {
    /// Nowhere; the message is only delivered.
    pub const NOTHING: Self = Self { inbox: false, history: false };

    /// Also in the inbox of every recipient.
    #[must_use]
    pub const fn inbox(self) -> Self {
        Self { inbox: true, ..self }
    }

    /// Also in the history of the room.
    #[must_use]
    pub const fn history(self) -> Self {
        Self { history: true, ..self }
    }
}

/// The batch in the type of `filter-columns`, which is the same but belongs to another interface.
pub(crate) fn batch(batch: columns::Batch) -> filter_columns::Batch {
    let columns::Batch { rows, texts, blobs } = batch;
    let row = |row: columns::Row| {
        let columns::Row { offset, timestamp_ms, audience, operation, speed, keys, headers } = row;
        filter_columns::Row { offset, timestamp_ms, audience, operation, speed, keys, headers }
    };
    filter_columns::Batch {
        rows: rows.into_iter().map(row).collect(),
        texts: filter_columns::Texts { joined: texts.joined, ends: texts.ends },
        blobs: filter_columns::Blobs { joined: blobs.joined, ends: blobs.ends },
    }
}

/// The answer in the contract's type.
pub(crate) fn kept(kept: &[Keep]) -> columns::Kept {
    let indexes = |is_kept: fn(&Keep) -> bool| {
        (0..).zip(kept).filter(|(_, keep)| is_kept(keep)).map(|(at, _)| at).collect()
    };
    columns::Kept { inbox: indexes(|keep| keep.inbox), history: indexes(|keep| keep.history) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_messages_are_named_by_index() {
        let kept = kept(&[Keep::NOTHING, Keep::NOTHING.inbox(), Keep::NOTHING.inbox().history()]);
        assert_eq!((kept.inbox, kept.history), (vec![1, 2], vec![2]));
    }
}
