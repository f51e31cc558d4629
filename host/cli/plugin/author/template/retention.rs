//! Keeps messages by operation.

use super::TemplatePart;

pub(super) const PART: TemplatePart = TemplatePart {
    hook: "Retention",
    does: "Some operations are kept until each device has acknowledged them, others in the room's history.",
    fields: r#"
    /// Messages with these operations are kept in the inbox of every recipient, also of users who are online.
    urgent: Vec<i32>,
    /// Messages to rooms with these operations are kept in the room's history.
    memorable: Vec<i32>,
"#,
    config: "urgent = [9]\nmemorable = [7]\n",
    code: r#"
impl Retention for NAME {
    fn retain(&mut self, message: &Message) -> Keep {
        Keep {
            inbox: self.urgent.contains(&message.operation),
            history: self.memorable.contains(&message.operation),
        }
    }
}
"#,
    tests: r#"
    #[test]
    fn calls_are_kept_until_acknowledged() {
        let kept = policy().retain([room("video_1").operation(9), room("video_1").operation(7), room("video_1")]);
        assert_eq!(kept, [Keep::NOTHING.inbox(), Keep::NOTHING.history(), Keep::NOTHING]);
    }
"#,
    uses: &["room"],
    cases: r#"
[[case]]
name = "calls are kept until acknowledged"

[[case.retention]]
message = { keys = ["ann"], operation = 9, body = "a call" }
expect = { keep = ["inbox"] }

[[case.retention]]
message = { room = "video_1", operation = 7, body = "a gift" }
expect = { keep = ["history"] }

[[case.retention]]
message = { room = "video_1", operation = 4, body = "hello" }
expect = "pass"
"#,
    questions: r#"{"keys": ["ann"], "operation": 9, "body": "a call"}
{"room": "video_1", "operation": 7, "body": "a gift"}
"#,
};
