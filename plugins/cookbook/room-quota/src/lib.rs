//! Limits the messages of a room per period, counted by all gateways together and across restarts.
//! System messages pass and do not count.
//!
//! The count is in the policy's state: with `state = "shared"` it is in Redis. Periods are derived
//! from the messages' timestamps, so that a redelivered message counts in its original period.

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// Messages per room and period.
    #[cfg_attr(test, schemars(range(min = 1)))]
    messages: u64,
    /// The length of a period.
    #[cfg_attr(test, schemars(range(min = 1, max = 1440)))]
    minutes: u64,
    /// Operations of system messages.
    spare: Vec<i32>,
}

struct RoomQuota {
    config: Config,
    stretch: Duration,
}

impl Policy for RoomQuota {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.messages == 0 || !(1..=1440).contains(&config.minutes) {
            return Err("config: give at least 1 of `messages`, and 1 to 1440 `minutes`".to_owned());
        }
        let stretch = Duration::from_secs(60 * config.minutes);
        Ok(Self { config, stretch })
    }
}

impl Filter for RoomQuota {
    fn filter(&mut self, message: &Message) -> Verdict {
        if message.audience != Audience::Room || self.config.spare.contains(&message.operation) {
            return Verdict::Pass;
        }
        let at = message.timestamp().unwrap_or_else(now);
        let stretch = at.as_secs() / self.stretch.as_secs();
        // One key per period; keys of past periods expire.
        let key = format!("{stretch}/{}", message.room);
        let said = state::get(&key).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        if said >= self.config.messages {
            counter_add("over_quota", 1);
            return Verdict::drop("the room has had its messages");
        }
        if let Err(why) = state::set(&key, &(said + 1).to_le_bytes(), Some(2 * self.stretch)) {
            log::warn!("{} is not counted: {why}", message.room);
        }
        Verdict::Pass
    }
}

halley_plugin::export!(RoomQuota: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, room};
    use serde_json::json;

    use super::*;

    const CONFIG: &str = r#"{ "messages": 2, "minutes": 10, "spare": [7] }"#;

    fn config() -> serde_json::Value {
        CONFIG.parse().expect("JSON")
    }

    #[test]
    fn a_room_has_its_messages_and_then_waits_for_the_next_stretch() {
        let mut policy = Harness::<RoomQuota>::new(config());
        let mut passes =
            |id: &str, minute: i64| policy.deliver(room(id).timestamp_ms(minute * 60_000)).is_some();
        let now = [passes("a", 0), passes("a", 1), passes("a", 9), passes("b", 9)];
        assert_eq!(now, [true, true, false, true]);
        assert!(passes("a", 10));
        assert_eq!(policy.counter("over_quota"), 1);
    }

    #[test]
    fn the_count_outlives_an_instance() {
        let mut policy = Harness::<RoomQuota>::new(config());
        assert!(policy.deliver(room("a")).is_some() && policy.deliver(room("a")).is_some());
        policy.restart(config());
        assert!(policy.deliver(room("a")).is_none());
    }

    #[test]
    fn system_messages_are_spared() {
        let mut policy = Harness::<RoomQuota>::new(config());
        for _ in 0..5 {
            assert!(policy.deliver(room("a").operation(7)).is_some());
        }
        assert!(policy.deliver(room("a")).is_some(), "none of those counted");
    }

    #[test]
    fn a_room_that_cannot_be_counted_is_heard_and_logged() {
        let mut policy = Harness::<RoomQuota>::new(config());
        let long = "r".repeat(600);
        for _ in 0..3 {
            assert!(policy.deliver(room(&long)).is_some());
        }
        assert_eq!(policy.logged().len(), 3);
    }

    #[test]
    fn no_messages_and_no_time_are_refused() {
        for config in [json!({ "messages": 0, "minutes": 1 }), json!({ "messages": 1, "minutes": 0 })] {
            let mut config = config;
            config["spare"] = json!([]);
            assert!(Harness::<RoomQuota>::refusal(config).starts_with("config: give at least"));
        }
    }
}
