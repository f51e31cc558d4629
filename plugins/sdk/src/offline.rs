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
