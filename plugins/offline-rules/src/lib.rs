//! Decides by rules about messages for absent users: store them in the inbox, send them to a
//! notifier, or drop them.
//!
//! ```toml
//! [[plugin]]
//! name = "offline-rules"
//! path = "plugins/offline_rules.wasm"
//!
//! [[plugin.config.rules]]        # private messages trigger a notification
//! audience = "keys"              # keys | room | everyone; absent: any
//! action = "notify"
//! channel = "apns"               # for notify, and only then
//!
//! [[plugin.config.rules]]        # gifts are stored for a month
//! operations = [7]               # absent: any
//! rooms = ["video_*"]            # absent: any room or none
//! action = "store"
//! retention = "30d"              # for store; absent: `[offline] retention`, also the maximum
//!
//! [[plugin.config.rules]]        # all other room messages are dropped
//! rooms = ["*"]
//! action = "drop"
//! ```
//!
//! The first matching rule wins; conditions that a rule omits always match. If no rule matches, the
//! policy has no opinion: the next policy decides, then `[offline] default`.

use halley_plugin::RoomPattern;
use halley_plugin::prelude::*;

halley_plugin::export!(OfflineRules: Offline, Settings);
halley_plugin::settings!(Config: "settings.json");

/// The plugin's `config` table.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Config {
    /// The first matching rule decides; if none matches, the next policy does.
    rules: Vec<RuleConfig>,
}

/// A rule as configured.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    /// Whom the message is for. Absent: any.
    audience: Option<AudienceName>,
    /// The operations of the message; empty: any.
    #[serde(default)]
    operations: Vec<i32>,
    /// The rooms of the message; empty: any room or none.
    #[serde(default)]
    rooms: Vec<RoomPattern>,
    /// What happens to it.
    action: Action,
    /// The channel of the notification; for `notify`, and only then.
    channel: Option<String>,
    /// How long it is stored, such as `30d`; for `store`. Absent: `[offline] retention`, also the maximum.
    #[serde(default, with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    retention: Option<Duration>,
}

#[derive(Clone, Copy, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum AudienceName {
    Keys,
    Room,
    Everyone,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum Action {
    Store,
    Notify,
    Drop,
}

/// A validated rule.
struct Rule {
    audience: Option<Audience>,
    operations: Vec<i32>,
    rooms: Vec<RoomPattern>,
    disposition: Disposition,
}

struct OfflineRules(Vec<Rule>);

impl Policy for OfflineRules {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (number, rule) in config.rules.into_iter().enumerate() {
            rules.push(checked(rule).map_err(|problem| format!("config.rules[{number}]{problem}"))?);
        }
        Ok(Self(rules))
    }
}

fn checked(rule: RuleConfig) -> Result<Rule, &'static str> {
    if rule.channel.is_some() && rule.action != Action::Notify {
        return Err(".channel: only for `action = \"notify\"`");
    }
    if rule.retention.is_some() && rule.action != Action::Store {
        return Err(".retention: only for `action = \"store\"`");
    }
    let disposition = match (rule.action, rule.channel) {
        (Action::Drop, _) => Disposition::Drop,
        (Action::Store, _) => rule.retention.map_or(Disposition::store(), Disposition::store_for),
        (Action::Notify, Some(channel)) if !channel.is_empty() => Disposition::notify(channel),
        (Action::Notify, _) => return Err(".channel: missing; `notify` needs one, such as \"apns\""),
    };
    let audience = rule.audience.map(|name| match name {
        AudienceName::Keys => Audience::Keys,
        AudienceName::Room => Audience::Room,
        AudienceName::Everyone => Audience::Everyone,
    });
    Ok(Rule { audience, operations: rule.operations, rooms: rule.rooms, disposition })
}

impl Rule {
    fn matches(&self, message: &Message) -> bool {
        self.audience.is_none_or(|audience| audience == message.audience)
            && (self.operations.is_empty() || self.operations.contains(&message.operation))
            && (self.rooms.is_empty() || self.rooms.iter().any(|pattern| pattern.matches(&message.room)))
    }
}

impl Offline for OfflineRules {
    /// The rules only depend on the message, so all its recipients get the same answer.
    fn decide_all(&mut self, _: &Source, message: &Message, absent: &[Absent]) -> Vec<Disposition> {
        let rule = self.0.iter().find(|rule| rule.matches(message));
        let disposition = rule.map_or(Disposition::Pass, |rule| rule.disposition.clone());
        vec![disposition; absent.len()]
    }
}

#[cfg(test)]
mod tests {
    use halley_plugin::testing::{Harness, MessageBuilder, absent, everyone, keys, room};
    use serde_json::{Value, json};

    use super::*;

    fn rules() -> Value {
        json!({ "rules": [
            { "audience": "keys", "action": "notify", "channel": "apns" },
            { "operations": [7], "rooms": ["video_*"], "action": "store", "retention": "30d" },
            { "operations": [8], "action": "store" },
            { "rooms": ["*"], "action": "drop" },
        ]})
    }

    fn decided(message: MessageBuilder) -> Vec<Disposition> {
        let recipients = [absent("ann", Cause::NotOnline), absent("bob", Cause::CometUnreachable)];
        Harness::<OfflineRules>::new(rules()).decide(message, &recipients)
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let twice = |disposition: Disposition| vec![disposition; 2];
        let month = Duration::from_secs(30 * 86_400);
        assert_eq!(decided(keys(["ann", "bob"]).operation(7)), twice(Disposition::notify("apns")));
        assert_eq!(decided(room("video_1").operation(7)), twice(Disposition::store_for(month)));
        assert_eq!(decided(room("live_1").operation(8)), twice(Disposition::store()));
        assert_eq!(decided(room("live_1").operation(7)), twice(Disposition::Drop));
        assert_eq!(decided(everyone()), twice(Disposition::Pass));
    }

    #[test]
    fn without_rules_there_is_no_opinion() {
        let mut policy = Harness::<OfflineRules>::new(json!({ "rules": [] }));
        let decided = policy.decide(room("r"), &[absent("ann", Cause::NoConnection)]);
        assert_eq!(decided, [Disposition::Pass]);
    }

    #[test]
    fn mistakes_in_the_configuration_are_named() {
        let refusal = |rule: Value| {
            let fine = json!({ "action": "drop" });
            Harness::<OfflineRules>::refusal(json!({ "rules": [fine, rule] }))
        };
        assert!(refusal(json!({ "action": "notify" })).starts_with("config.rules[1].channel: missing"));
        assert!(
            refusal(json!({ "action": "drop", "channel": "x" })).starts_with("config.rules[1].channel: only")
        );
        assert!(
            refusal(json!({ "action": "drop", "retention": "1d" }))
                .starts_with("config.rules[1].retention: only")
        );
        assert!(refusal(json!({ "action": "keep" })).starts_with("config.rules[1].action: unknown variant"));
        assert!(
            refusal(json!({ "action": "store", "retention": "long" }))
                .starts_with("config.rules[1].retention:")
        );
        assert_eq!(Harness::<OfflineRules>::refusal(json!({})), "config: missing field `rules`");
    }
}
