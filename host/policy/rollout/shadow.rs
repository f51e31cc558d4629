//! A candidate that observes without effect: it sees what the active version filtered, on a thread of
//! its own, and the messages that it would have decided differently are counted and sampled.
//!
//! It has no effect: batches that do not fit into its queue are skipped, and its state and its
//! metrics are separate from the plugin's. Only `filter` is compared; groupings and dispositions
//! depend on who is connected where.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use crate::decision::{FilteredMessage, Verdict};
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
    /// The kind of difference: `verdict`, `message`, `comets`, `guards` or `failed`.
    pub kind: &'static str,
    /// What the active version did.
    pub active: String,
    /// What the candidate would have done.
    pub candidate: String,
}

struct DifferenceLog {
    ended: AtomicBool,
    compared: AtomicU64,
    not_compared: AtomicU64,
    count: AtomicU64,
    latest: Mutex<VecDeque<Difference>>,
    log: LogThrottle,
}

impl Shadow {
    /// Starts the candidate's thread. `filter` lets the candidate decide about messages of a topic's
    /// partition.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(in crate::policy) fn start(
        candidate: &Arc<Plugin>,
        filter: impl FnMut(&str, i32, &mut [FilteredMessage]) + Send + 'static,
    ) -> Result<Self, String> {
        let (queue, waiting) = sync_channel(WAITING);
        let found = Arc::new(DifferenceLog {
            ended: AtomicBool::new(false),
            compared: AtomicU64::new(0),
            not_compared: AtomicU64::new(0),
            count: AtomicU64::new(0),
            latest: Mutex::default(),
            log: LogThrottle::new(1, Duration::from_secs(1)),
        });
        let (looker, candidate) = (Arc::clone(&found), Arc::clone(candidate));
        let thread = std::thread::Builder::new().name("shadow".to_owned());
        let started = thread.spawn(move || mirror(&waiting, &looker, &candidate, filter));
        started.map_err(|e| format!("cannot start a thread for its candidate: {e}"))?;
        Ok(Self { queue, found })
    }

    /// Queues what the active version decided. Never waits.
    pub(in crate::policy) fn show(&self, seen: MirroredBatch) {
        let messages = seen.before.len() as u64;
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
    mut filter: impl FnMut(&str, i32, &mut [FilteredMessage]),
) {
    while let Ok(mut seen) = waiting.recv() {
        if found.ended.load(Relaxed) {
            return;
        }
        filter(&seen.topic, seen.partition, &mut seen.before);
        for (candidates, active) in seen.before.iter().zip(&seen.after) {
            found.compared.fetch_add(1, Relaxed);
            if let Some(kind) = differ(active, candidates) {
                found.note(kind, active, candidates, candidate);
            }
        }
    }
}

impl DifferenceLog {
    fn note(
        &self,
        kind: &'static str,
        active: &FilteredMessage,
        candidates: &FilteredMessage,
        candidate: &Plugin,
    ) {
        self.count.fetch_add(1, Relaxed);
        candidate.context.metrics.differed(kind);
        let difference = Difference {
            at: SystemTime::now(),
            message: active.message.id.to_string(),
            kind,
            active: words(active),
            candidate: words(candidates),
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

/// The kind of difference between two outcomes for a message.
fn differ(one: &FilteredMessage, other: &FilteredMessage) -> Option<&'static str> {
    let failed = |filtered: &FilteredMessage| {
        filtered.trail.last().is_some_and(|last| last.what.starts_with("failed: "))
    };
    if failed(one) != failed(other) {
        return Some("failed");
    }
    if verdict(&one.verdict) != verdict(&other.verdict) {
        return Some("verdict");
    }
    match one.differing(other).first() {
        None => None,
        Some(&"comets") => Some("comets"),
        Some(&"guards") => Some("guards"),
        Some(_) => Some("message"),
    }
}

/// A verdict without its author. Reasons of failures name versions, so they are ignored.
fn verdict(verdict: &Verdict) -> (&'static str, &str) {
    let own = |reason: &'static str, text| (reason, text);
    match verdict {
        Verdict::Pass => own("pass", ""),
        Verdict::Drop { reason, .. } => own("drop", own_words(reason)),
        Verdict::DeadLetter { reason, .. } => own("dead-letter", own_words(reason)),
    }
}

fn own_words(reason: &str) -> &str {
    if reason.starts_with("plugin ") { "" } else { reason }
}

/// What was done to a message, as text.
fn words(filtered: &FilteredMessage) -> String {
    let body = String::from_utf8_lossy(&filtered.message.body);
    let shown = &body[..body.floor_char_boundary(80)];
    match filtered.trail.last() {
        Some(last) if last.what.starts_with("amended") => format!("{}: {shown}", last.what),
        Some(last) => last.what.clone(),
        None => "passed".to_owned(),
    }
}
