//! The history of a run and its faults, in the manner of Jepsen.
//!
//! Producers number the messages of each room; comets, inboxes and the dead-letter topic show which
//! of them arrived. [`History::check`] is a pure function of the recorded data, so that it is itself
//! tested with planted faults.
//!
//! The order is that of first receipts, per comet and room. Messages that were stored, became dead
//! letters or were refused by the comet are not part of it: if the gateway dies before that is
//! durable, the next one delivers them late.
//!
//! Accounting: a room's message is owed to every comet with connections in the room. The debt is paid
//! if the comet received it, if each of its users there has it in the inbox or was notified, if the
//! whole record is a dead letter, or if a policy was meant to drop it. Messages of a deleted topic
//! are no longer owed; they may still arrive.

mod check;
mod report;
#[cfg(test)]
mod tests;
mod users;

pub use report::{Occurrence, Report};
pub use users::{UserHistory, UserReport};

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::support::comet::{Call, To};

/// The recorded data of a run.
#[derive(Debug, Default, Clone)]
pub struct History {
    /// The time origin of reports.
    pub began: Option<Instant>,
    /// The recipients of each room: the users by comet, by room.
    pub rooms: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// How often the topic was deleted and created again.
    pub incarnation: u32,
    /// Messages acknowledged by Kafka.
    pub sent: Vec<SentMessage>,
    /// Messages received by comets, in the order of arrival per comet.
    pub received: Vec<ReceivedMessage>,
    /// Message ids and the comets that refused them: they are exempt from the order.
    pub refused: BTreeSet<(String, String)>,
    /// Message ids and the users in whose inboxes they are, or who were notified.
    pub kept: BTreeSet<(String, String)>,
    /// Ids of records in the dead-letter topic.
    pub dead_lettered: BTreeSet<String>,
    /// Ids that a policy was meant to drop.
    pub dropped: BTreeSet<String>,
    /// Times when the gateway could not report what it had done.
    pub interruptions: Vec<Interruption>,
    /// Logged reasons for repeated messages.
    pub excuses: Vec<Excuse>,
}

/// A message in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentMessage {
    pub room: String,
    /// The number of the message in its room.
    pub number: u64,
    /// How often the topic had been recreated; offsets count per incarnation.
    pub incarnation: u32,
    pub partition: i32,
    pub offset: i64,
    /// `<topic>/<partition>/<offset>/<fingerprint>`
    pub id: String,
}

/// A message as received by a comet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedMessage {
    pub comet: String,
    /// The room of the call.
    pub to: String,
    /// The room and number in the body.
    pub room: String,
    pub number: u64,
    /// `halley-message-id`
    pub id: String,
    /// The version of the policies that decided, if the body contains it.
    pub version: Option<u32>,
    pub at: Instant,
}

/// A time in which an instance died, or was frozen while others may have taken over. Messages
/// repeated because of it are at or after the committed offsets at its beginning.
#[derive(Debug, Clone)]
pub struct Interruption {
    pub from: Instant,
    pub until: Instant,
    /// The incarnation of the topic at that time.
    pub incarnation: u32,
    /// The group's offsets at some time between `from` and `read`, by partition.
    pub committed: BTreeMap<i32, i64>,
    pub read: Instant,
}

/// A logged reason for repeated messages: a call timed out, the session was lost. This happens on
/// busy machines.
#[derive(Debug, Clone)]
pub struct Excuse {
    /// The comet that did not answer; `None` if it concerns everything.
    pub comet: Option<String>,
    pub from: Instant,
    pub until: Instant,
}

/// Maximum difference between the clocks of logs and comets.
const APART: Duration = Duration::from_millis(100);

impl Excuse {
    /// Whether it explains that this comet got a message at both times.
    fn covers(&self, comet: &str, first: Instant, again: Instant) -> bool {
        let concerns = self.comet.as_deref().is_none_or(|name| name == comet);
        concerns && first <= self.until + APART && self.from <= again + APART
    }
}

/// The mask character of the first version; later ones follow.
const FIRST_VERSION: u32 = 0x4e00;
/// The placeholder that a policy replaces with its version's character.
pub const VERSION_PLACE: char = '¶';

/// The character for a version of the policies.
pub fn version_mark(version: u32) -> char {
    char::from_u32(FIRST_VERSION + version).expect("fewer versions than Chinese characters")
}

/// A message's text: `room#number` and a placeholder for the version.
pub fn body(room: &str, number: u64) -> String {
    format!("{room}#{number} {VERSION_PLACE}")
}

/// The room, number and version in a body. Leading words are commands for a policy.
fn parse(body: &str) -> Option<(String, u64, Option<u32>)> {
    let (room, number) = body.split_whitespace().find_map(|word| word.split_once('#'))?;
    let last = body.chars().next_back()?;
    let version = u32::from(last).checked_sub(FIRST_VERSION);
    Some((room.to_owned(), number.parse().ok()?, version))
}

impl History {
    /// The messages of a room that a comet received around this one, for diagnosis.
    pub fn around(&self, at: &Occurrence) -> String {
        let here: Vec<_> =
            self.received.iter().filter(|r| r.comet == at.comet && r.room == at.room).collect();
        let Some(began) = self.began.or(here.first().map(|first| first.at)) else {
            return "nothing at all".to_owned();
        };
        let hits = here.iter().enumerate().filter(|(_, receipt)| receipt.number == at.number);
        let line =
            |r: &&ReceivedMessage| format!("{:>9.3?} #{} {} v{:?}", r.at - began, r.number, r.id, r.version);
        let context = |(hit, _): (usize, _)| {
            let lines: Vec<_> =
                here[hit.saturating_sub(8)..(hit + 5).min(here.len())].iter().map(line).collect();
            lines.join("\n")
        };
        format!("{} at {}:\n{}", at.room, at.comet, hits.map(context).collect::<Vec<_>>().join("\n...\n"))
    }
}

impl SentMessage {
    /// A message whose record has this id.
    ///
    /// # Panics
    /// If it is not `<topic>/<partition>/<offset>/<fingerprint>`.
    pub fn new(room: &str, number: u64, id: String) -> Self {
        let mut parts = id.rsplit('/').skip(1).map(|part| part.parse::<i64>().expect("numbers in an id"));
        let (offset, partition) = (parts.next().expect("an offset"), parts.next().expect("a partition"));
        Self { room: room.to_owned(), number, incarnation: 0, partition: partition as i32, offset, id }
    }
}

/// The messages in a comet's calls, without refused calls.
///
/// # Panics
/// If a call is not for a room, or a body is not ours.
pub fn receipts(comet: &str, calls: &[Call]) -> Vec<ReceivedMessage> {
    let mut receipts = Vec::new();
    for call in calls.iter().filter(|call| !call.refused) {
        let To::Room(to) = &call.to else { panic!("{comet} got a call for {:?}", call.to) };
        let deliveries = call.deliveries();
        assert_eq!(deliveries.len(), call.messages.len(), "{comet}: an id for each message: {call:?}");
        for ((_, body), id) in deliveries.iter().zip(&call.messages) {
            let body = String::from_utf8_lossy(body);
            let (room, number, version) =
                parse(&body).unwrap_or_else(|| panic!("{comet} got `{body}`, which was never sent"));
            let (comet, to, id) = (comet.to_owned(), to.clone(), id.clone());
            receipts.push(ReceivedMessage { comet, to, room, number, id, version, at: call.at });
        }
    }
    receipts
}
