//! The `filter` hook: what passes, and in what form.

use std::time::Duration;

pub use crate::bindings::filter::exports::halley::policy::filter::{Amendment, Once, Verdict};
use crate::{Message, Policy, Source};

/// Decides what passes, and in what form. Called once per batch, before any lookup.
///
/// Most policies implement [`filter`](Filter::filter) only. Policies that need the topic, or compare
/// several messages, implement [`filter_all`](Filter::filter_all).
///
/// ```
/// use halley_plugin::prelude::*;
///
/// /// At most one chat message per room in `seconds`; gifts (operation 7) are spared.
/// #[derive(Deserialize)]
/// struct Calm {
///     seconds: u64,
/// }
///
/// impl Filter for Calm {
///     fn filter(&mut self, message: &Message) -> Verdict {
///         if message.operation == 7 {
///             return Verdict::Pass;
///         }
///         Verdict::Pass.once(&message.room, Duration::from_secs(self.seconds))
///     }
/// }
///
/// halley_plugin::export!(Calm: Filter);
///
/// // In a test:
/// use halley_plugin::testing::{Harness, room};
///
/// let mut calm = Harness::<Calm>::new(serde_json::json!({ "seconds": 5 }));
/// assert!(calm.deliver(room("video_1").body("one")).is_some());
/// assert!(calm.deliver(room("video_1").body("two")).is_none());
/// calm.advance(Duration::from_secs(5));
/// assert!(calm.deliver(room("video_1").body("three")).is_some());
/// ```
pub trait Filter: Policy {
    /// The verdict about one message.
    fn filter(&mut self, message: &Message) -> Verdict {
        let _ = message;
        Verdict::Pass
    }

    /// The verdicts about a batch: one per message, in the same order.
    ///
    /// ```
    /// use halley_plugin::prelude::*;
    ///
    /// /// Of the likes for a room that arrive together, the last one stands for all.
    /// #[derive(Deserialize)]
    /// struct LastLike {
    ///     operation: i32,
    /// }
    ///
    /// impl Filter for LastLike {
    ///     fn filter_all(&mut self, _source: &Source, messages: &[Message]) -> Vec<Verdict> {
    ///         let is_like = |message: &Message| message.operation == self.operation;
    ///         let replaced = |at: usize| {
    ///             let later = &messages[at + 1..];
    ///             later.iter().any(|other| is_like(other) && other.room == messages[at].room)
    ///         };
    ///         let verdict = |(at, message)| match is_like(message) && replaced(at) {
    ///             true => Verdict::drop("a later like stands for it"),
    ///             false => Verdict::Pass,
    ///         };
    ///         messages.iter().enumerate().map(verdict).collect()
    ///     }
    /// }
    ///
    /// halley_plugin::export!(LastLike: Filter);
    ///
    /// // In a test:
    /// use halley_plugin::testing::{Harness, room};
    ///
    /// let mut policy = Harness::<LastLike>::new(serde_json::json!({ "operation": 8 }));
    /// let likes = ["a", "a", "b"].map(|id| room(id).operation(8));
    /// let [first, second, other] = policy.filter(likes).try_into().unwrap();
    /// assert_eq!(first, Verdict::drop("a later like stands for it"));
    /// assert_eq!([second, other], [Verdict::Pass, Verdict::Pass]);
    /// ```
    fn filter_all(&mut self, source: &Source, messages: &[Message]) -> Vec<Verdict> {
        let _ = source;
        messages.iter().map(|message| self.filter(message)).collect()
    }
}

/// Constructors of verdicts. The methods that amend can be chained: `Pass` becomes an amendment, and
/// a verdict that stops the message is unchanged.
///
/// ```
/// use halley_plugin::prelude::*;
///
/// let verdict = Verdict::amend().body("***").once("video_1:hash", Duration::from_secs(2));
/// # let Verdict::Amend(amendment) = verdict else { panic!() };
/// # assert_eq!(amendment.body.as_deref(), Some(&b"***"[..]));
/// # assert_eq!(amendment.once[0].ttl_ms, 2000);
/// ```
impl Verdict {
    /// Drops the message; the reason is logged and counted.
    pub fn drop(reason: impl Into<String>) -> Self {
        Self::Drop(reason.into())
    }

    /// Sends it to the dead-letter topic, with the reason.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter(reason.into())
    }

    /// An amendment without changes.
    pub fn amend() -> Self {
        Self::Amend(Amendment::default())
    }

    /// Replaces the body.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        self.with(|amendment| amendment.body = Some(body.into()))
    }

    /// Replaces the operation.
    pub fn operation(self, operation: i32) -> Self {
        self.with(|amendment| amendment.operation = Some(operation))
    }

    /// Sends it to another room; only for messages to a room.
    pub fn room(self, room: impl Into<String>) -> Self {
        self.with(|amendment| amendment.room = Some(room.into()))
    }

    /// Replaces the keys; only for messages to keys.
    pub fn keys<K: Into<String>>(self, keys: impl IntoIterator<Item = K>) -> Self {
        self.with(|amendment| amendment.keys = Some(strings(keys)))
    }

    /// Delivers through these comets and no others.
    pub fn only<C: Into<String>>(self, comets: impl IntoIterator<Item = C>) -> Self {
        self.with(|amendment| amendment.only = Some(strings(comets)))
    }

    /// Does not deliver through these comets.
    pub fn except<C: Into<String>>(self, comets: impl IntoIterator<Item = C>) -> Self {
        self.with(|amendment| amendment.except.extend(strings(comets)))
    }

    /// Delivers through these comets as well.
    pub fn also<C: Into<String>>(self, comets: impl IntoIterator<Item = C>) -> Self {
        self.with(|amendment| amendment.also.extend(strings(comets)))
    }

    /// Passes only if no other message used `key` within `ttl`: a guard, which the gateway claims in
    /// Redis for the whole batch at once. A redelivery of the message that claimed it is not stopped.
    /// The key is at most 512 bytes and belongs to this plugin; a `ttl` below a millisecond counts as
    /// one.
    pub fn once(self, key: impl Into<String>, ttl: Duration) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        self.with(|amendment| amendment.once.push(Once { key: key.into(), ttl_ms }))
    }

    fn with(mut self, change: impl FnOnce(&mut Amendment)) -> Self {
        if matches!(self, Self::Pass) {
            self = Self::amend();
        }
        if let Self::Amend(amendment) = &mut self {
            change(amendment);
        }
        self
    }
}

impl From<Amendment> for Verdict {
    fn from(amendment: Amendment) -> Self {
        Self::Amend(amendment)
    }
}

fn strings<S: Into<String>>(items: impl IntoIterator<Item = S>) -> Vec<String> {
    items.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amendments_add_up() {
        let verdict =
            Verdict::Pass.room("b").only(["x:1"]).except(["y:1"]).except(["z:1"]).once("k", Duration::ZERO);
        let expected = Amendment {
            room: Some("b".into()),
            only: Some(vec!["x:1".into()]),
            except: vec!["y:1".into(), "z:1".into()],
            once: vec![Once { key: "k".into(), ttl_ms: 1 }],
            ..Amendment::default()
        };
        assert_eq!(verdict, Verdict::Amend(expected));
    }

    #[test]
    fn what_is_stopped_is_not_amended() {
        assert_eq!(Verdict::drop("spam").body("x"), Verdict::Drop("spam".into()));
    }
}
