//! The history of one plugin: its versions, when and why they were activated and deactivated, and the
//! override of its file. Plain data and pure rules.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The maximum number of events per version; the oldest are dropped.
const MAX_EVENTS: usize = 20;

/// One stored version of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredVersion {
    /// The SHA-256 of its file.
    pub hash: Digest,
    /// The file's size in bytes.
    pub size: u64,
    /// Why it is excluded from rollbacks, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusion: Option<Exclusion>,
    /// Its activations and deactivations with reasons, oldest first.
    pub events: Vec<VersionEvent>,
}

/// Why a version is excluded from rollbacks that do not name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", content = "why", rename_all = "kebab-case")]
pub enum Exclusion {
    /// It failed too often.
    Quarantined(String),
    /// An operator rolled it back.
    RolledBack,
}

/// One activation or deactivation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEvent {
    /// When.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// Whether it was activated or deactivated.
    pub what: Transition,
    /// Such as `its file`, `pushed`, `quarantined: 100 failures within 1m`.
    pub why: String,
}

/// An activation or a deactivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transition {
    /// Activated.
    Activated,
    /// Deactivated.
    Deactivated,
}

/// The override of a plugin's file, until that changes or an operator releases it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionOverride {
    /// The hash of the file that is overridden; `None` if it could not be read.
    pub file: Option<Digest>,
    /// The version that decides; `None` if the chain continues without the plugin.
    pub with: Option<Digest>,
    /// How it came about.
    pub cause: OverrideCause,
    /// The cause as text.
    pub why: String,
    /// Since when.
    #[serde(with = "humantime_serde")]
    pub since: SystemTime,
}

/// Why a version overrides the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverrideCause {
    /// It was pushed.
    Pushed,
    /// An operator rolled back to it.
    RolledBack,
    /// The file's version failed too often.
    Quarantined,
}

/// What decides: the plugin's file or its override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EffectiveVersion {
    File,
    /// The kept version with this hash.
    Stored(Digest),
    /// Nothing: the chain continues without the plugin.
    Without,
}

/// The history of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionHistory {
    /// The most recently activated version first.
    pub(crate) versions: Vec<StoredVersion>,
    /// The hash of the active version.
    pub(crate) active: Option<Digest>,
    pub(crate) version_override: Option<VersionOverride>,
    /// The candidate whose rollout ended last: it is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rollout_result: Option<RolloutResult>,
    /// The highest number that an active version was signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) highest_signed: Option<u64>,
}

/// A finished rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutResult {
    /// The SHA-256 of the candidate's file.
    pub hash: Digest,
    /// Such as `promoted`, or the limit that it exceeded.
    pub why: String,
    /// When.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
}

/// Why there is no version to roll back to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VersionError {
    /// The prefix is too short.
    #[error("more than one version matches {0}; give more digits")]
    Ambiguous(String),
    /// No stored version has this prefix.
    #[error("version {prefix} not found; stored versions: {kept}")]
    NotFound {
        /// What was given.
        prefix: String,
        /// The hashes of the stored versions.
        kept: String,
    },
    /// None was active before, or all of them are excluded.
    #[error("has no known-good version to roll back to")]
    NoneGood,
}

impl VersionHistory {
    /// What decides if the file has this hash. An override applies to that file only; a new one ends
    /// it.
    pub(crate) fn choose(&self, file: Option<Digest>) -> EffectiveVersion {
        match &self.version_override {
            Some(version_override) if version_override.file == file => {
                version_override.with.map_or(EffectiveVersion::Without, EffectiveVersion::Stored)
            }
            _ => EffectiveVersion::File,
        }
    }

    /// The versions to roll back to, the most recent first: those that are not excluded.
    pub(crate) fn rollback_candidates(&self) -> impl Iterator<Item = &StoredVersion> {
        let active = self.active;
        let good =
            move |version: &&StoredVersion| version.exclusion.is_none() && Some(version.hash) != active;
        self.versions.iter().filter(good)
    }

    /// The version with this hash prefix.
    ///
    /// # Errors
    /// When no version matches, or more than one.
    pub(crate) fn find(&self, prefix: &str) -> Result<&StoredVersion, VersionError> {
        let mut found = self.versions.iter().filter(|version| version.hash.starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(version), None) => Ok(version),
            (Some(_), Some(_)) => Err(VersionError::Ambiguous(prefix.to_owned())),
            (None, _) => {
                let kept: Vec<String> = self.versions.iter().map(|version| version.hash.short()).collect();
                let kept = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
                Err(VersionError::NotFound { prefix: prefix.to_owned(), kept })
            }
        }
    }

    /// Activates a version, or none.
    pub(crate) fn transition(&mut self, to: Option<(Digest, u64)>, why: &str, at: SystemTime) {
        if to.map(|(hash, _)| hash) == self.active {
            return;
        }
        if let Some(gone) = self.active.take() {
            self.note(gone, VersionEvent { at, what: Transition::Deactivated, why: why.to_owned() });
        }
        let Some((hash, size)) = to else { return };
        let known = self.versions.iter().position(|version| version.hash == hash);
        let fresh = || StoredVersion { hash, size, exclusion: None, events: Vec::new() };
        let version = known.map_or_else(fresh, |at| self.versions.remove(at));
        self.versions.insert(0, StoredVersion { exclusion: None, ..version });
        self.note(hash, VersionEvent { at, what: Transition::Activated, why: why.to_owned() });
        self.active = Some(hash);
    }

    /// Excludes a version from rollbacks, until it is activated again.
    pub(crate) fn exclude(&mut self, hash: Digest, exclusion: Exclusion) {
        if let Some(version) = self.versions.iter_mut().find(|version| version.hash == hash) {
            version.exclusion = Some(exclusion);
        }
    }

    /// Removes all but the latest versions, and those in use.
    pub(crate) fn prune(&mut self, keep: usize) {
        let in_use =
            [self.active, self.version_override.as_ref().and_then(|version_override| version_override.with)];
        let mut kept = 0;
        self.versions.retain(|version| {
            kept += 1;
            kept <= keep || in_use.iter().flatten().any(|used| *used == version.hash)
        });
    }

    fn note(&mut self, hash: Digest, event: VersionEvent) {
        if let Some(version) = self.versions.iter_mut().find(|version| version.hash == hash) {
            if version.events.len() >= MAX_EVENTS {
                version.events.remove(0);
            }
            version.events.push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    /// The digest of 64 times the same digit.
    fn of(digit: &str) -> Digest {
        digit.repeat(64).parse().unwrap()
    }

    fn record(digits: &[&str]) -> VersionHistory {
        let mut record = VersionHistory::default();
        for digit in digits {
            record.transition(Some((of(digit), 1)), "its file", NOW);
        }
        record
    }

    fn version_override(file: &str, with: Option<&str>) -> VersionOverride {
        let (file, with) = (Some(of(file)), with.map(of));
        VersionOverride { file, with, cause: OverrideCause::RolledBack, why: String::new(), since: NOW }
    }

    #[test]
    fn a_new_file_ends_the_override() {
        let mut record = record(&["a", "b"]);
        assert_eq!(record.choose(Some(of("b"))), EffectiveVersion::File);
        record.version_override = Some(version_override("b", Some("a")));
        assert_eq!(record.choose(Some(of("b"))), EffectiveVersion::Stored(of("a")));
        assert_eq!(record.choose(Some(of("c"))), EffectiveVersion::File);
        assert_eq!(record.choose(None), EffectiveVersion::File, "a missing file is read, and refused");
        record.version_override = Some(version_override("b", None));
        assert_eq!(record.choose(Some(of("b"))), EffectiveVersion::Without);
    }

    #[test]
    fn a_second_rollback_skips_the_rolled_back_version() {
        let mut record = record(&["a", "b", "c"]);
        for expected in ["b", "a"] {
            let good = record.rollback_candidates().next().unwrap().hash;
            assert_eq!(good, of(expected));
            let left = record.active.unwrap();
            record.transition(Some((good, 1)), "rolled back", NOW);
            record.exclude(left, Exclusion::RolledBack);
        }
        assert_eq!(record.rollback_candidates().next(), None);
        record.transition(Some((of("c"), 1)), "its file", NOW);
        assert_eq!(record.rollback_candidates().next().unwrap().hash, of("a"), "`b` stays excluded");
    }

    #[test]
    fn versions_in_use_are_never_forgotten() {
        let mut record = record(&["a", "b", "c", "d"]);
        record.version_override = Some(version_override("d", Some("a")));
        record.prune(2);
        let hashes: Vec<Digest> = record.versions.iter().map(|version| version.hash).collect();
        assert_eq!(hashes, ["d", "c", "a"].map(of));
    }

    #[test]
    fn a_version_is_found_by_hash_prefix() {
        let mut record = record(&["a"]);
        let other = "a".repeat(63) + "b";
        record.transition(Some((other.parse().unwrap(), 1)), "its file", NOW);
        assert_eq!(record.find(&other).unwrap().hash.to_string(), other);
        assert_eq!(record.find("aa").unwrap_err(), VersionError::Ambiguous("aa".into()));
        assert!(record.find("b").unwrap_err().to_string().contains("stored versions: aaaaaaaaaaaa"));
    }

    #[test]
    fn transitions_are_recorded_once() {
        let mut record = record(&["a", "a"]);
        assert_eq!(record.versions[0].events.len(), 1, "an active version is not activated again");
        record.transition(None, "removed from the configuration", NOW);
        let turns: Vec<Transition> = record.versions[0].events.iter().map(|event| event.what).collect();
        assert_eq!((turns, record.active), (vec![Transition::Activated, Transition::Deactivated], None));
    }
}
