//! Calls and payments are kept until every device has acknowledged them, also for users who are online;
//! what is said in named rooms is kept in the room's history.

use halley_plugin::RoomPattern;
use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct KeepImportant {
    /// Operations that are kept in the inbox of every recipient.
    operations: Vec<i32>,
    /// Rooms with a history: ids, or beginnings of ids that end with `*`.
    rooms: Vec<RoomPattern>,
    /// Messages with this header are kept nowhere, such as typing indicators.
    #[serde(default)]
    transient_header: Option<String>,
}

impl Retention for KeepImportant {
    fn retain(&mut self, message: &Message) -> Keep {
        let is_transient = |name: &String| message.headers.iter().any(|header| header.name == *name);
        if self.transient_header.as_ref().is_some_and(is_transient) {
            return Keep::NOTHING;
        }
        Keep {
            inbox: self.operations.contains(&message.operation),
            history: self.rooms.iter().any(|pattern| pattern.matches(&message.room)),
        }
    }
}

halley_plugin::export!(KeepImportant: Retention, Settings);
halley_plugin::settings!(KeepImportant: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, keys, room};
    use serde_json::json;

    use super::*;

    fn policy() -> Harness<KeepImportant> {
        Harness::new(json!({ "operations": [9], "rooms": ["im_*"], "transient_header": "typing" }))
    }

    #[test]
    fn calls_wait_for_every_device() {
        let kept = policy().retain([keys(["ann"]).operation(9), keys(["ann"]).operation(4)]);
        assert_eq!(kept, [Keep::NOTHING.inbox(), Keep::NOTHING]);
    }

    #[test]
    fn conversations_have_a_history_and_streams_have_none() {
        let kept = policy().retain([room("im_7"), room("video_7"), room("im_7").operation(9)]);
        assert_eq!(kept, [Keep::NOTHING.history(), Keep::NOTHING, Keep::NOTHING.inbox().history()]);
    }

    #[test]
    fn typing_is_kept_nowhere() {
        assert_eq!(policy().retain([room("im_7").header("typing", "1")]), [Keep::NOTHING]);
    }
}
