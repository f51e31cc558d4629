//! The history of a run, and what was wrong with it: in the manner of Jepsen.
//!
//! Producers number the messages of each room; comets, inboxes and the dead-letter topic say
//! which of them they got. [`History::check`] is a plain function of what was written down, so
//! that it is itself tested on histories with planted faults.
//!
//! Order is that of first receipts, per comet and room. A message has no place in it that was
//! kept, became a dead letter or was refused by the comet: when the gateway dies before that is
//! durable, the next one delivers it, later than it was due.
//!
//! What counts: a message of a room is owed to every comet that has connections of it. The debt
//! is paid when the comet got it, when every one of its users there has it in the inbox or was
//! notified, when the whole record is a dead letter, or when a policy was to drop it. What a topic
//! held when it was deleted is not owed any more; it may still arrive.

mod check;
mod report;
#[cfg(test)]
mod tests;

pub use report::{At, Report};

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::support::comet::{Call, To};

/// Everything that is known of a run.
#[derive(Debug, Default, Clone)]
pub struct History {
    /// What times in reports count from.
    pub began: Option<Instant>,
    /// Who is owed a room's messages: the users by comet, by room.
    pub rooms: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// How often the topic was deleted and created again.
    pub incarnation: u32,
    /// What Kafka has acknowledged.
    pub sent: Vec<Sent>,
    /// What comets got; each comet's receipts in the order of their arrival.
    pub received: Vec<Receipt>,
    /// Message ids and the comets that refused them once: they have lost their place in the order.
    pub refused: BTreeSet<(String, String)>,
    /// Message ids and the users in whose inboxes they are, or who were notified.
    pub kept: BTreeSet<(String, String)>,
    /// Ids of records in the dead-letter topic.
    pub dead_lettered: BTreeSet<String>,
    /// Ids that a policy was to drop.
    pub dropped: BTreeSet<String>,
    /// When the gateway could not say what it had done.
    pub interruptions: Vec<Interruption>,
    /// What gateways said themselves of messages that would come again.
    pub excuses: Vec<Excuse>,
}

/// A message as it stands in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub room: String,
    /// Counts the room's messages.
    pub number: u64,
    /// How often the topic had been deleted and created again; offsets count in one incarnation.
    pub incarnation: u32,
    pub partition: i32,
    pub offset: i64,
    /// `<topic>/<partition>/<offset>/<fingerprint>`
    pub id: String,
}

/// A message as a comet got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub comet: String,
    /// The room that the call named.
    pub to: String,
    /// The room and number in the body.
    pub room: String,
    pub number: u64,
    /// `halley-message-id`
    pub id: String,
    /// Which version of the policies decided, when they write that into the body.
    pub version: Option<u32>,
    pub at: Instant,
}

/// A time in which an instance died, or stood still while others may have taken its work over.
/// What is repeated because of it lies at or after what was committed when it began.
#[derive(Debug, Clone)]
pub struct Interruption {
    pub from: Instant,
    pub until: Instant,
    /// The incarnation of the topic that there was then.
    pub incarnation: u32,
    /// The group's offsets at some time between `from` and `read`, by partition.
    pub committed: BTreeMap<i32, i64>,
    pub read: Instant,
}

/// A gateway has logged why messages come again: a call had no answer in time, its session was lost.
/// Machines that are busy with other things bring that about.
#[derive(Debug, Clone)]
pub struct Excuse {
    /// The comet that did not answer; `None` when it is about everything.
    pub comet: Option<String>,
    pub from: Instant,
    pub until: Instant,
}

/// How far the times of a log and those of the comets may lie apart.
const APART: Duration = Duration::from_millis(100);

impl Excuse {
    /// Whether it can be why this comet got a message at both times.
    fn covers(&self, comet: &str, first: Instant, again: Instant) -> bool {
        let concerns = self.comet.as_deref().is_none_or(|name| name == comet);
        concerns && first <= self.until + APART && self.from <= again + APART
    }
}

/// What the mask character of the first version is; later ones follow.
const FIRST_VERSION: u32 = 0x4e00;
/// What a policy replaces by its version's character.
pub const VERSION_PLACE: char = '¶';

/// The character for a version of the policies.
pub fn version_mark(version: u32) -> char {
    char::from_u32(FIRST_VERSION + version).expect("fewer versions than Chinese characters")
}

/// A message's text: `room#number` and a place for the version.
pub fn body(room: &str, number: u64) -> String {
    format!("{room}#{number} {VERSION_PLACE}")
}

/// The room, number and version in a body. Words before them are commands for a policy.
fn parse(body: &str) -> Option<(String, u64, Option<u32>)> {
    let (room, number) = body.split_whitespace().find_map(|word| word.split_once('#'))?;
    let last = body.chars().next_back()?;
    let version = u32::from(last).checked_sub(FIRST_VERSION);
    Some((room.to_owned(), number.parse().ok()?, version))
}

impl History {
    /// What a comet got of a room around a message, for whoever looks for the reason of a fault.
    pub fn around(&self, at: &At) -> String {
        let here: Vec<_> =
            self.received.iter().filter(|r| r.comet == at.comet && r.room == at.room).collect();
        let Some(began) = self.began.or(here.first().map(|first| first.at)) else {
            return "nothing at all".to_owned();
        };
        let hits = here.iter().enumerate().filter(|(_, receipt)| receipt.number == at.number);
        let line = |r: &&Receipt| format!("{:>9.3?} #{} {} v{:?}", r.at - began, r.number, r.id, r.version);
        let context = |(hit, _): (usize, _)| {
            let lines: Vec<_> =
                here[hit.saturating_sub(8)..(hit + 5).min(here.len())].iter().map(line).collect();
            lines.join("\n")
        };
        format!("{} at {}:\n{}", at.room, at.comet, hits.map(context).collect::<Vec<_>>().join("\n...\n"))
    }
}

impl Sent {
    /// A message whose record has this id.
    ///
    /// # Panics
    /// When it is no `<topic>/<partition>/<offset>/<fingerprint>`.
    pub fn new(room: &str, number: u64, id: String) -> Self {
        let mut parts = id.rsplit('/').skip(1).map(|part| part.parse::<i64>().expect("numbers in an id"));
        let (offset, partition) = (parts.next().expect("an offset"), parts.next().expect("a partition"));
        Self { room: room.to_owned(), number, incarnation: 0, partition: partition as i32, offset, id }
    }
}

/// The receipts in a comet's calls, of which those that it refused are none.
///
/// # Panics
/// When a call is not for a room or a body is not one of ours: no story sends such.
pub fn receipts(comet: &str, calls: &[Call]) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for call in calls.iter().filter(|call| !call.refused) {
        let To::Room(to) = &call.to else { panic!("{comet} got a call for {:?}", call.to) };
        let deliveries = call.deliveries();
        assert_eq!(deliveries.len(), call.messages.len(), "{comet}: an id for each message: {call:?}");
        for ((_, body), id) in deliveries.iter().zip(&call.messages) {
            let body = String::from_utf8_lossy(body);
            let (room, number, version) =
                parse(&body).unwrap_or_else(|| panic!("{comet} got `{body}`, which nobody has sent"));
            let (comet, to, id) = (comet.to_owned(), to.clone(), id.clone());
            receipts.push(Receipt { comet, to, room, number, id, version, at: call.at });
        }
    }
    receipts
}
