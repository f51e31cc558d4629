//! A filter that looks for words.

use super::TemplatePart;

pub(super) const PART: TemplatePart = TemplatePart {
    hook: "Filter",
    does: "Messages that contain one of the configured words are not delivered.",
    fields: r#"
    /// Messages that contain one of these are dropped.
    words: Vec<String>,
"#,
    config: "words = [\"spam\"]\n",
    code: r#"
impl Filter for NAME {
    fn filter(&mut self, message: &Message) -> Verdict {
        let text = message.text();
        let found = self.words.iter().find(|word| text.contains(*word));
        // `Verdict::amend()` changes a message instead; see the documentation of `Verdict`.
        found.map_or(Verdict::Pass, |word| Verdict::drop(format!("contains {word}")))
    }
}
"#,
    tests: r#"
    #[test]
    fn a_word_stops_a_message() {
        let mut policy = policy();
        assert!(policy.deliver(room("video_1").body("hello")).is_some());
        assert!(policy.deliver(room("video_1").body("buy spam")).is_none());
    }
"#,
    uses: &["room"],
    cases: r#"
[[case]]
name = "a word stops a message"

[[case.filter]]
message = { room = "video_1", body = "hello" }
expect = "pass"

[[case.filter]]
message = { room = "video_1", body = "buy spam" }
expect = { drop = "contains spam" }
"#,
    questions: r#"{"room": "video_1", "body": "hello"}
{"room": "video_1", "body": "buy spam", "headers": {"lang": "en"}}
{"keys": ["user_1"], "operation": 7, "body": "a gift"}
"#,
};
