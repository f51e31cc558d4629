//! Takes comets out of service: messages to their connections are redirected, stored or skipped.
//!
//! ```toml
//! [[plugin]]
//! name = "comet-drain"
//! path = "plugins/comet_drain.wasm"
//!
//! [plugin.config]
//! draining = ["10.0.0.7:50051"]   # addresses, in any spelling; required
//! action = "redirect"             # offline (default) | skip | redirect
//! to = "10.0.0.8:50051"           # for redirect, and only then
//! ```
//!
//! Which action to take:
//!
//! - `offline`: the comet is being switched off and messages matter. Its connections count as
//!   offline, so the offline policy (or `[offline] default`) stores or notifies what they miss.
//! - `skip`: the comet's clients have been told to reconnect and will appear elsewhere soon, and what
//!   they miss until then is not worth storing, as with danmaku.
//! - `redirect`: the *connections* have moved, or a process at another address has taken them over,
//!   and the directory does not know yet. The room still takes one call. A comet that does not hold
//!   the connections cannot deliver to them: do not redirect to an arbitrary other one.
//!
//! Only room messages are regrouped. The drain takes effect for a room when its route is resolved
//! next: within `[routing.cache] max_age`, and at once on a hot swap.

use halley_plugin::canonical_comet;
use halley_plugin::prelude::*;

halley_plugin::export!(CometDrain: Grouping, Settings);
halley_plugin::settings!(Config: "settings.json");

/// The plugin's `config` table.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// The addresses of the comets that are taken out of service, in any spelling.
    draining: Vec<String>,
    /// What happens to messages to their connections.
    #[serde(default)]
    action: Action,
    /// The address that takes over; for `redirect`, and only then.
    to: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum Action {
    #[default]
    Offline,
    Skip,
    Redirect,
}

struct CometDrain {
    draining: Vec<String>,
    plan: Plan,
}

enum Plan {
    /// Redirects the comet's whole share to this address.
    Redirect(String),
    /// Moves each of its connections there.
    Place(Placement),
}

impl Policy for CometDrain {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let Config { draining, action, to } = config;
        let draining: Vec<_> = draining.iter().map(|comet| canonical_comet(comet)).collect();
        let to = to.map(|comet| canonical_comet(&comet));
        let plan = match (action, to) {
            (Action::Redirect, Some(to)) if draining.contains(&to) => {
                return Err(format!("config.to: {to} is draining itself; name a comet that stays"));
            }
            (Action::Redirect, Some(to)) => Plan::Redirect(to),
            (Action::Redirect, None) => {
                return Err("config.to: missing; `redirect` needs the address that takes over".to_owned());
            }
            (_, Some(_)) => return Err("config.to: only for `action = \"redirect\"`".to_owned()),
            (Action::Offline, None) => Plan::Place(Placement::Offline),
            (Action::Skip, None) => Plan::Place(Placement::Skip),
        };
        Ok(Self { draining, plan })
    }
}

impl Grouping for CometDrain {
    fn regroup(&mut self, room: &Room) -> Regrouping {
        let is_draining: Vec<bool> = room.comets.iter().map(|comet| self.draining.contains(comet)).collect();
        let mut regrouping = Regrouping::default();
        match &self.plan {
            Plan::Redirect(to) => {
                for (comet, _) in (0..).zip(&is_draining).filter(|(_, draining)| **draining) {
                    regrouping = regrouping.redirect(comet, to);
                }
            }
            Plan::Place(placement) => {
                for (index, connection) in (0..).zip(room.connections) {
                    if is_draining[connection.comet as usize] {
                        regrouping = regrouping.place(index, placement.clone());
                    }
                }
            }
        }
        regrouping
    }
}

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, connection};
    use serde_json::{Value, json};

    use super::*;

    /// A room with two connections on the draining comet `a:1` and one on `b:1`.
    fn regrouped(config: Value) -> Regrouping {
        let connections = [connection("c1", "a:1"), connection("c2", "b:1"), connection("c3", "a:1")];
        Harness::<CometDrain>::new(config).regroup("video_1", &connections)
    }

    #[test]
    fn a_comet_goes_to_another_address_as_a_whole() {
        let regrouping = regrouped(json!({ "draining": ["a:1"], "action": "redirect", "to": "c:1" }));
        assert_eq!(regrouping, Regrouping::default().redirect(0, "c:1"));
    }

    #[test]
    fn its_connections_count_as_away_or_get_nothing() {
        let regrouping = regrouped(json!({ "draining": ["a:1"] }));
        assert_eq!(regrouping, Regrouping::default().treat_as_offline(0).treat_as_offline(2));
        let regrouping = regrouped(json!({ "draining": ["a:1"], "action": "skip" }));
        assert_eq!(regrouping, Regrouping::default().skip(0).skip(2));
    }

    #[test]
    fn every_spelling_of_a_comet_drains_it() {
        let regrouping = regrouped(json!({ "draining": ["http://A.:01/"], "action": "skip" }));
        assert_eq!(regrouping, Regrouping::default().skip(0).skip(2));
    }

    #[test]
    fn other_comets_are_left_alone() {
        assert_eq!(regrouped(json!({ "draining": [] })), Regrouping::default());
        assert_eq!(regrouped(json!({ "draining": ["x:1"] })), Regrouping::default());
    }

    #[test]
    fn mistakes_in_the_configuration_are_named() {
        let refusal = Harness::<CometDrain>::refusal;
        assert_eq!(refusal(json!({})), "config: missing field `draining`");
        assert!(
            refusal(json!({ "draining": ["a:1"], "action": "redirect" })).starts_with("config.to: missing")
        );
        let to_itself = json!({ "draining": ["a:1"], "action": "redirect", "to": "a:1" });
        assert!(refusal(to_itself).starts_with("config.to: a:1 is draining itself"));
        assert!(refusal(json!({ "draining": [], "to": "b:1" })).starts_with("config.to: only for"));
    }
}
