//! Delivers a room of a region, such as `eu/lobby`, through that region's comets only: its messages
//! do not leave the region, whatever the directory contains.

use std::collections::HashMap;

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// The comets of each region, which is the part of a room id before its first `/`.
    #[cfg_attr(test, schemars(with = "std::collections::BTreeMap<String, Vec<String>>"))]
    regions: HashMap<String, Vec<String>>,
}

struct RegionalRooms {
    regions: HashMap<String, Vec<String>>,
}

impl Policy for RegionalRooms {
    type Config = Config;

    fn new(Config { regions }: Config) -> Result<Self, String> {
        if let Some((region, _)) = regions.iter().find(|(_, comets)| comets.is_empty()) {
            return Err(format!("config.regions.{region}: no comets, so that nobody would be reached"));
        }
        Ok(Self { regions })
    }
}

impl Filter for RegionalRooms {
    fn filter(&mut self, message: &Message) -> Verdict {
        // Rooms without a `/` belong to no region.
        let Some((region, _)) = message.room.split_once('/') else { return Verdict::Pass };
        match self.regions.get(region) {
            Some(comets) => Verdict::amend().only(comets),
            // Messages of an unknown region must not be delivered everywhere.
            None => Verdict::dead_letter(format!("no region `{region}`")),
        }
    }
}

halley_plugin::export!(RegionalRooms: Filter, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, keys, room};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_region_s_rooms_stay_in_the_region() {
        let regions = json!({ "eu": ["10.1.0.1:50051", "10.1.0.2:50051"], "cn": ["10.2.0.1:50051"] });
        let mut policy = Harness::<RegionalRooms>::new(json!({ "regions": regions }));
        let messages = [room("eu/lobby"), room("cn/lobby"), room("lobby"), room("us/lobby"), keys(["ann"])];
        assert_eq!(
            policy.filter(messages),
            [
                Verdict::amend().only(["10.1.0.1:50051", "10.1.0.2:50051"]),
                Verdict::amend().only(["10.2.0.1:50051"]),
                Verdict::Pass,
                Verdict::dead_letter("no region `us`"),
                Verdict::Pass,
            ]
        );
    }

    #[test]
    fn a_region_without_comets_is_refused() {
        let refusal = Harness::<RegionalRooms>::refusal(json!({ "regions": { "eu": [] } }));
        assert!(refusal.starts_with("config.regions.eu:"), "{refusal}");
    }
}
