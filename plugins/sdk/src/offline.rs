//! The `offline` hook: what happens for absent recipients.

use std::time::Duration;

pub use crate::bindings::offline::exports::halley::policy::offline::{Absent, Cause, Disposition};
use crate::{Message, Policy, Source};

/// Decides what happens for absent recipients. Called when a message has any.
///
/// Most policies implement [`decide`](Offline::decide) only. Policies that need the topic, or
/// consider all absent recipients of a message together, implement
/// [`decide_all`](Offline::decide_all).
///
/// ```
/// use halley_plugin::prelude::*;
///
/// /// Private messages wake the phone; what is said in rooms is kept for a day.
/// struct Wake;
///
/// impl Policy for Wake {
///     type Config = NoConfig;
///
///     fn new(_: NoConfig) -> Result<Self, String> {
///         Ok(Self)
///     }
/// }
///
/// impl Offline for Wake {
///     fn decide(&mut self, message: &Message, absent: &Absent) -> Disposition {
///         match (message.audience, absent.cause) {
///             (Audience::Keys, Cause::NotOnline | Cause::NoConnection) => Disposition::notify("apns"),
///             (Audience::Room, _) => Disposition::store_for(Duration::from_secs(86_400)),
///             _ => Disposition::Pass,
///         }
///     }
/// }
///
/// halley_plugin::export!(Wake: Offline);
///
/// // In a test:
/// use halley_plugin::testing::{Harness, absent, keys};
///
/// let mut wake = Harness::<Wake>::new(serde_json::json!({}));
/// let decided = wake.decide(keys(["ann"]).body("hi"), &[absent("ann", Cause::NotOnline)]);
/// assert_eq!(decided, [Disposition::notify("apns")]);
/// ```
pub trait Offline: Policy {
    /// The disposition for one recipient. [`Disposition::Pass`] leaves it to the next policy, and
    /// after the last one to `[offline] default`.
    fn decide(&mut self, message: &Message, absent: &Absent) -> Disposition {
        let _ = (message, absent);
        Disposition::Pass
    }

    /// The dispositions for all absent recipients of a message: one per recipient, in the same order.
    ///
    /// ```
    /// use halley_plugin::prelude::*;
    ///
    /// /// A message that reached nobody of a small group wakes them; of a large one it is kept.
    /// #[derive(Deserialize)]
    /// struct SmallGroups {
    ///     at_most: usize,
    /// }
    ///
    /// impl Offline for SmallGroups {
    ///     fn decide_all(&mut self, _: &Source, _: &Message, absent: &[Absent]) -> Vec<Disposition> {
    ///         let small = absent.len() <= self.at_most;
    ///         let each = || if small { Disposition::notify("apns") } else { Disposition::store() };
    ///         absent.iter().map(|_| each()).collect()
    ///     }
    /// }
    ///
    /// halley_plugin::export!(SmallGroups: Offline);
    ///
    /// // In a test:
    /// use halley_plugin::testing::{Harness, absent, keys};
    ///
    /// let mut policy = Harness::<SmallGroups>::new(serde_json::json!({ "at_most": 1 }));
    /// let [ann, bob] = ["ann", "bob"].map(|user| absent(user, Cause::NotOnline));
    /// let one = policy.decide(keys(["ann"]), &[ann.clone()]);
    /// assert_eq!(one, [Disposition::notify("apns")]);
    /// assert_eq!(policy.decide(keys(["ann", "bob"]), &[ann, bob]), [Disposition::store(), Disposition::store()]);
    /// ```
    fn decide_all(&mut self, source: &Source, message: &Message, absent: &[Absent]) -> Vec<Disposition> {
        let _ = source;
        absent.iter().map(|one| self.decide(message, one)).collect()
    }
}

/// Constructors of dispositions.
impl Disposition {
    /// Stores the message in the user's inbox, with `[offline] retention`.
    pub fn store() -> Self {
        Self::Store(None)
    }

    /// Stores the message in the user's inbox for this time (whole seconds, rounded up), at most
    /// `[offline] retention`.
    pub fn store_for(retention: Duration) -> Self {
        let partial = u64::from(retention.subsec_nanos() > 0);
        Self::Store(Some(retention.as_secs().saturating_add(partial)))
    }

    /// Sends a record for this channel, such as `apns`, to the notify topic.
    pub fn notify(channel: impl Into<String>) -> Self {
        Self::Notify(channel.into())
    }
}
