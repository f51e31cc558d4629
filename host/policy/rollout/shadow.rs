//! A candidate that observes without effect: it sees what the active version filtered, on a thread of
//! its own, and the messages that it would have decided differently are counted and sampled.
//!
//! It has no effect: batches that do not fit into its queue are skipped, and its state and its
//! metrics are separate from the plugin's. Only `filter` and `retention` are compared; groupings and
//! dispositions depend on who is connected where.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use parking_lot::Mutex;
use serde::Serialize;
use smart_default::SmartDefault;

use crate::decision::{DifferenceKind, Effect, FilteredMessage, MessagePart};
use crate::policy::batch_hook::BatchHook;
use crate::policy::plugin::Plugin;
use crate::telemetry::LogThrottle;

/// How many batches may be queued.
const WAITING: usize = 16;
/// How many differences are kept; the oldest are dropped.
const KEPT: usize = 100;

/// What the active version saw of a batch, and what it decided.
pub(in crate::policy) struct MirroredBatch {
    pub(in crate::policy) topic: String,
    pub(in crate::policy) partition: i32,
    pub(in crate::policy) hook: BatchHook,
    /// Whether the messages have not been compared yet, for another hook.
    pub(in crate::policy) is_first: bool,
    pub(in crate::policy) before: Vec<FilteredMessage>,
    pub(in crate::policy) after: Vec<FilteredMessage>,
}

/// A shadow. Its thread ends after the current batch once this is dropped.
pub(in crate::policy) struct Shadow {
    queue: SyncSender<MirroredBatch>,
    found: Arc<DifferenceLog>,
}

/// What it would have decided differently.
#[derive(Clone, Debug, Serialize)]
pub struct Differences {
    /// The messages that were compared.
    pub compared: u64,
    /// The messages that it was not shown, because its queue was full.
    pub not_compared: u64,
    /// The messages that it would have decided differently.
    pub count: u64,
    /// The latest of these, oldest first.
    pub latest: Vec<Difference>,
}

/// One message that it would have decided differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// When it was found.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// The message's id.
    pub message: String,
    /// The kind of difference: `verdict`, `message`, `comets`, `guards`, `retention` or `failed`.
    pub kind: DifferenceKind,
    /// What the active version did.
    pub active: String,
    /// What the candidate would have done.
    pub candidate: String,
}

#[derive(SmartDefault)]
struct DifferenceLog {
    ended: AtomicBool,
    compared: AtomicU64,
    not_compared: AtomicU64,
    count: AtomicU64,
    latest: Mutex<VecDeque<Difference>>,
    #[default(LogThrottle::new(1, Duration::from_secs(1)))]
    log: LogThrottle,
}

impl Shadow {
    /// Starts the candidate's thread. `decide` lets the candidate decide about the messages as they were
    /// before.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(in crate::policy) fn start(
        candidate: &Arc<Plugin>,
        decide: impl FnMut(&mut MirroredBatch) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(WAITING);
        let found = Arc::new(DifferenceLog::default());
        let (looker, candidate) = (Arc::clone(&found), Arc::clone(candidate));
        let thread = std::thread::Builder::new().name("shadow".to_owned());
        thread.spawn(move || mirror(&waiting, &looker, &candidate, decide))?;
        Ok(Self { queue, found })
    }

    /// Queues what the active version decided. Never waits.
    pub(in crate::policy) fn show(&self, seen: MirroredBatch) {
        let messages = if seen.is_first { seen.before.len() as u64 } else { 0 };
        if self.queue.try_send(seen).is_err() {
            self.found.not_compared.fetch_add(messages, Relaxed);
        }
    }

    /// What it would have decided differently.
    pub(in crate::policy) fn differences(&self) -> Differences {
        let latest = self.found.latest.lock();
        Differences {
            compared: self.found.compared.load(Relaxed),
            not_compared: self.found.not_compared.load(Relaxed),
            count: self.found.count.load(Relaxed),
            latest: latest.iter().cloned().collect(),
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.found.ended.store(true, Relaxed);
    }
}

fn mirror(
    waiting: &Receiver<MirroredBatch>,
    found: &DifferenceLog,
    candidate: &Plugin,
    mut decide: impl FnMut(&mut MirroredBatch),
) {
    while let Ok(mut seen) = waiting.recv() {
        if found.ended.load(Relaxed) {
            return;
        }
        // What earlier plugins did is irrelevant here.
        let earlier: Vec<usize> = seen.before.iter().map(|message| message.trail.len()).collect();
        decide(&mut seen);
        if seen.is_first {
            found.compared.fetch_add(seen.before.len() as u64, Relaxed);
        }
        for ((candidates, active), earlier) in seen.before.iter().zip(&seen.after).zip(earlier) {
            let (active, candidates) = (Decided::of(active, earlier), Decided::of(candidates, earlier));
            if let Some(kind) = active.differs_from(&candidates) {
                found.note(kind, &active, &candidates, candidate);
            }
        }
    }
}

impl DifferenceLog {
    fn note(&self, kind: DifferenceKind, active: &Decided<'_>, candidates: &Decided<'_>, candidate: &Plugin) {
        self.count.fetch_add(1, Relaxed);
        candidate.context.metrics.differed(kind);
        let difference = Difference {
            at: SystemTime::now(),
            message: active.filtered.message.id.to_string(),
            kind,
            active: active.to_string(),
            candidate: candidates.to_string(),
        };
        if let Some(missed) = self.log.admit() {
            let Difference { message, active, candidate: would, .. } = &difference;
            let plugin = &candidate.version;
            tracing::info!(%plugin, message, active, would, missed, "a candidate would have decided differently");
        }
        let mut latest = self.latest.lock();
        if latest.len() >= KEPT {
            latest.pop_front();
        }
        latest.push_back(difference);
    }
}

/// What one version did to a message, and the message after it.
struct Decided<'a> {
    effect: &'a Effect,
    filtered: &'a FilteredMessage,
}

impl<'a> Decided<'a> {
    /// The first `earlier` entries of the trail are of other plugins.
    fn of(filtered: &'a FilteredMessage, earlier: usize) -> Self {
        Self { effect: filtered.effect_after(earlier), filtered }
    }

    /// The kind of difference, if the versions differ. All failures with the same consequence are equal.
    fn differs_from(&self, other: &Self) -> Option<DifferenceKind> {
        use Effect::{DeadLettered, Dropped, Failed};
        let is_same_verdict = match (self.effect, other.effect) {
            (Failed { then: one, .. }, Failed { then: other, .. }) => one == other,
            (Failed { .. }, _) | (_, Failed { .. }) => return Some(DifferenceKind::Failed),
            (Dropped { reason: one }, Dropped { reason: other }) => one == other,
            (DeadLettered { reason: one }, DeadLettered { reason: other }) => one == other,
            (Dropped { .. } | DeadLettered { .. }, _) | (_, Dropped { .. } | DeadLettered { .. }) => false,
            _ => true,
        };
        if !is_same_verdict {
            return Some(DifferenceKind::Verdict);
        }
        let differing = self.filtered.differing(other.filtered);
        differing.first().map(|part| match part {
            MessagePart::Comets => DifferenceKind::Comets,
            MessagePart::Guards => DifferenceKind::Guards,
            MessagePart::Retention => DifferenceKind::Retention,
            MessagePart::Body
            | MessagePart::Operation
            | MessagePart::Room
            | MessagePart::Keys
            | MessagePart::Recipients => DifferenceKind::Message,
        })
    }
}

/// With the beginning of the body, if it was amended.
impl fmt::Display for Decided<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.effect.fmt(f)?;
        if let Effect::Amended(_) = self.effect {
            let body = String::from_utf8_lossy(&self.filtered.message.body);
            write!(f, ": {}", &body[..body.floor_char_boundary(80)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{FailureKind, OnError, PluginVersion, TrailEntry};
    use crate::message::{Audience, Message, Origin, Record};

    fn message() -> Message {
        let origin = Origin { topic: "push".into(), partition: 0, offset: 1 };
        let headers = Vec::new();
        let record = Record { origin, timestamp_ms: None, key: None, value: None, headers, trusted: false };
        let (id, audience) = (record.message_id(), Audience::Room("lobby".into()));
        Message { id, record: Arc::new(record), audience, operation: 4, body: "hello".into() }
    }

    fn after(trail: &[Effect]) -> FilteredMessage {
        let mut filtered = FilteredMessage::untouched(message());
        let by = PluginVersion { name: "p".into(), hash: "0a1b".into() };
        filtered.trail =
            trail.iter().map(|effect| TrailEntry { by: by.clone(), effect: effect.clone() }).collect();
        filtered
    }

    fn kind(active: &[Effect], candidate: &[Effect], earlier: usize) -> Option<DifferenceKind> {
        let (active, candidate) = (after(active), after(candidate));
        Decided::of(&active, earlier).differs_from(&Decided::of(&candidate, earlier))
    }

    fn failed(then: OnError, text: &str) -> Effect {
        Effect::Failed { kind: FailureKind::Trap, text: text.into(), then }
    }

    #[test]
    fn a_reason_that_begins_like_a_failure_is_compared() {
        let dropped = |reason: &str| [Effect::Dropped { reason: reason.into() }];
        let letter = |reason: &str| [Effect::DeadLettered { reason: reason.into() }];
        let (one, other) = ("plugin a says no", "plugin b says no");
        assert_eq!(kind(&dropped(one), &dropped(other), 0), Some(DifferenceKind::Verdict));
        assert_eq!(kind(&letter(one), &letter(other), 0), Some(DifferenceKind::Verdict));
        assert_eq!(kind(&dropped(one), &letter(one), 0), Some(DifferenceKind::Verdict));
        assert_eq!(kind(&dropped(one), &dropped(one), 0), None);
        let failures = [failed(OnError::Drop, "trapped: a"), failed(OnError::Drop, "trapped: b")];
        assert_eq!(kind(&failures[..1], &failures[1..], 0), None);
        assert_eq!(kind(&dropped("failed: x"), &failures[..1], 0), Some(DifferenceKind::Failed));
    }

    #[test]
    fn effects_of_earlier_plugins_are_not_compared() {
        let amended = Effect::Amended(vec![MessagePart::Body]);
        for earlier in [amended, failed(OnError::Pass, "trapped")] {
            let active = [earlier.clone()];
            let candidate = [earlier, failed(OnError::Pass, "trapped")];
            assert_eq!(kind(&active, &candidate, 1), Some(DifferenceKind::Failed));
            assert_eq!(kind(&active, &active, 1), None);
            assert_eq!(Decided::of(&after(&active), 1).to_string(), "passed");
        }
    }
}
