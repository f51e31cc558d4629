//! Limits messages per second in each room. System messages pass and do not count.
//!
//! A room's messages share a partition if the producer keys records by room, as goim's does: then one
//! instance sees them all, and a table in its memory is enough. A new instance (after a swap or a
//! rebalance) starts with full allowances.

use std::collections::HashMap;

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// Messages per second in one room, and the size of a burst.
    #[cfg_attr(test, schemars(range(min = 1)))]
    per_second: u32,
    /// Operations of system messages.
    spare: Vec<i32>,
}

/// A room's remaining allowance, a token bucket.
struct Allowance {
    messages: f64,
    counted_at: Duration,
}

struct CalmRooms {
    config: Config,
    rooms: HashMap<String, Allowance>,
}

impl Policy for CalmRooms {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.per_second == 0 {
            return Err("config.per_second: 0 would silence every room; give at least 1".to_owned());
        }
        Ok(Self { config, rooms: HashMap::new() })
    }
}

impl Filter for CalmRooms {
    fn filter(&mut self, message: &Message) -> Verdict {
        if message.audience != Audience::Room || self.config.spare.contains(&message.operation) {
            return Verdict::Pass;
        }
        if self.takes_one(&message.room, now()) {
            return Verdict::Pass;
        }
        counter_add("calmed", 1);
        Verdict::drop("too many messages in this room")
    }
}

/// The maximum number of rooms that are tracked.
const MOST_ROOMS: usize = 10_000;

impl CalmRooms {
    fn takes_one(&mut self, room: &str, now: Duration) -> bool {
        let full = f64::from(self.config.per_second);
        if self.rooms.len() >= MOST_ROOMS && !self.rooms.contains_key(room) {
            // After a quiet second a room has its full allowance, like an unknown one.
            self.rooms
                .retain(|_, allowance| now.saturating_sub(allowance.counted_at) < Duration::from_secs(1));
        }
        if self.rooms.len() >= MOST_ROOMS && !self.rooms.contains_key(room) {
            return true;
        }
        let allowance =
            self.rooms.entry(room.to_owned()).or_insert(Allowance { messages: full, counted_at: now });
        let since = now.saturating_sub(allowance.counted_at).as_secs_f64();
        allowance.messages = (allowance.messages + since * full).min(full);
        allowance.counted_at = now;
        let takes = allowance.messages >= 1.0;
        if takes {
            allowance.messages -= 1.0;
        }
        takes
    }
}

halley_plugin::export!(CalmRooms: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, keys, room};
    use serde_json::json;

    use super::*;

    fn policy() -> Harness<CalmRooms> {
        Harness::new(json!({ "per_second": 2, "spare": [7] }))
    }

    #[test]
    fn a_room_says_so_much_and_then_waits() {
        let mut policy = policy();
        let mut passes = |room_id: &str| policy.deliver(room(room_id).body("hi")).is_some();
        assert_eq!(["a", "a", "a", "b"].map(&mut passes), [true, true, false, true]);
        assert_eq!(policy.counter("calmed"), 1);
        policy.advance(Duration::from_millis(500));
        assert!(policy.deliver(room("a").body("hi")).is_some(), "half a second is one message");
        assert!(policy.deliver(room("a").body("hi")).is_none());
    }

    #[test]
    fn system_messages_and_private_ones_are_spared() {
        let mut policy = policy();
        for _ in 0..10 {
            assert!(policy.deliver(room("a").operation(7).body("stream ends")).is_some());
            assert!(policy.deliver(keys(["ann"]).body("hi")).is_some());
        }
        assert!(policy.deliver(room("a").body("hi")).is_some(), "none of those counted");
    }

    #[test]
    fn the_table_of_rooms_is_bounded() {
        let mut policy = Harness::<CalmRooms>::new(json!({ "per_second": 1, "spare": [] }));
        for number in 0..MOST_ROOMS {
            assert!(policy.deliver(room(&format!("room_{number}"))).is_some());
        }
        assert!(policy.deliver(room("one_more")).is_some());
        assert!(policy.deliver(room("one_more")).is_some(), "not remembered, so not limited");
        policy.advance(Duration::from_secs(1));
        assert!(policy.deliver(room("one_more")).is_some());
        assert!(policy.deliver(room("one_more")).is_none(), "the quiet ones made place");
    }

    #[test]
    fn silence_is_refused() {
        let refusal = Harness::<CalmRooms>::refusal(json!({ "per_second": 0, "spare": [] }));
        assert!(refusal.starts_with("config.per_second:"));
    }
}
