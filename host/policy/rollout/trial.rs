//! A candidate beside the version in force: a canary that decides for some rooms, or a shadow
//! that looks on.
//!
//! A room is decided by one version throughout: by name, or by a hash that is the same on all
//! gateways. Messages to keys go by their first key; BROADCAST is always the version in force's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use crate::artifact::Arrived;
use crate::message::Audience;
use crate::policy::plugin::Plugin;
use crate::policy::rollout::config::{Mode, Share, TrialConfig};
use crate::policy::rollout::judge::{Judgement, judge};
use crate::policy::rollout::shadow::Shadow;

/// The file of a candidate, and how it is to be tried.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Candidate {
    pub(in crate::policy) config: TrialConfig,
    pub(in crate::policy) arrived: Arrived,
    pub(in crate::policy) hash: String,
}

/// A candidate that is tried.
pub(in crate::policy) struct Trial {
    pub(in crate::policy) config: TrialConfig,
    pub(in crate::policy) candidate: Arc<Plugin>,
    /// What it was prepared from, for its promotion.
    pub(in crate::policy) arrived: Arrived,
    /// Looks on, when that is the mode.
    pub(in crate::policy) shadow: Option<Shadow>,
    begun: Instant,
}

impl Trial {
    /// Begins to try a prepared candidate.
    pub(in crate::policy) fn begin(
        wanted: &Candidate,
        candidate: Arc<Plugin>,
        shadow: Option<Shadow>,
    ) -> Self {
        let (config, arrived) = (wanted.config.clone(), wanted.arrived.clone());
        Self { config, candidate, arrived, shadow, begun: Instant::now() }
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
        self.config.mode == Mode::Canary
    }

    /// By a hash with the plugin's name, so that not always the same rooms try what is new.
    fn is_chosen(&self, id: &str) -> bool {
        const PARTS: u64 = 1_000_000;
        let part = xxh3_64(format!("{}\0{id}", self.candidate.config.name).as_bytes()) % PARTS;
        (part as f64) < self.config.share.0 * PARTS as f64
    }

    /// What becomes of it now, compared with the version in force.
    pub(in crate::policy) fn judge(&self, active: &Plugin) -> Judgement {
        if !self.is_canary() {
            return Judgement::GoOn;
        }
        let (active, canary) = (active.tally.read(), self.candidate.tally.read());
        judge(active, canary, self.begun.elapsed(), self.config.promote_after, &self.config.budget)
    }

    /// How it stands.
    pub(in crate::policy) fn status(&self, active: &Plugin) -> TrialStatus {
        let (own, other) = (self.candidate.tally.read(), active.tally.read());
        TrialStatus {
            candidate: self.candidate.module.hash.clone(),
            mode: self.config.mode,
            share: self.config.share,
            rooms: self.config.rooms.clone(),
            tried_for: Duration::from_secs(self.begun.elapsed().as_secs()),
            messages: own.messages,
            errors: own.errors(),
            drops: own.drops(),
            latency: own.latency(),
            drops_in_force: other.drops(),
            latency_in_force: other.latency(),
            differences: self.shadow.as_ref().map(|shadow| shadow.differences().count),
        }
    }
}

/// How a trial stands.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TrialStatus {
    /// The SHA-256 of the candidate's file, in hex.
    pub candidate: String,
    /// What it may do.
    pub mode: Mode,
    /// A canary's share of the rooms.
    pub share: Share,
    /// The rooms that a canary decides for, whatever the share.
    pub rooms: Vec<String>,
    /// How long it has been tried, in whole seconds.
    #[serde(with = "humantime_serde")]
    pub tried_for: Duration,
    /// How many messages it filtered.
    pub messages: u64,
    /// The share of these that it failed on.
    pub errors: Share,
    /// The share of these that it dropped or dead-lettered.
    pub drops: Share,
    /// The mean time of a message.
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
    /// The version in force's share of dropped and dead-lettered messages, in the same time.
    pub drops_in_force: Share,
    /// The version in force's mean time of a message.
    #[serde(with = "humantime_serde")]
    pub latency_in_force: Duration,
    /// How often a shadow would have decided otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<u64>,
}
