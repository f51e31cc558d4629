//! Suppresses duplicates, and limits the rate of messages in rooms.
//!
//! ```toml
//! [[plugin]]
//! name = "duplicate-guard"
//! path = "plugins/duplicate_guard.wasm"
//!
//! [plugin.config.duplicates]     # absent: duplicates pass
//! within = "60s"                 # required
//! header = "request-id"          # what makes messages the same; absent: their bodies
//!
//! [plugin.config.cooldown]       # absent: no cooldown
//! within = "1s"                  # at most one message per room in this time; required
//! spare_operations = [7, 9]      # always pass and do not count, such as gifts
//! rooms = ["video_*"]            # only in these rooms; absent: in all
//! ```
//!
//! At least one of the two tables is required. Two messages are duplicates if they have the same
//! audience, the same operation, and the same value of the header (or the same body). A message
//! without the header passes. The cooldown applies to messages to rooms; messages that it stops are
//! not delivered later.
//!
//! Both use guards, which the gateway stores in Redis for all its processes. A message that Kafka
//! redelivers is not a duplicate of itself: the gateway recognizes it by its id. A stopped duplicate
//! may still start a room's cooldown, since guards are claimed together.

use std::fmt::Write;

use halley_plugin::RoomPattern;
use halley_plugin::prelude::*;
use sha2::{Digest, Sha256};

halley_plugin::export!(DuplicateGuard: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

/// The plugin's `config` table.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// Stops repetitions of a message. Absent: duplicates pass.
    duplicates: Option<Duplicates>,
    /// Limits the rate of messages to a room. Absent: no limit.
    cooldown: Option<Cooldown>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Duplicates {
    /// For how long a message stops those that are the same, such as `60s`.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "String"))]
    within: Duration,
    /// The header that makes messages the same. Absent: their bodies.
    header: Option<String>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Cooldown {
    /// At most one message per room in this time, such as `1s`.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "String"))]
    within: Duration,
    /// Operations that always pass and do not count, such as gifts.
    #[serde(default)]
    spare_operations: Vec<i32>,
    /// Only in these rooms; empty: in all.
    #[serde(default)]
    rooms: Vec<RoomPattern>,
}

struct DuplicateGuard(Config);

impl Policy for DuplicateGuard {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.duplicates.is_none() && config.cooldown.is_none() {
            return Err("config: neither `duplicates` nor `cooldown`; configure at least one".to_owned());
        }
        if config.duplicates.as_ref().is_some_and(|duplicates| duplicates.within.is_zero()) {
            return Err("config.duplicates.within: 0; remove `duplicates` to let them pass".to_owned());
        }
        if config.cooldown.as_ref().is_some_and(|cooldown| cooldown.within.is_zero()) {
            return Err("config.cooldown.within: 0; remove `cooldown` to disable it".to_owned());
        }
        Ok(Self(config))
    }
}

impl Filter for DuplicateGuard {
    fn filter(&mut self, message: &Message) -> Verdict {
        let mut verdict = Verdict::Pass;
        if let Some(duplicates) = &self.0.duplicates
            && let Some(identity) = duplicates.identity(message)
        {
            verdict = verdict.once(format!("duplicate:{identity}"), duplicates.within);
        }
        if let Some(cooldown) = &self.0.cooldown
            && cooldown.covers(message)
        {
            verdict = verdict.once(format!("cooldown:{}", short(&message.room)), cooldown.within);
        }
        verdict
    }
}

impl Duplicates {
    /// What duplicates have in common; `None` for a message without the header. Every part is hashed
    /// with its length, so that no two different messages have the same input.
    fn identity(&self, message: &Message) -> Option<String> {
        let distinguishing = match &self.header {
            Some(header) => message.header(header)?,
            None => &message.body,
        };
        let mut hash = Sha256::new();
        hash.update([message.audience as u8]);
        hash.update(message.operation.to_be_bytes());
        let keys = message.keys.iter().map(String::as_bytes);
        for part in [message.room.as_bytes(), distinguishing].into_iter().chain(keys) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Some(hex(&hash.finalize()[..16]))
    }
}

impl Cooldown {
    fn covers(&self, message: &Message) -> bool {
        message.audience == Audience::Room
            && !self.spare_operations.contains(&message.operation)
            && (self.rooms.is_empty() || self.rooms.iter().any(|pattern| pattern.matches(&message.room)))
    }
}

/// The room itself, so that the key is readable in Redis; a hash if it would not fit into a guard's
/// 512 bytes.
fn short(room: &str) -> String {
    if room.len() <= 256 { room.to_owned() } else { hex(&Sha256::digest(room)) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes what is written to it");
        hex
    })
}

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, MessageBuilder, everyone, keys, room};
    use serde_json::{Value, json};

    use super::*;

    /// Which of these messages are delivered, sent in sequence at the same moment.
    fn delivered<const N: usize>(config: Value, messages: [MessageBuilder; N]) -> [bool; N] {
        let mut guard = Harness::<DuplicateGuard>::new(config);
        messages.map(|message| guard.deliver(message).is_some())
    }

    fn by_body() -> Value {
        json!({ "duplicates": { "within": "60s" } })
    }

    #[test]
    fn the_same_body_in_the_same_room_is_a_duplicate() {
        let messages = [
            room("video_1").body("hi"),
            room("video_1").body("hi"),
            room("video_1").body("ho"),
            room("video_2").body("hi"),
            room("video_1").body("hi").operation(5),
            everyone().body("hi"),
        ];
        assert_eq!(delivered(by_body(), messages), [true, false, true, true, true, true]);
    }

    #[test]
    fn keys_do_not_run_together() {
        let messages = [keys(["ab", "c"]), keys(["a", "bc"]), keys(["abc"]), keys(["ab", "c"])];
        assert_eq!(delivered(by_body(), messages), [true, true, true, false]);
    }

    #[test]
    fn a_redelivery_is_no_duplicate() {
        let message = room("video_1").body("hi");
        assert_eq!(delivered(by_body(), [message.clone(), message]), [true, true]);
    }

    #[test]
    fn duplicates_are_forgotten_in_time() {
        let mut guard = Harness::<DuplicateGuard>::new(by_body());
        assert!(guard.deliver(room("r").body("hi")).is_some());
        guard.advance(Duration::from_secs(59));
        assert!(guard.deliver(room("r").body("hi")).is_none());
        guard.advance(Duration::from_secs(1));
        assert!(guard.deliver(room("r").body("hi")).is_some());
    }

    #[test]
    fn a_header_may_say_what_is_the_same() {
        let config = json!({ "duplicates": { "within": "1m", "header": "id" } });
        let messages = [
            room("r").body("a").header("id", "1"),
            room("r").body("b").header("id", "1"),
            room("r").body("a").header("id", "2"),
            room("r").body("a"),
            room("r").body("a"),
        ];
        assert_eq!(delivered(config, messages), [true, false, true, true, true]);
    }

    #[test]
    fn a_cooldown_spares_operations_and_other_rooms() {
        let config = json!({ "cooldown": { "within": "1s", "spare_operations": [7], "rooms": ["video_*"] } });
        let messages = [
            room("video_1").body("a"),
            room("video_1").body("b"),
            room("video_1").body("gift").operation(7),
            room("video_2").body("a"),
            room("live_1").body("a"),
            room("live_1").body("b"),
            keys(["ann"]).body("a"),
            keys(["ann"]).body("b"),
        ];
        assert_eq!(delivered(config, messages), [true, false, true, true, true, true, true, true]);
    }

    #[test]
    fn keys_fit_into_a_guard() {
        let config = json!({ "cooldown": { "within": "1s" }, "duplicates": { "within": "1s" } });
        let mut guard = Harness::<DuplicateGuard>::new(config);
        let verdicts = guard.filter([room(&"r".repeat(10_000)).body("x")]);
        let Verdict::Amend(amendment) = &verdicts[0] else { panic!("{verdicts:?}") };
        assert_eq!(amendment.once.len(), 2);
        assert!(amendment.once.iter().all(|once| once.key.len() <= 512), "{amendment:?}");
    }

    #[test]
    fn mistakes_in_the_configuration_are_named() {
        let refusal = Harness::<DuplicateGuard>::refusal;
        assert!(refusal(json!({})).starts_with("config: neither"));
        assert!(refusal(json!({ "cooldown": { "within": "0s" } })).starts_with("config.cooldown.within: 0"));
        assert!(
            refusal(json!({ "duplicates": { "within": "soon" } })).starts_with("config.duplicates.within:")
        );
        assert!(
            refusal(json!({ "duplicates": {} })).starts_with("config.duplicates: missing field `within`")
        );
    }
}
