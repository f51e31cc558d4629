//! Options and results of a redrive.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::dead_letter::Filter;
use crate::kafka::TopicSet;
use crate::message::RedriveKey;

/// What to redrive, and how.
#[derive(Clone, Debug)]
pub struct RedriveOptions {
    /// Selects the dead letters.
    pub filter: Filter,
    /// Maximum number of letters.
    pub limit: Option<u64>,
    /// Maximum number per second.
    pub rate: Option<NonZeroU32>,
    /// Include letters that were redriven before.
    pub from_start: bool,
    /// Send to all comets, including those that already accepted the message.
    pub all_comets: bool,
    /// Report only.
    pub dry_run: bool,
    /// The consumer group whose offsets store the progress.
    pub group: String,
    /// The topics that letters may go back to. Anyone who can write to the dead-letter topic can
    /// forge the origin of a letter.
    pub allowed: TopicSet,
    /// Proves redriven records. `None` in a dry run, which writes nothing.
    pub key: Option<RedriveKey>,
}

/// The outcome of one selected dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedriveOutcome {
    /// Written to this topic.
    Written(Arc<str>),
    /// The letter cannot go back as it is, for this reason. Others are not held up.
    Refused(String),
    /// Its topic did not accept it, for this reason. Reported once per topic.
    Failed(String),
}

/// The result of a redrive or dry run.
#[derive(Clone, Debug, Default)]
pub struct RedriveSummary {
    /// The dead-letter topic does not exist.
    pub missing: bool,
    /// The topic was recreated since the last run: the stored progress belongs to the previous one.
    pub recreated: bool,
    /// Confirmed by the broker, by topic. In a dry run: what would be written.
    pub redriven: BTreeMap<Arc<str>, u64>,
    /// Of these, written with the current time, because their topic refuses the original one.
    pub restamped: u64,
    /// Redriven by an earlier run, as far as this run encountered them.
    pub before: u64,
    /// Excluded by the filter.
    pub left_out: u64,
    /// Without a topic of origin or with one that is not allowed, from the dead-letter topic itself,
    /// incomplete, or refused by a topic that accepts others.
    pub refused: u64,
    /// Not accepted by their topic.
    pub failed: u64,
    /// Redriven, but too scattered for one commit: another run would repeat them.
    pub forgotten: u64,
    /// The run was stopped.
    pub interrupted: bool,
    /// Why the run ended early.
    pub aborted: Option<String>,
}
