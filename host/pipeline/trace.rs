//! Traces one message, and logs it in one `debug` line when it is settled.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Level, debug};

use crate::decision::{AbsentRecipient, TrailEntry};
use crate::message::{Audience, CometAddr, Message, Record};
use crate::offsets::AckHandle;
use crate::pipeline::call::{Acceptance, DispatchedCall};
use crate::pipeline::key_order::KeyPosition;
use crate::pipeline::outcome::MessageOutcome;
use crate::policy::PolicySet;
use crate::router::Recipient;

/// How many comets and recipients the line names.
const NAMED: usize = 10;

/// What a record needs until it has its outcome.
pub(super) struct UnsettledRecord {
    /// Settles its offset.
    pub(super) ack: AckHandle,
    /// Its position among the messages of its key.
    pub(super) position: KeyPosition,
}

/// A message and what has happened to it so far.
pub(super) struct MessageTrace {
    pub(super) record: Arc<Record>,
    pub(super) message: Option<Message>,
    pub(super) pending: UnsettledRecord,
    pub(super) trail: Vec<TrailEntry>,
    pub(super) started: Instant,
    pub(super) connections: Option<usize>,
    pub(super) stale: usize,
    pub(super) withheld: usize,
    pub(super) calls: Vec<DispatchedCall>,
    /// The recipients that were not reached.
    pub(super) absent: Arc<[AbsentRecipient]>,
    /// The first few comets that were not reached, and why.
    unreachable: Vec<String>,
    /// How many comets were not reached.
    unreachable_comets: usize,
    pub(super) counts: RecipientCounts,
}

/// Recipients by outcome.
#[derive(Debug, Default)]
pub(super) struct RecipientCounts {
    pub(super) sent: usize,
    pub(super) failed: usize,
    pub(super) stored: usize,
    pub(super) notified: usize,
    pub(super) dropped: usize,
}

impl MessageTrace {
    pub(super) fn new(
        message: Message,
        pending: UnsettledRecord,
        trail: Vec<TrailEntry>,
        started: Instant,
    ) -> Self {
        let mut trace = Self::of_record(Arc::clone(&message.record), pending, started);
        trace.message = Some(message);
        trace.trail = trail;
        trace
    }

    /// The trace of a record that is not a message.
    pub(super) fn of_record(record: Arc<Record>, pending: UnsettledRecord, started: Instant) -> Self {
        Self {
            record,
            message: None,
            pending,
            trail: Vec::new(),
            started,
            connections: None,
            stale: 0,
            withheld: 0,
            calls: Vec::new(),
            absent: Arc::default(),
            unreachable: Vec::new(),
            unreachable_comets: 0,
            counts: RecipientCounts::default(),
        }
    }

    /// A comet was not reached, or only partially.
    pub(super) fn not_reached(&mut self, comet: &CometAddr, why: &str) {
        if self.unreachable.len() < NAMED {
            self.unreachable.push(format!("{comet}: {why}"));
        }
        self.unreachable_comets += 1;
    }

    /// Logs the message's whole path in one line, at `debug`.
    pub(super) fn log_settled(&self, set: &PolicySet, outcome: MessageOutcome, reason: &dyn Display) {
        if !tracing::enabled!(Level::DEBUG) {
            return;
        }
        let plugins: Vec<_> = set.versions().iter().map(ToString::to_string).collect();
        let decisions: Vec<_> = self.trail.iter().map(ToString::to_string).collect();
        let RecipientCounts { sent, failed, stored, notified, dropped } = self.counts;
        debug!(
            id = %self.record.message_id(),
            kind = self.message.as_ref().map(|message| kind(&message.audience)),
            room = self.message.as_ref().and_then(Message::room).map(tracing::field::display),
            operation = self.message.as_ref().map(|message| message.operation),
            connections = self.connections, stale = self.stale, comets = self.calls.len(),
            sent_to = ?self.sent_to(), sent, failed, reached = ?self.reached(),
            offline = self.absent.len(), away = ?self.away(), stored, notified, dropped,
            withheld = self.withheld, unreachable = ?self.unreachable, unreachable_comets = self.unreachable_comets, generation = %set.generation(),
            plugins = ?plugins, decisions = ?decisions, outcome = outcome.as_str(), %reason,
            took_ms = self.started.elapsed().as_secs_f64() * 1e3,
            "message settled"
        );
    }

    /// `address: recipients` of the first few comets that accepted it.
    fn sent_to(&self) -> Vec<String> {
        let taken = self.calls.iter().filter(|call| call.acceptance != Acceptance::Nothing).take(NAMED);
        taken.map(|call| format!("{}: {}", call.comet, call.reached().count())).collect()
    }

    /// The first few users that it reached, or connections without a user.
    fn reached(&self) -> Vec<&str> {
        self.calls.iter().flat_map(DispatchedCall::reached).map(Recipient::name).take(NAMED).collect()
    }

    /// The first few users that it did not reach.
    fn away(&self) -> Vec<&str> {
        self.absent.iter().map(|absent| absent.user.as_str()).take(NAMED).collect()
    }
}

/// The message type, as producers know it.
fn kind(audience: &Audience) -> &'static str {
    match audience {
        Audience::Keys { .. } => "PUSH",
        Audience::Room(_) => "ROOM",
        Audience::Everyone { .. } => "BROADCAST",
    }
}
