//! A candidate next to the active version: a canary that decides for some rooms, or a shadow that
//! observes without effect.
//!
//! A room is always decided by the same version: by name, or by a hash that is the same on all
//! gateways. Messages to keys are assigned by their first key; broadcasts always go to the active
//! version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use crate::artifact::Artifact;
use crate::digest::Digest;
use crate::message::Audience;
use crate::policy::plugin::Plugin;
use crate::policy::rollout::analysis::{Analysis, analyze};
use crate::policy::rollout::config::{Fraction, RolloutConfig, RolloutMode};
use crate::policy::rollout::shadow::Shadow;

/// The file of a candidate, and its rollout.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Candidate {
    pub(in crate::policy) config: RolloutConfig,
    pub(in crate::policy) artifact: Artifact,
    pub(in crate::policy) hash: Digest,
}

/// A candidate with its rollout.
pub(in crate::policy) struct Rollout {
    pub(in crate::policy) config: RolloutConfig,
    pub(in crate::policy) candidate: Arc<Plugin>,
    /// The artifact that it was prepared from, for its promotion.
    pub(in crate::policy) artifact: Artifact,
    /// Set if the candidate is a shadow.
    pub(in crate::policy) shadow: Option<Shadow>,
    begun: Instant,
}

impl Rollout {
    /// Begins the rollout of a prepared candidate.
    pub(in crate::policy) fn begin(
        wanted: &Candidate,
        candidate: Arc<Plugin>,
        shadow: Option<Shadow>,
    ) -> Self {
        let (config, artifact) = (wanted.config.clone(), wanted.artifact.clone());
        Self { config, candidate, artifact, shadow, begun: Instant::now() }
    }

    /// Whether the candidate decides for this audience.
    pub(in crate::policy) fn decides_for(&self, audience: &Audience) -> bool {
        match audience {
            Audience::Room(room) => self.decides_for_room(room.as_str()),
            Audience::Keys { keys, .. } => {
                self.is_canary() && keys.first().is_some_and(|key| self.is_chosen(key))
            }
            Audience::Everyone { .. } => false,
        }
    }

    /// Whether the candidate decides for this room.
    pub(in crate::policy) fn decides_for_room(&self, room: &str) -> bool {
        self.is_canary() && (self.config.rooms.iter().any(|named| named == room) || self.is_chosen(room))
    }

    fn is_canary(&self) -> bool {
        self.config.mode == RolloutMode::Canary
    }

    /// By a hash that includes the plugin's name, so that different plugins choose different rooms.
    fn is_chosen(&self, id: &str) -> bool {
        const PARTS: u64 = 1_000_000;
        let part = xxh3_64(format!("{}\0{id}", self.candidate.config.name).as_bytes()) % PARTS;
        (part as f64) < self.config.weight.0 * PARTS as f64
    }

    /// The current decision, compared with the active version.
    pub(in crate::policy) fn analyze(&self, active: &Plugin) -> Analysis {
        if !self.is_canary() {
            return Analysis::Continue;
        }
        let (active, canary) = (active.stats.snapshot(), self.candidate.stats.snapshot());
        analyze(active, canary, self.begun.elapsed(), self.config.promote_after, &self.config.thresholds)
    }

    /// The current status.
    pub(in crate::policy) fn status(&self, active: &Plugin) -> RolloutStatus {
        let (own, other) = (self.candidate.stats.snapshot(), active.stats.snapshot());
        RolloutStatus {
            candidate: self.candidate.module.hash,
            mode: self.config.mode,
            weight: self.config.weight,
            rooms: self.config.rooms.clone(),
            elapsed: Duration::from_secs(self.begun.elapsed().as_secs()),
            messages: own.messages,
            errors: own.errors(),
            drops: own.drops(),
            latency: own.latency(),
            active_drops: other.drops(),
            active_latency: other.latency(),
            differences: self.shadow.as_ref().map(|shadow| shadow.differences().count),
        }
    }
}

/// The status of a rollout.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RolloutStatus {
    /// The SHA-256 of the candidate's file.
    pub candidate: Digest,
    /// Its mode.
    pub mode: RolloutMode,
    /// A canary's share of the rooms.
    pub weight: Fraction,
    /// The rooms that a canary decides for, whatever the share.
    pub rooms: Vec<String>,
    /// How long it has been running, in whole seconds.
    #[serde(with = "humantime_serde")]
    pub elapsed: Duration,
    /// How many messages it filtered.
    pub messages: u64,
    /// The share of these that it failed on.
    pub errors: Fraction,
    /// The share of these that it dropped or dead-lettered.
    pub drops: Fraction,
    /// The mean time per message.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
    /// The active version's share of dropped and dead-lettered messages, in the same period.
    pub active_drops: Fraction,
    /// The active version's mean time per message.
    #[serde(with = "humantime_serde")]
    pub active_latency: Duration,
    /// How often a shadow would have decided differently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<u64>,
}
