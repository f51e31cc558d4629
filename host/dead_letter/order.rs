//! What somebody asks of a redrive, and what became of it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::dead_letter::Filter;
use crate::kafka::TopicSet;
use crate::message::RedriveKey;

/// What is to be redriven, and how.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which dead letters.
    pub filter: Filter,
    /// At most so many.
    pub limit: Option<u64>,
    /// At most so many a second.
    pub rate: Option<NonZeroU32>,
    /// Also those that were redriven before.
    pub from_start: bool,
    /// To all comets, also those that took the message before.
    pub all_comets: bool,
    /// Only tells what it would do.
    pub dry_run: bool,
    /// The consumer group whose offsets remember the progress.
    pub group: String,
    /// Where letters may go back to. What a letter says of its origin, anybody may have written who
    /// can write to the dead-letter topic.
    pub allowed: TopicSet,
    /// Proves what is redriven. `None` in a dry run, which writes nothing.
    pub key: Option<RedriveKey>,
}

/// What becomes of one dead letter that the filter means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes to this topic.
    Written(Arc<str>),
    /// It can not go back as it is; why. It holds up no other.
    Refused(String),
    /// Its topic did not take it; why. Told once for each topic.
    Failed(String),
}

/// What a redrive did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// There is no dead-letter topic.
    pub missing: bool,
    /// The topic was made again since the last run: what was redriven before is another topic's.
    pub made_again: bool,
    /// Confirmed by the broker, by topic. In a dry run: what would be written.
    pub redriven: BTreeMap<Arc<str>, u64>,
    /// Of these, written with the time of now, because their topic refuses their own.
    pub restamped: u64,
    /// Redriven by an earlier run, as far as they were met.
    pub before: u64,
    /// Left out by the filter.
    pub left_out: u64,
    /// Without a topic of origin or with one that is not allowed, from the dead-letter topic itself,
    /// without their value, or not taken by a topic that takes others.
    pub refused: u64,
    /// Not taken by their topic.
    pub failed: u64,
    /// Redriven, but more scattered than a commit can tell: another run would repeat them.
    pub forgotten: u64,
    /// It was told to stop.
    pub interrupted: bool,
    /// Why it ended early.
    pub broken: Option<String>,
}
