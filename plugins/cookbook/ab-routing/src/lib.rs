//! Sends the new form of a message (B) to a share of the rooms, and the old form (A) to the others. A
//! room keeps its form as long as the share does not change, and B only grows when the share grows.

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// The operation under test.
    operation: i32,
    /// The operation of form B.
    b_operation: i32,
    /// The percentage of rooms that get form B.
    #[cfg_attr(test, schemars(range(max = 100)))]
    share: u8,
    /// Rooms that always get it, such as the testers'.
    #[serde(default)]
    always: Vec<halley_plugin::RoomPattern>,
}

struct AbRouting {
    config: Config,
}

impl Policy for AbRouting {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.share > 100 {
            return Err(format!("config.share: {} of a hundred; give 0 to 100", config.share));
        }
        Ok(Self { config })
    }
}

impl Filter for AbRouting {
    fn filter(&mut self, message: &Message) -> Verdict {
        let Config { operation, b_operation, share, always } = &self.config;
        if message.audience != Audience::Room || message.operation != *operation {
            return Verdict::Pass;
        }
        let room = &message.room;
        if hundredth(room) < *share || always.iter().any(|pattern| pattern.matches(room)) {
            counter_add("b", 1);
            return Verdict::amend().operation(*b_operation);
        }
        counter_add("a", 1);
        Verdict::Pass
    }
}

/// 0 to 99, the same for the same room in every gateway and version (FNV-1a).
fn hundredth(room: &str) -> u8 {
    let hash = room.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The upper bits, because the lower ones of this hash are poorly distributed.
    ((hash >> 32) % 100) as u8
}

halley_plugin::export!(AbRouting: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use halley_plugin::testing::{Harness, keys, room};
    use serde_json::json;

    use super::*;

    /// The rooms among a thousand that get form B.
    fn side_b(share: u8) -> BTreeSet<u32> {
        let config = json!({ "operation": 4, "b_operation": 1004, "share": share });
        let mut policy = Harness::<AbRouting>::new(config);
        let rooms = (0..1000).map(|number| room(&format!("video_{number}")).operation(4));
        let verdicts = policy.filter(rooms);
        let b = Verdict::amend().operation(1004);
        let chosen: BTreeSet<u32> =
            (0..).zip(verdicts).filter(|(_, verdict)| *verdict == b).map(|(number, _)| number).collect();
        assert_eq!(policy.counter("b"), chosen.len() as u64);
        assert_eq!(policy.counter("a"), 1000 - chosen.len() as u64);
        chosen
    }

    #[test]
    fn a_share_of_the_rooms_changes_sides_and_stays() {
        let (none, tenth, half, all) = (side_b(0), side_b(10), side_b(50), side_b(100));
        assert_eq!((none.len(), all.len()), (0, 1000));
        assert!((60..140).contains(&tenth.len()), "{} of 1000", tenth.len());
        assert!((430..570).contains(&half.len()), "{} of 1000", half.len());
        assert!(tenth.is_subset(&half), "who had B keeps it");
    }

    #[test]
    fn testers_come_first_and_other_messages_are_left_alone() {
        let config = json!({ "operation": 4, "b_operation": 1004, "share": 0, "always": ["beta_*"] });
        let mut policy = Harness::<AbRouting>::new(config);
        let messages = [
            room("beta_1").operation(4),
            room("video_1").operation(4),
            room("beta_1").operation(7),
            keys(["ann"]).operation(4),
        ];
        let b = Verdict::amend().operation(1004);
        assert_eq!(policy.filter(messages), [b, Verdict::Pass, Verdict::Pass, Verdict::Pass]);
    }

    #[test]
    fn more_than_all_is_refused() {
        let config = json!({ "operation": 4, "b_operation": 1004, "share": 101 });
        assert!(Harness::<AbRouting>::refusal(config).starts_with("config.share:"));
    }
}
