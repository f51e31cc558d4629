//! Tracks stalls: work that is retried until it succeeds, and the records that it holds.
//!
//! The owner of held records (the pipeline while Redis or Kafka fails, the consumer at a batch that
//! it cannot read) begins a stall and drops the [`StallGuard`] when the work resumes. A stall of
//! more than five seconds is shown to the operator in `/readyz`, `GET /v1/stalls` and
//! `halley_stalled_partitions`. Stalls are also logged here, one line per stage and ten seconds,
//! however many records are held.
//!
//! There is no cost per message while everything works: a stall begins with a failure.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use crate::telemetry::{Registry, label_enum};

/// How long work may be retried before it counts as a stall.
const STALL_AFTER: Duration = Duration::from_secs(5);

/// How often a stage that holds records is logged.
const REMIND_EVERY: Duration = Duration::from_secs(10);

label_enum! {
    /// Where records are held.
    #[derive(PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum StallStage as "stage" {
        /// Reading from Kafka: a batch cannot be fetched or decompressed.
        Consume = "consume",
        /// Reading the key in Redis that proves redriven records.
        RedriveKey = "redrive-key",
        /// A policy with `on_error = "stall"`.
        Policy = "policy",
        /// The policies' shared state in Redis.
        SharedState = "shared-state",
        /// The policies' guards in Redis.
        Guard = "guard",
        /// Storing messages in the history of their room.
        History = "history",
        /// Looking up rooms and connections in Redis.
        Resolve = "resolve",
        /// Handing messages to comets whose queues are full.
        Dispatch = "dispatch",
        /// Storing messages for absent users.
        Inbox = "inbox",
        /// Writing to the notify topic.
        Notify = "notify",
        /// Writing to the archive topic, or from there to the archive's database.
        Archive = "archive",
        /// Writing to the dead-letter topic.
        DeadLetter = "dead-letter",
    }
}

impl StallStage {
    /// Whether the failing client logs an outage itself; then only a lasting one is worth a second
    /// line.
    fn client_logs_outage(self) -> bool {
        matches!(
            self,
            Self::RedriveKey | Self::SharedState | Self::Guard | Self::History | Self::Resolve | Self::Inbox
        )
    }
}

impl Display for StallStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The record that is held, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRecord {
    /// The stage that is retried.
    pub stage: StallStage,
    /// The topic of the record.
    pub topic: Arc<str>,
    /// The record's partition.
    pub partition: i32,
    /// The record's offset, or that of the first of a batch.
    pub offset: Option<i64>,
}

/// One stalled partition at one stage, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// The stage that is retried.
    pub stage: StallStage,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The first offset that is held, if known.
    pub offset: Option<i64>,
    /// How many pieces of work are held: records, or batches of them.
    pub held: usize,
    /// When the oldest of them stalled, as RFC 3339.
    pub since: String,
    /// How many seconds the stall has lasted.
    pub seconds: u64,
    /// The last error.
    pub cause: String,
}

impl Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, topic, partition, offset, since, seconds, cause, .. } = self;
        write!(f, "{stage}: holding {topic}/{partition}")?;
        if let Some(offset) = offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, " since {since} ({seconds}s): {cause}")
    }
}

/// All work that is being retried. Cheap to clone; clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Stalls(Arc<Mutex<StallsState>>);

#[derive(Debug, Default)]
struct StallsState {
    next: u64,
    held: HashMap<u64, StallEntry>,
    stages: BTreeMap<StallStage, StageLogState>,
}

#[derive(Debug)]
struct StallEntry {
    held: HeldRecord,
    since: Instant,
    cause: Option<String>,
}

/// The log state of one stage.
#[derive(Debug, Default)]
struct StageLogState {
    holding: usize,
    /// When records were last logged as held.
    logged_at: Option<Instant>,
    /// Whether the log reports held records that have not recovered.
    is_logged: bool,
}

impl Stalls {
    /// A registry of stalls, and its metric.
    pub fn register(registry: &mut Registry) -> Self {
        let stalls = Self::default();
        registry.register_collector(Box::new(stalls.clone()));
        stalls
    }

    /// Begins a stall now.
    pub fn begin(&self, held: HeldRecord) -> StallGuard {
        self.begin_since(held, Instant::now())
    }

    /// Begins a stall that has lasted since then.
    pub fn begin_since(&self, held: HeldRecord, since: Instant) -> StallGuard {
        let mut state = self.0.lock();
        state.next += 1;
        let id = state.next;
        state.stages.entry(held.stage).or_default().holding += 1;
        let stage = held.stage;
        state.held.insert(id, StallEntry { held, since, cause: None });
        StallGuard { stalls: self.clone(), id, stage }
    }

    /// The stalls of more than five seconds, by stage and partition.
    pub fn list(&self) -> Vec<Stall> {
        self.longer_than(STALL_AFTER)
    }

    /// How many pieces of work are being retried, for any time.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.0.lock().held.len()
    }

    fn longer_than(&self, least: Duration) -> Vec<Stall> {
        let state = self.0.lock();
        let mut oldest: BTreeMap<_, (&StallEntry, Option<i64>, usize)> = BTreeMap::new();
        for entry in state.held.values() {
            let HeldRecord { stage, topic, partition, offset } = &entry.held;
            let found = oldest.entry((*stage, topic, *partition)).or_insert((entry, *offset, 0));
            found.2 += 1;
            if entry.since < found.0.since {
                found.0 = entry;
            }
            if offset.is_some() && (found.1.is_none() || *offset < found.1) {
                found.1 = *offset;
            }
        }
        let lasting = oldest.into_iter().filter(|(_, (entry, ..))| entry.since.elapsed() >= least);
        lasting
            .map(|((stage, topic, partition), (entry, offset, held))| {
                let lasted = entry.since.elapsed();
                let since = SystemTime::now().checked_sub(lasted).unwrap_or(SystemTime::UNIX_EPOCH);
                Stall {
                    stage,
                    topic: Arc::clone(topic),
                    partition,
                    offset,
                    held,
                    since: humantime::format_rfc3339_seconds(since).to_string(),
                    seconds: lasted.as_secs(),
                    cause: entry.cause.clone().unwrap_or_else(|| "no answer yet".to_owned()),
                }
            })
            .collect()
    }
}

/// Stalled partitions by stage, counted at each scrape.
impl Collector for Stalls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stalls = self.list();
        let help = "Partitions whose records have been held at a stage for more than five seconds";
        let gauge = ConstGauge::new(0_i64);
        let mut family =
            encoder.encode_descriptor("halley_stalled_partitions", help, None, gauge.metric_type())?;
        for stage in StallStage::ALL {
            let partitions = stalls.iter().filter(|stall| stall.stage == stage).count();
            ConstGauge::new(partitions as i64).encode(family.encode_family(&stage)?)?;
        }
        Ok(())
    }
}

/// One stall. Dropping it means that the work has resumed.
#[derive(Debug)]
pub struct StallGuard {
    stalls: Stalls,
    id: u64,
    stage: StallStage,
}

impl StallGuard {
    /// Sets the last error, and logs occasionally that records are held.
    pub fn set_cause(&self, cause: &dyn Display) {
        let mut state = self.stalls.0.lock();
        let StallsState { held, stages, .. } = &mut *state;
        let (Some(entry), Some(stage)) = (held.get_mut(&self.id), stages.get_mut(&self.stage)) else {
            return;
        };
        let cause = entry.cause.insert(cause.to_string());
        let is_told = self.stage.client_logs_outage() && entry.since.elapsed() < STALL_AFTER;
        if is_told || stage.logged_at.is_some_and(|at| at.elapsed() < REMIND_EVERY) {
            return;
        }
        stage.logged_at = Some(Instant::now());
        stage.is_logged = true;
        let HeldRecord { topic, partition, offset, .. } = &entry.held;
        tracing::warn!(
            stage = self.stage.as_str(), %topic, partition, offset, holding = stage.holding, cause,
            "holding records, retrying until it succeeds"
        );
    }

    /// The work is cancelled, which is not a recovery.
    pub fn cancel(self) {
        // It is unknown whether it would have succeeded, so the log does not report a recovery.
        if let Some(stage) = self.stalls.0.lock().stages.get_mut(&self.stage)
            && stage.holding == 1
        {
            stage.is_logged = false;
        }
    }
}

impl Drop for StallGuard {
    fn drop(&mut self) {
        let mut state = self.stalls.0.lock();
        state.held.remove(&self.id);
        let Some(stage) = state.stages.get_mut(&self.stage) else { return };
        stage.holding = stage.holding.saturating_sub(1);
        if stage.holding == 0 && std::mem::take(&mut stage.is_logged) {
            tracing::info!(stage = self.stage.as_str(), "recovered: no records are held");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(stage: StallStage, partition: i32, offset: i64) -> HeldRecord {
        HeldRecord { stage, topic: "push".into(), partition, offset: Some(offset) }
    }

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).expect("the machine runs for longer")
    }

    fn metrics(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("a string takes it");
        text
    }

    #[test]
    fn a_lasting_stall_is_listed_with_its_first_record() {
        let stalls = Stalls::default();
        let _new = stalls.begin(held(StallStage::Guard, 0, 1));
        assert_eq!(stalls.list(), [], "what has only begun is no stall");

        let later = stalls.begin_since(held(StallStage::Inbox, 3, 41), ago(7));
        let first = stalls.begin_since(held(StallStage::Inbox, 3, 40), ago(6));
        later.set_cause(&"out of memory");
        let list = stalls.list();
        assert_eq!(list.len(), 1, "{list:?}");
        assert_eq!((list[0].offset, list[0].held, list[0].seconds), (Some(40), 2, 7));
        let text = list[0].to_string();
        assert!(text.starts_with("inbox: holding push/3 at offset 40 since 20"), "{text}");
        assert!(text.ends_with("(7s): out of memory"), "{text}");
        drop(later);
        assert_eq!(stalls.list()[0].cause, "no answer yet");
        drop(first);
        assert_eq!(stalls.list(), []);
    }

    #[test]
    fn stalled_partitions_are_counted_by_stage() {
        let mut registry = Registry::default();
        let stalls = Stalls::register(&mut registry);
        for stage in StallStage::ALL {
            let zero = format!("halley_stalled_partitions{{stage=\"{stage}\"}} 0\n");
            assert!(metrics(&registry).contains(&zero), "{}", metrics(&registry));
        }
        let guards =
            [(1, 1), (1, 2), (2, 9)].map(|(p, o)| stalls.begin_since(held(StallStage::Notify, p, o), ago(9)));
        let text = metrics(&registry);
        assert!(text.contains("halley_stalled_partitions{stage=\"notify\"} 2\n"), "{text}");
        drop(guards);
        assert!(metrics(&registry).contains("stage=\"notify\"} 0\n"));
    }

    #[test]
    fn a_stage_is_logged_once_for_many_held_records() {
        let stalls = Stalls::default();
        let logged = || {
            let state = stalls.0.lock();
            state.stages.get(&StallStage::Policy).map(|stage| (stage.logged_at, stage.is_logged))
        };
        let guards: Vec<_> =
            (0..100).map(|offset| stalls.begin(held(StallStage::Policy, 0, offset))).collect();
        guards.iter().for_each(|guard| guard.set_cause(&"away"));
        let first = logged();
        assert!(matches!(first, Some((Some(_), true))), "{first:?}");
        guards.iter().for_each(|guard| guard.set_cause(&"away"));
        assert_eq!(logged(), first);
        drop(guards);
        let (logged_at, is_logged) = logged().expect("a stage");
        assert!(!is_logged, "recovered");

        let guard = stalls.begin(held(StallStage::Policy, 0, 0));
        guard.set_cause(&"away");
        assert_eq!(logged(), Some((logged_at, false)), "one that comes and goes does not fill the log");
        guard.cancel();
        assert_eq!(stalls.0.lock().held.len(), 0);
    }
}
