//! Runs a policy natively, in an ordinary test: without a gateway and without WebAssembly.
//!
//! A [`Harness`] holds one policy and replaces the gateway: it creates the policy from its
//! configuration, calls its hooks, and provides its clock, log, counters and state. Build messages,
//! connections and absent recipients with [`room`], [`keys`], [`everyone`], [`connection`] and
//! [`absent`].
//!
//! ```
//! use halley_plugin::prelude::*;
//! use halley_plugin::testing::{Harness, room};
//! use serde_json::json;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Shorten {
//!     length: usize,
//! }
//!
//! impl Filter for Shorten {
//!     fn filter(&mut self, message: &Message) -> Verdict {
//!         if message.body.len() <= self.length {
//!             return Verdict::Pass;
//!         }
//!         halley_plugin::counter_add("shortened", 1);
//!         Verdict::amend().body(&message.body[..self.length])
//!     }
//! }
//!
//! let mut shorten = Harness::<Shorten>::new(json!({ "length": 3 }));
//! let verdicts = shorten.filter([room("video_1").body("abcdef"), room("video_1").body("abc")]);
//! assert_eq!(verdicts, [Verdict::amend().body("abc"), Verdict::Pass]);
//! assert_eq!(shorten.counter("shortened"), 1);
//!
//! let refused = Harness::<Shorten>::refusal(json!({ "size": 3 }));
//! assert_eq!(refused, "config.size: unknown field `size`, expected `length`");
//! ```

mod build;
pub(crate) mod stand_in;

use std::collections::HashMap;
use std::time::Duration;

pub use build::{ConnectionBuilder, MessageBuilder, absent, connection, everyone, keys, room};
use serde_json::Value;
use stand_in::Gateway;

use crate::log::Level;
use crate::policy::from_json;
use crate::room::{Connections, Room};
use crate::{Absent, Amendment, Disposition, Filter, Grouping, Keep, Message, Offline};
use crate::{Policy, Regrouping, Retention, Source, Verdict};

/// One policy with a simulated gateway.
pub struct Harness<P> {
    policy: P,
    gateway: Gateway,
    source: Source,
    /// Guard keys, with the offset of the message that claimed them and their expiry.
    claims: HashMap<String, (i64, Duration)>,
}

impl<P: Policy> Harness<P> {
    /// A policy with this configuration; use `json!({})` for a plugin without a `config` table.
    ///
    /// # Panics
    /// When the policy refuses the configuration.
    pub fn new(config: Value) -> Self {
        Self::try_new(config)
            .unwrap_or_else(|refusal| panic!("the policy refuses its configuration: {refusal}"))
    }

    /// A policy with this configuration.
    ///
    /// # Errors
    /// The reason for which the gateway would refuse the version.
    pub fn try_new(config: Value) -> Result<Self, String> {
        let gateway = Gateway::default();
        let policy = gateway.around(|| from_json(&config.to_string()))?;
        let source = Source { topic: "push".to_owned(), partition: 0 };
        Ok(Self { policy, gateway, source, claims: HashMap::new() })
    }

    /// The reason for which the policy refuses this configuration.
    ///
    /// # Panics
    /// When it accepts it.
    pub fn refusal(config: Value) -> String {
        match Self::try_new(config.clone()) {
            Ok(_) => panic!("the policy accepts the configuration {config}"),
            Err(refusal) => refusal,
        }
    }

    /// Sets the topic and partition of all further messages; initially `push`, 0.
    pub fn set_source(&mut self, topic: &str, partition: i32) {
        self.source = Source { topic: topic.to_owned(), partition };
    }

    /// Discards the instance and creates a fresh one, as the gateway may at any time. State, clock,
    /// log and counters are kept.
    ///
    /// # Panics
    /// When the policy refuses the configuration.
    pub fn restart(&mut self, config: Value) {
        let made = self.gateway.around(|| from_json(&config.to_string()));
        self.policy =
            made.unwrap_or_else(|refusal| panic!("the policy refuses its configuration: {refusal}"));
    }

    /// Sets the clock; it starts at 0 and does not advance by itself.
    pub fn set_now(&mut self, since_1970: Duration) {
        self.gateway.set_now(since_1970);
    }

    /// Advances the clock.
    pub fn advance(&mut self, by: Duration) {
        self.gateway.set_now(self.gateway.now() + by);
    }

    /// Everything that the policy has logged so far.
    pub fn logged(&self) -> Vec<(Level, String)> {
        self.gateway.logged()
    }

    /// The value of one of the policy's counters.
    pub fn counter(&self, name: &str) -> u64 {
        self.gateway.counter(name)
    }

    /// The last value of one of the policy's gauges.
    pub fn gauge(&self, name: &str) -> Option<f64> {
        self.gateway.gauge(name)
    }

    /// A value of the policy's state.
    pub fn state(&self, key: &str) -> Option<Vec<u8>> {
        self.gateway.around(|| crate::state::get(key))
    }
}

impl<P: Filter> Harness<P> {
    /// The verdicts about one batch.
    ///
    /// # Panics
    /// When there is not exactly one verdict per message: the gateway would count that as a failure
    /// of the plugin.
    pub fn filter<M: Into<Message>>(&mut self, messages: impl IntoIterator<Item = M>) -> Vec<Verdict> {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        let verdicts = self.gateway.around(|| self.policy.filter_all(&self.source, &messages));
        assert_eq!(verdicts.len(), messages.len(), "one verdict for each message");
        verdicts
    }

    /// Sends one message through filter and guards, as the gateway does. Returns what would be
    /// delivered, with its amendments, or `None` if the policy or a guard stops it. Sending the same
    /// message (the same offset) again is a redelivery.
    pub fn deliver(&mut self, message: impl Into<Message>) -> Option<Message> {
        let message = message.into();
        match self.filter([message.clone()]).pop()? {
            Verdict::Pass => Some(message),
            Verdict::Drop(_) | Verdict::DeadLetter(_) => None,
            Verdict::Amend(amendment) => {
                self.claim_all(&amendment, message.offset).then(|| amended(message, amendment))
            }
        }
    }

    /// Claims every guard of an amendment, even if one of them stops the message.
    fn claim_all(&mut self, amendment: &Amendment, offset: i64) -> bool {
        let now = self.gateway.now();
        let mut may_pass = true;
        for once in &amendment.once {
            let claim = (offset, now + Duration::from_millis(once.ttl_ms));
            let holder = self.claims.entry(once.key.clone()).or_insert(claim);
            if holder.1 <= now {
                *holder = claim;
            }
            may_pass &= holder.0 == offset;
        }
        may_pass
    }
}

impl<P: Retention> Harness<P> {
    /// Where the messages of one batch are kept. The gateway asks only about messages that the filters let
    /// pass.
    ///
    /// # Panics
    /// When there is not exactly one answer per message.
    pub fn retain<M: Into<Message>>(&mut self, messages: impl IntoIterator<Item = M>) -> Vec<Keep> {
        let messages: Vec<Message> = messages.into_iter().map(Into::into).collect();
        let kept = self.gateway.around(|| self.policy.retain_all(&self.source, &messages));
        assert_eq!(kept.len(), messages.len(), "one answer for each message");
        kept
    }
}

impl<P: Grouping> Harness<P> {
    /// The policy's changes to a room with these connections.
    pub fn regroup(&mut self, room: &str, connections: &[ConnectionBuilder]) -> Regrouping {
        let (comets, connections) = build::grouped(connections);
        let room = Room { id: room, comets: &comets, connections: Connections::of(&connections) };
        self.gateway.around(|| self.policy.regroup(&room))
    }
}

impl<P: Offline> Harness<P> {
    /// The policy's dispositions for the absent recipients of a message.
    ///
    /// # Panics
    /// When there is not exactly one disposition per recipient.
    pub fn decide(&mut self, message: impl Into<Message>, absent: &[Absent]) -> Vec<Disposition> {
        let message = message.into();
        let decided = self.gateway.around(|| self.policy.decide_all(&self.source, &message, absent));
        assert_eq!(decided.len(), absent.len(), "one disposition for each recipient");
        decided
    }
}

/// Applies an amendment to a message, except for its comets.
fn amended(mut message: Message, amendment: Amendment) -> Message {
    let Amendment { body, operation, room, keys, .. } = amendment;
    message.body = body.unwrap_or(message.body);
    message.operation = operation.unwrap_or(message.operation);
    message.room = room.unwrap_or(message.room);
    message.keys = keys.unwrap_or(message.keys);
    message
}

/// Compares a file with the schema of a type: the test that [`settings!`](crate::settings!) adds. With
/// `HALLEY_UPDATE_SETTINGS` in the environment it writes the file instead.
///
/// # Panics
/// When the file is missing or outdated.
#[cfg(feature = "schema")]
pub fn check_settings_file<T: schemars::JsonSchema>(path: &str) {
    let current = format!("{}\n", crate::schema_of::<T>());
    if std::env::var_os("HALLEY_UPDATE_SETTINGS").is_some() {
        std::fs::write(path, &current).unwrap_or_else(|why| panic!("{path} cannot be written: {why}"));
    }
    let is_current = std::fs::read_to_string(path).is_ok_and(|stored| stored == current);
    assert!(is_current, "{path} is not that of the types; write it with HALLEY_UPDATE_SETTINGS=1 cargo test");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log, state};

    #[derive(serde::Deserialize)]
    struct Chatty {}

    impl Filter for Chatty {
        fn filter_all(&mut self, source: &Source, messages: &[Message]) -> Vec<Verdict> {
            log::info!("{} from {}/{}", messages.len(), source.topic, source.partition);
            crate::gauge_set("batch", messages.len() as f64);
            let seen = state::get("seen").map_or(0, |value| value[0]);
            state::set("seen", &[seen + 1], Some(Duration::from_secs(10))).expect("within the limits");
            vec![Verdict::Pass; messages.len()]
        }
    }

    #[test]
    fn the_host_functions_have_stand_ins() {
        let mut chatty = Harness::<Chatty>::new(serde_json::json!({}));
        chatty.set_source("other", 7);
        chatty.filter([room("a"), room("b")]);
        assert_eq!(chatty.logged(), [(Level::Info, "2 from other/7".to_owned())]);
        assert_eq!(chatty.gauge("batch"), Some(2.0));

        chatty.restart(serde_json::json!({}));
        chatty.filter([room("a")]);
        assert_eq!(chatty.state("seen"), Some(vec![2]));
        chatty.advance(Duration::from_secs(10));
        assert_eq!(chatty.state("seen"), None);
    }

    #[test]
    fn harnesses_do_not_share_anything() {
        let mut one = Harness::<Chatty>::new(serde_json::json!({}));
        let two = Harness::<Chatty>::new(serde_json::json!({}));
        one.filter([room("a")]);
        assert_eq!((two.state("seen"), two.logged()), (None, Vec::new()));
    }

    #[derive(serde::Deserialize)]
    struct Twice {}

    impl Filter for Twice {
        fn filter(&mut self, message: &Message) -> Verdict {
            let minute = Duration::from_secs(60);
            Verdict::amend().room("other").once("all", minute).once(message.text(), minute)
        }
    }

    #[test]
    fn guards_stop_repeats_but_no_redeliveries() {
        let mut policy = Harness::<Twice>::new(serde_json::json!({}));
        let first = room("a").body("one").build();
        assert_eq!(policy.deliver(first.clone()).expect("nobody was before it").room, "other");
        assert!(policy.deliver(first).is_some());
        assert!(policy.deliver(room("a").body("two")).is_none());
        policy.advance(Duration::from_secs(60));
        assert!(policy.deliver(room("a").body("two")).is_some());
    }
}
