//! Which version of a plugin is desired, which one decides from now on, and whether it may: its file, its
//! override, or what an operator chose.

use std::time::SystemTime;

use crate::artifact::{
    Artifact, ArtifactError, EffectiveVersion, Exclusion, OverrideCause, PluginLoader, RolloutResult,
    VersionChange, VersionOverride, Versions, check_order,
};
use crate::digest::Digest;
use crate::policy::config::PluginConfig;
use crate::policy::rollout::candidate::Candidate;

/// A desired plugin.
#[derive(Clone, Debug)]
pub(super) struct DesiredPlugin {
    pub(super) config: PluginConfig,
    pub(super) desired: DesiredVersion,
}

/// Which version of a plugin is desired.
#[derive(Clone, Debug)]
pub(super) enum DesiredVersion {
    /// Its file, or its current override.
    File,
    /// An operator's change.
    OperatorChange(OperatorChange),
    /// The active version, whatever its file is now: an operator changed another plugin.
    KeepCurrent,
}

/// A change that an operator or the quarantine makes to one plugin.
#[derive(Clone, Debug)]
pub(super) struct OperatorChange {
    pub(super) pick: VersionChoice,
    /// Its cause; `None` if it only keeps what was active before.
    pub(super) cause: Option<OverrideCause>,
    pub(super) why: String,
    /// Why the version that was active is excluded from rollbacks.
    pub(super) exclusion: Option<Exclusion>,
    /// The candidate whose rollout ends with this change.
    pub(super) rollout_result: Option<RolloutResult>,
}

impl OperatorChange {
    /// Keeps the version that was active.
    pub(super) fn keep_active(hash: Digest, why: &str) -> Self {
        Self::of(VersionChoice::Stored(hash), None, why)
    }

    /// Selects this version, for this cause.
    pub(super) fn of(pick: VersionChoice, cause: Option<OverrideCause>, why: &str) -> Self {
        Self { pick, cause, why: why.to_owned(), exclusion: None, rollout_result: None }
    }
}

/// The version that a change selects.
#[derive(Clone, Debug)]
pub(super) enum VersionChoice {
    /// Its file, discarding any override.
    File,
    /// This version, which was uploaded.
    Upload(Artifact),
    /// The stored version with this hash.
    Stored(Digest),
    /// None: the chain continues without the plugin.
    Without,
}

/// Selects the version that decides from now on, and the override of the plugin's file. A new version
/// has to match the pin; a version that decides has to be trusted, every time.
pub(super) fn decide(
    loader: &PluginLoader,
    versions: &Versions,
    config: &PluginConfig,
    operator_change: Option<&OperatorChange>,
) -> Result<VersionChange, ArtifactError> {
    let (name, pin) = (&config.name, config.sha256);
    let file = loader.fetch(&config.path);
    let file_hash = file.as_ref().ok().map(|file| Digest::of(&file.bytes));
    let known = versions.record(name).and_then(|record| record.version_override);
    let change = |decides: Option<Trusted>, why: &str, version_override| {
        let exclusion = operator_change.and_then(|operator_change| operator_change.exclusion.clone());
        let rollout_result =
            operator_change.and_then(|operator_change| operator_change.rollout_result.clone());
        let signed = decides.as_ref().and_then(|trusted| trusted.signed);
        let to = decides.map(|trusted| (trusted.hash, trusted.artifact));
        VersionChange {
            plugin: name.clone(),
            to,
            signed,
            why: why.to_owned(),
            version_override,
            exclusion,
            rollout_result,
        }
    };
    let trusted = |artifact: Artifact, pin: Option<Digest>| {
        trust_new(loader, versions, config, artifact, pin).map(Some)
    };
    // A version that was active before may come back whatever its number is: only an operator or a
    // quarantine brings it back.
    let kept = |hash: Digest, pin: Option<Digest>| {
        let kept = versions.file(name, hash).and_then(|artifact| Trusted::new(loader, name, artifact, pin));
        kept.map(Some).map_err(|why| why.map_text(|why| format!("has a stored version, {hash}, that {why}")))
    };
    let Some(operator_change) = operator_change else {
        let why = known.as_ref().map_or("", |known| &known.why).to_owned();
        return Ok(match versions.choose(name, file_hash) {
            EffectiveVersion::File => change(trusted(file?, pin)?, "its file", None),
            EffectiveVersion::Stored(hash) => {
                // A pin is newer than a push; after a rollback or a quarantine it names the abandoned
                // version.
                let pushed = known.as_ref().is_some_and(|known| known.cause == OverrideCause::Pushed);
                change(kept(hash, pin.filter(|_| pushed))?, &why, known)
            }
            EffectiveVersion::Without => change(None, &why, known),
        });
    };
    let to = match &operator_change.pick {
        VersionChoice::File => trusted(file?, pin)?,
        VersionChoice::Upload(upload) => trusted(upload.clone(), pin)?,
        VersionChoice::Stored(hash) => kept(*hash, None)?,
        VersionChoice::Without => None,
    };
    let with = to.as_ref().map(|trusted| trusted.hash);
    let version_override = match operator_change.cause {
        // The file has the same content.
        _ if with.is_some() && with == file_hash => None,
        None => known,
        Some(cause) => {
            let (why, since) = (operator_change.why.clone(), SystemTime::now());
            Some(VersionOverride { file: file_hash, with, cause, why, since })
        }
    };
    Ok(change(to, &operator_change.why, version_override))
}

/// A version that may decide.
struct Trusted {
    hash: Digest,
    artifact: Artifact,
    /// The number that it is signed with.
    signed: Option<u64>,
}

impl Trusted {
    fn new(
        loader: &PluginLoader,
        name: &str,
        artifact: Artifact,
        pin: Option<Digest>,
    ) -> Result<Self, ArtifactError> {
        let signed = loader.check(name, &artifact, pin)?;
        Ok(Self { hash: Digest::of(&artifact.bytes), artifact, signed })
    }
}

/// Checks a new version: it has to match the pin, be trusted, and not be older than a version that
/// was active.
fn trust_new(
    loader: &PluginLoader,
    versions: &Versions,
    config: &PluginConfig,
    artifact: Artifact,
    pin: Option<Digest>,
) -> Result<Trusted, ArtifactError> {
    let trusted = Trusted::new(loader, &config.name, artifact, pin)?;
    if loader.requires_signatures() && !config.allow_downgrade {
        let highest_signed = versions.record(&config.name).and_then(|record| record.highest_signed);
        check_order(&config.name, trusted.signed, highest_signed)?;
    }
    Ok(trusted)
}

/// The candidate to roll out, unless its rollout has ended already or it is the deciding version.
pub(super) fn candidate(
    loader: &PluginLoader,
    versions: &Versions,
    config: &PluginConfig,
    change: &VersionChange,
) -> Result<Option<Candidate>, ArtifactError> {
    let Some(rollout) = &config.rollout else { return Ok(None) };
    let pin = rollout.sha256;
    let trusted =
        loader.fetch(&rollout.path).and_then(|artifact| trust_new(loader, versions, config, artifact, pin));
    let trusted = trusted
        .map_err(|why| why.map_text(|why| format!("has a candidate ({}) that {why}", rollout.path)))?;
    let Trusted { hash, artifact, .. } = trusted;
    let rollout_result = versions.record(&config.name).and_then(|record| record.rollout_result);
    let over = [rollout_result.as_ref(), change.rollout_result.as_ref()]
        .into_iter()
        .flatten()
        .any(|rollout_result| rollout_result.hash == hash);
    let decides = change.to.as_ref().is_some_and(|(deciding, _)| *deciding == hash);
    Ok((!over && !decides).then(|| Candidate { config: rollout.clone(), artifact, hash }))
}
