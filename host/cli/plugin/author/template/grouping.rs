//! A grouping that takes comets out of service.

use super::TemplatePart;

pub(super) const PART: TemplatePart = TemplatePart {
    hook: "Grouping",
    does: "Users on comets that are closed count as away.",
    fields: r#"
    /// The addresses of comets whose users count as away.
    closed: Vec<String>,
"#,
    config: "closed = [\"10.0.0.9:50051\"]\n",
    code: r#"
impl Grouping for NAME {
    fn place(&mut self, room: &Room, connection: &Connection) -> Option<Placement> {
        // `Placement::Comet(address)` sends to another comet, `Placement::Skip` to nobody.
        let comet = room.comet_of(connection);
        self.closed.iter().any(|closed| closed == comet).then_some(Placement::Offline)
    }
}
"#,
    tests: r#"
    #[test]
    fn users_on_a_closed_comet_count_as_away() {
        let room = [connection("c1", "10.0.0.1:50051"), connection("c2", "10.0.0.9:50051")];
        let changed = policy().regroup("video_1", &room);
        assert_eq!(changed.moves.len(), 1);
        assert_eq!(changed.moves[0].connection, 1);
    }
"#,
    uses: &["connection"],
    cases: r#"
[[case]]
name = "users on a closed comet count as away"

[[case.grouping]]
room = "video_1"
connections = [
    { id = "c1", comet = "10.0.0.1:50051", user = "ann" },
    { id = "c2", comet = "10.0.0.9:50051", user = "bob" },
]
expect = { c2 = "offline" }
"#,
    questions: concat!(
        r#"{"room": "video_1", "connections": [{"id": "c1", "comet": "10.0.0.1:50051"}, "#,
        r#"{"id": "c2", "comet": "10.0.0.9:50051", "user": "bob"}]}"#,
        "\n"
    ),
};
