//! Traces one message, and logs it in one `debug` line when it is settled.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Level, debug};

use crate::decision::{AbsentRecipient, Retention, TrailEntry};
use crate::inbox::Position;
use crate::message::{Audience, CometAddr, Message, Record};
use crate::offsets::AckHandle;
use crate::pipeline::call::{Acceptance, MessagePlan, PlannedCall};
use crate::pipeline::key_order::KeyPosition;
use crate::pipeline::outcome::MessageOutcome;
use crate::policy::PolicySet;
use crate::router::Recipient;
use crate::telemetry::traces::MessageSpan;

/// How many comets and recipients the line names.
const NAMED: usize = 10;

/// What a record needs until it has its outcome.
pub(super) struct UnsettledRecord {
    /// Settles its offset.
    pub(super) ack: AckHandle,
    /// Its position among the messages of its key.
    pub(super) position: KeyPosition,
    /// Its span, if it is traced.
    pub(super) span: Option<Box<MessageSpan>>,
}

/// A message and what has happened to it so far.
pub(super) struct MessageTrace {
    pub(super) record: Arc<Record>,
    pub(super) message: Option<Message>,
    pub(super) pending: UnsettledRecord,
    pub(super) trail: Vec<TrailEntry>,
    /// Where it is kept in addition to its delivery, by policies and by configuration.
    pub(super) retention: Retention,
    /// Its place in the history of its room, if it is kept there.
    pub(super) in_history: Option<Position>,
    pub(super) started: Instant,
    /// What was planned, if it got that far.
    pub(super) plan: Option<Arc<MessagePlan>>,
    /// What the comets accepted, by planned call.
    pub(super) accepted: Vec<Acceptance>,
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
            retention: Retention::default(),
            in_history: None,
            started,
            plan: None,
            accepted: Vec::new(),
            absent: Arc::default(),
            unreachable: Vec::new(),
            unreachable_comets: 0,
            counts: RecipientCounts::default(),
        }
    }

    /// The planned calls.
    pub(super) fn calls(&self) -> &[PlannedCall] {
        self.plan.as_ref().map(|plan| &*plan.calls).unwrap_or_default()
    }

    /// How many recipients a policy withholds it from.
    pub(super) fn withheld(&self) -> usize {
        self.plan.as_ref().map_or(0, |plan| plan.withheld)
    }

    /// The recipients that were reached.
    pub(super) fn reached(&self) -> impl Iterator<Item = &Recipient> {
        self.calls().iter().zip(&self.accepted).flat_map(|(call, accepted)| call.reached(accepted))
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
        let route = self.plan.as_ref().and_then(|plan| plan.route.as_deref());
        debug!(
            id = %self.record.message_id(),
            kind = self.message.as_ref().map(|message| kind(&message.audience)),
            room = self.message.as_ref().and_then(Message::room).map(tracing::field::display),
            operation = self.message.as_ref().map(|message| message.operation),
            connections = route.map(|route| route.connections), stale = route.map_or(0, |route| route.stale),
            comets = self.calls().len(),
            sent_to = ?self.sent_to(), sent, failed, reached = ?self.reached_names(),
            offline = self.absent.len(), away = ?self.away(), stored, notified, dropped, retention = ?self.retention.names(),
            withheld = self.withheld(), unreachable = ?self.unreachable, unreachable_comets = self.unreachable_comets, generation = %set.generation(),
            plugins = ?plugins, decisions = ?decisions, outcome = outcome.as_str(), %reason,
            took_ms = self.started.elapsed().as_secs_f64() * 1e3,
            "message settled"
        );
    }

    /// `address: recipients` of the first few comets that accepted it.
    fn sent_to(&self) -> Vec<String> {
        let calls = self.calls().iter().zip(&self.accepted);
        let taken = calls.filter(|(_, accepted)| **accepted != Acceptance::Nothing).take(NAMED);
        taken
            .map(|(call, accepted)| format!("{}: {}", call.delivery.comet, call.reached(accepted).count()))
            .collect()
    }

    /// The first few users that it reached, or connections without a user.
    fn reached_names(&self) -> Vec<&str> {
        self.reached().map(Recipient::name).take(NAMED).collect()
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
