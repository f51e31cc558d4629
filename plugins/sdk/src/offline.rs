//! The `offline` hook: what happens for recipients who are away.

use std::time::Duration;

pub use crate::bindings::offline::exports::halley::policy::offline::{Absent, Cause, Disposition};
use crate::{Message, Policy, Source};

/// Decides what happens for recipients who are away. Called when a message has any.
///
/// Most policies write [`decide`](Offline::decide) only; whoever needs the topic, or weighs
/// all the absent of one message together, writes [`decide_all`](Offline::decide_all).
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
    /// What becomes of the message for one recipient. [`Disposition::Pass`] leaves it to the
    /// next policy, and after the last one to `[offline] default`.
    fn decide(&mut self, message: &Message, absent: &Absent) -> Disposition {
        let _ = (message, absent);
        Disposition::Pass
    }

    /// What becomes of the message for each absent recipient: one disposition for each, in
    /// the same order.
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

/// Making dispositions.
impl Disposition {
    /// Kept in the user's inbox for as long as `[offline] retention` says.
    pub fn store() -> Self {
        Self::Store(None)
    }

    /// Kept in the user's inbox for this long (whole seconds, rounded up), at most
    /// `[offline] retention`.
    pub fn store_for(retention: Duration) -> Self {
        let partial = u64::from(retention.subsec_nanos() > 0);
        Self::Store(Some(retention.as_secs().saturating_add(partial)))
    }

    /// A record for this channel, such as `apns`, goes to the notify topic.
    pub fn notify(channel: impl Into<String>) -> Self {
        Self::Notify(channel.into())
    }
}
