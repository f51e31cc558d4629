//! Offline rules by operation.

use super::TemplatePart;

pub(super) const PART: TemplatePart = TemplatePart {
    hook: "Offline",
    does: "What absent users miss is kept for some operations and dropped for the others.",
    fields: r#"
    /// Messages with these operations wait in the user's inbox.
    keep: Vec<i32>,
"#,
    config: "keep = [7]\n",
    code: r#"
impl Offline for NAME {
    fn decide(&mut self, message: &Message, _absent: &Absent) -> Disposition {
        // `Disposition::notify(channel)` makes a notification of it.
        if self.keep.contains(&message.operation) { Disposition::store() } else { Disposition::Drop }
    }
}
"#,
    tests: r#"
    #[test]
    fn gifts_are_kept_and_chatter_is_not() {
        let away = [absent("ann", Cause::NotOnline)];
        assert_eq!(policy().decide(message(["ann"]).operation(7), &away), [Disposition::store()]);
        assert_eq!(policy().decide(message(["ann"]).operation(4), &away), [Disposition::Drop]);
    }
"#,
    uses: &["absent", "keys as message"],
    cases: r#"
[[case]]
name = "gifts are kept and chatter is not"

[[case.offline]]
message = { keys = ["ann"], operation = 7, body = "a rose" }
absent = { user = "ann" }
expect = "store"

[[case.offline]]
message = { room = "video_1", operation = 4, body = "hello" }
absent = { user = "ann", cause = "comet-unreachable" }
expect = "drop"
"#,
    questions: r#"{"message": {"keys": ["ann"], "operation": 7, "body": "a rose"}, "absent": {"user": "ann"}}
{"message": {"room": "video_1", "body": "hello"}, "absent": {"user": "ann"}}
"#,
};
