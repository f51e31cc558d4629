//! Takes a comet out of service, a share of its users at a time: they count as offline, so the
//! offline policy stores or notifies what they miss, and their clients reconnect elsewhere.
//!
//! Raise `share` step by step, watch `halley_plugin_gauge{name="left"}` fall, and stop the comet at
//! 0. To drain a whole comet at once, use the bundled policy `comet-drain`.

use halley_plugin::prelude::*;

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// The comet's address, as in the directory.
    comet: String,
    /// The percentage of users that leave it.
    #[cfg_attr(test, schemars(range(max = 100)))]
    share: u8,
}

struct RetireComet {
    config: Config,
}

impl Policy for RetireComet {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.share > 100 {
            return Err(format!("config.share: {} of a hundred; give 0 to 100", config.share));
        }
        Ok(Self { config })
    }
}

impl Grouping for RetireComet {
    fn regroup(&mut self, room: &Room) -> Regrouping {
        let mut regrouping = Regrouping::default();
        let Some(retiring) = room.comets.iter().position(|comet| *comet == self.config.comet) else {
            return regrouping;
        };
        let mut left = 0;
        for (index, connection) in (0..).zip(room.connections) {
            if connection.comet as usize != retiring {
                continue;
            }
            if hundredth(connection.id) < self.config.share {
                regrouping = regrouping.place(index, Placement::Offline);
            } else {
                left += 1;
            }
        }
        gauge_set("left", f64::from(left));
        regrouping
    }
}

/// 0 to 99, the same for the same connection in every room, gateway and version (FNV-1a).
fn hundredth(id: &str) -> u8 {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The upper bits, because the lower ones of this hash are poorly distributed.
    ((hash >> 32) % 100) as u8
}

halley_plugin::export!(RetireComet: Grouping, Settings);
halley_plugin::settings!(Config: "settings.json");

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, connection};
    use serde_json::json;

    use super::*;

    const RETIRING: &str = "10.0.0.7:50051";

    /// How many of a thousand connections on the comet count as offline.
    fn away(share: u8) -> (usize, f64) {
        let mut policy = Harness::<RetireComet>::new(json!({ "comet": RETIRING, "share": share }));
        let mut connections: Vec<_> =
            (0..1000).map(|number| connection(&format!("conn_{number}"), RETIRING)).collect();
        connections.push(connection("elsewhere", "10.0.0.8:50051"));
        let regrouping = policy.regroup("video_1", &connections);
        assert!(regrouping.moves.iter().all(|moved| moved.connection < 1000), "others stay where they are");
        (regrouping.moves.len(), policy.gauge("left").unwrap_or(-1.0))
    }

    #[test]
    fn a_share_of_the_users_leaves() {
        assert_eq!(away(0), (0, 1000.0));
        assert_eq!(away(100), (1000, 0.0));
        let (quarter, left) = away(25);
        assert!((200..300).contains(&quarter), "{quarter} of 1000");
        assert_eq!(left, 1000.0 - quarter as f64);
    }

    #[test]
    fn rooms_without_the_comet_stay_as_they_are() {
        let mut policy = Harness::<RetireComet>::new(json!({ "comet": RETIRING, "share": 100 }));
        let connections = [connection("conn_1", "10.0.0.8:50051")];
        assert_eq!(policy.regroup("video_1", &connections), Regrouping::default());
    }

    #[test]
    fn more_than_all_is_refused() {
        let refusal = Harness::<RetireComet>::refusal(json!({ "comet": RETIRING, "share": 101 }));
        assert!(refusal.starts_with("config.share:"));
    }
}
