//! `rollout` and `quarantine` of a `[[plugin]]`: a candidate next to the active version, and when a
//! version is deactivated automatically. Plain data.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smart_default::SmartDefault;

use crate::artifact::PluginSource;
use crate::digest::Digest;
use crate::mistake::{Mistake, mistake};
use crate::schema;

/// A candidate and its rollout.
#[derive(Clone, Debug, PartialEq, SmartDefault, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// The candidate's file. It uses the plugin's own settings.
    #[schemars(with = "String")]
    pub path: PluginSource,
    /// The SHA-256 of the candidate's file, in hex; no other content is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub sha256: Option<Digest>,
    /// Whether it decides for some rooms, or observes without effect.
    pub mode: RolloutMode,
    /// A canary's share of the rooms, chosen by a stable hash: the same rooms on all gateways.
    #[schemars(with = "schema::Fraction")]
    #[default(Fraction(0.05))]
    pub weight: Fraction,
    /// Rooms that a canary decides for, whatever the share.
    pub rooms: Vec<String>,
    /// A canary that stays within its budget for this time is promoted automatically. Without it,
    /// `halley plugin promote` does that.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Duration>")]
    pub promote_after: Option<Duration>,
    /// The limits beyond which a canary is rolled back automatically.
    pub thresholds: Thresholds,
}

/// The mode of a candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutMode {
    /// It decides for a share of the rooms.
    #[default]
    Canary,
    /// It sees everything that the active version filters, and has no effect.
    Shadow,
}

/// The limits of a canary. Checked from 100 messages on.
#[derive(SmartDefault, Clone, Copy, Debug, PartialEq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// The share of its messages that it may fail on.
    #[schemars(with = "schema::Fraction")]
    #[default(Fraction(0.01))]
    pub errors: Fraction,
    /// Its mean time per message, as a multiple of the active version's in the same period.
    #[default(3.0)]
    pub latency: f64,
    /// By how much its share of dropped and dead-lettered messages may exceed that of the active
    /// version.
    #[schemars(with = "schema::Fraction")]
    #[default(Fraction(0.05))]
    pub drops: Fraction,
}

/// A fraction, written as `5%` or `0.05`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, derive_more::Display)]
#[display("{}%", (self.0 * 10_000.0).round() / 100.0)]
pub struct Fraction(pub f64);

impl RolloutConfig {
    /// Mistakes in these settings, each with its remedy.
    pub(in crate::policy) fn validate(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if self.path.is_empty() {
            mistakes.push(mistake!("rollout.path", "is missing; give the candidate's .wasm file"));
        }
        let shares = [
            ("weight", self.weight),
            ("thresholds.errors", self.thresholds.errors),
            ("thresholds.drops", self.thresholds.drops),
        ];
        for (name, Fraction(weight)) in shares {
            if !(0.0..=1.0).contains(&weight) {
                mistakes.push(mistake!("rollout.{name}", "must be 0% to 100%"));
            }
        }
        if self.thresholds.latency.is_nan() || self.thresholds.latency < 1.0 {
            mistakes.push(mistake!("rollout.thresholds.latency", "must be at least 1"));
        }
        mistakes
    }
}

/// `quarantine` of a `[[plugin]]`: when a version is deactivated automatically.
#[derive(Clone, Debug, PartialEq, SmartDefault, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuarantineConfig {
    /// The number of messages (or rooms) that the version failed on.
    #[default(100)]
    pub max_failures: usize,
    /// Within this window.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(60))]
    pub window: Duration,
    /// What replaces it.
    #[default(QuarantineAction::LastGood)]
    pub action: QuarantineAction,
}

/// What replaces a quarantined version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QuarantineAction {
    /// The last known-good version of the plugin. If there is none, the failing version stays active
    /// and its `on_error` decides.
    LastGood,
    /// Nothing: the chain continues without the plugin.
    Without,
    /// It is never quarantined: its `on_error` decides as long as it fails.
    Never,
}

impl QuarantineConfig {
    /// Mistakes in the values, one sentence each.
    pub(in crate::policy) fn validate(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        if !(1..=MOST).contains(&self.max_failures) {
            mistakes.push(mistake!("quarantine.max_failures", "must be 1 to {MOST}"));
        }
        if self.window.is_zero() {
            mistakes.push(mistake!("quarantine.window", "must be more than 0"));
        }
        mistakes
    }
}

const MOST: usize = 100_000;

/// A text that is not a fraction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a share; write it as `5%` or `0.05`")]
pub struct InvalidFraction(String);

impl std::str::FromStr for Fraction {
    type Err = InvalidFraction;

    fn from_str(text: &str) -> Result<Self, InvalidFraction> {
        let text = text.trim();
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let weight = match text.strip_suffix('%') {
            Some(percent) => number(percent).map(|percent| percent / 100.0),
            None => number(text),
        };
        weight.map(Self).ok_or_else(|| InvalidFraction(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a share must be written as `\"5%\"` or `0.05`")]
        enum Either {
            Number(f64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(weight) => Ok(Self(weight)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_people_write_them() {
        let read = |text: &str| toml::from_str::<RolloutConfig>(&format!("path = \"p\"\nweight = {text}"));
        assert_eq!(read("\"5%\"").unwrap().weight, Fraction(0.05));
        assert_eq!(read("0.25").unwrap().weight, Fraction(0.25));
        assert!(read("\"many\"").unwrap_err().to_string().contains("write it as"));
        assert_eq!(Fraction(0.125).to_string(), "12.5%");
        assert_eq!("12.5%".parse(), Ok(Fraction(0.125)));
    }

    #[test]
    fn settings_that_make_no_sense_are_all_named() {
        let thresholds = Thresholds { errors: Fraction(2.0), latency: 0.5, drops: Fraction(-1.0) };
        let bad = RolloutConfig { weight: Fraction(f64::NAN), thresholds, ..RolloutConfig::default() };
        assert_eq!(bad.validate().len(), 5, "{:?}", bad.validate());
        assert!(
            RolloutConfig { path: "p".parse().unwrap(), ..RolloutConfig::default() }.validate().is_empty()
        );
    }
}
