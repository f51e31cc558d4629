//! The pipeline's metrics. Every series exists from the start, at zero.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use smart_default::SmartDefault;
use tracing::{debug, error, warn};

use crate::dead_letter::{DeadLetterReason, Stage};
use crate::message::Record;
use crate::pipeline::outcome::{HandOverOutcome, MessageOutcome, RecipientOutcome};
use crate::telemetry::{
    Counter, Family, Gauge, LogThrottle, at_zero, label_enum, latency_histogram, metrics,
};

label_enum! {
    /// A stage that is timed, most of them per batch.
    pub(super) enum TimedStage as "stage" {
        Filter = "filter",
        Guard = "guard",
        Resolve = "resolve",
        Dispatch = "dispatch",
        Deliver = "deliver",
        Offline = "offline",
    }
}

label_enum! {
    /// The proof that a record carries for its claim to be redriven.
    pub(super) enum ProofStatus as "proof" {
        Valid = "valid",
        Invalid = "invalid",
        Missing = "missing",
    }
}

metrics! {
    /// The pipeline's metrics.
    #[derive(Clone)]
    pub struct Metrics {
        /// Time in a stage.
        stages: Family<TimedStage, Histogram, fn() -> Histogram> = "halley_stage_duration_seconds"
            in at_zero(Family::new_with_constructor(latency_histogram));
        /// Settled messages by outcome.
        messages: Family<MessageOutcome, Counter> = "halley_messages" in at_zero(Family::default());
        /// Recipients by outcome.
        recipients: Family<RecipientOutcome, Counter> = "halley_recipients" in at_zero(Family::default());
        /// Users who returned while a message was stored for them, by the outcome of its live delivery.
        handed_over: Family<HandOverOutcome, Counter> = "halley_offline_handed_over" in at_zero(Family::default());
        /// Records written to the dead-letter topic, by the stage that failed.
        dead_letters: Family<Stage, Counter> = "halley_dead_letters" in at_zero(Family::default());
        /// Records that claim to be redriven, by their proof; without a valid proof the claim is ignored.
        claims: Family<ProofStatus, Counter> = "halley_redrive_proofs" in at_zero(Family::default());
        /// Records in a batch.
        batch: Histogram = "halley_batch_records" in Histogram::new(exponential_buckets(1.0, 2.0, 11));
        /// Time from the start of its batch until a message is settled.
        message: Histogram = "halley_message_duration_seconds" in latency_histogram();
        /// Messages being delivered.
        pub(super) in_flight: Gauge = "halley_messages_in_flight";
        ..
        /// That of the stage `deliver`.
        deliver: Histogram = stages.get_or_create_owned(&TimedStage::Deliver);
        lines: Arc<LogThrottles> = Arc::default();
    }
}

/// Messages that the settler settled, counted together.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) now: Instant,
    delivered: u64,
    nobody: u64,
    sent: usize,
    withheld: usize,
    /// When the batches of the settled ones started.
    started: Vec<Instant>,
    /// When the calls of all were queued.
    pub(super) queued: Vec<Instant>,
}

impl Settled {
    pub(super) fn new(now: Instant) -> Self {
        Self { now, delivered: 0, nobody: 0, sent: 0, withheld: 0, started: Vec::new(), queued: Vec::new() }
    }

    pub(super) fn add(&mut self, outcome: MessageOutcome, sent: usize, withheld: usize, started: Instant) {
        match outcome {
            MessageOutcome::Delivered => self.delivered += 1,
            _ => self.nobody += 1,
        }
        self.sent += sent;
        self.withheld += withheld;
        self.started.push(started);
    }
}

/// Throttles log lines about single records, which could flood the log. Counters show how many there
/// are, and the dead-letter topic which.
#[derive(Debug, SmartDefault)]
struct LogThrottles {
    /// One for each of [`Stage::ALL`].
    #[default(Stage::ALL.map(|_| LogThrottle::per_record()))]
    letters: [LogThrottle; Stage::ALL.len()],
    #[default(LogThrottle::per_record())]
    again: LogThrottle,
    #[default(LogThrottle::per_record())]
    claims: LogThrottle,
}

impl Metrics {
    pub(super) fn stage(&self, stage: TimedStage, since: Instant) {
        self.stages.get_or_create(&stage).observe(since.elapsed().as_secs_f64());
    }

    /// Counts messages that the settler settled.
    pub(super) fn settled_many(&self, settled: &Settled) {
        for (outcome, count) in
            [(MessageOutcome::Delivered, settled.delivered), (MessageOutcome::NoRecipients, settled.nobody)]
        {
            if count > 0 {
                self.messages.get_or_create(&outcome).inc_by(count);
            }
        }
        self.recipients(RecipientOutcome::Delivered, settled.sent);
        self.recipients(RecipientOutcome::Withheld, settled.withheld);
        let observe = |histogram: &Histogram, since: &[Instant]| {
            let seconds = since.iter().map(|since| settled.now.duration_since(*since).as_secs_f64());
            seconds.for_each(|seconds| histogram.observe(seconds));
        };
        observe(&self.message, &settled.started);
        observe(&self.deliver, &settled.queued);
    }

    pub(super) fn batch(&self, records: usize) {
        self.batch.observe(records as f64);
    }

    pub(super) fn settled(&self, outcome: MessageOutcome, since: Instant) {
        self.messages.get_or_create(&outcome).inc();
        self.message.observe(since.elapsed().as_secs_f64());
    }

    pub(super) fn recipients(&self, outcome: RecipientOutcome, count: usize) {
        if count > 0 {
            self.recipients.get_or_create(&outcome).inc_by(count as u64);
        }
    }

    /// Counts a user who returned while a message was stored.
    pub(super) fn handed_over(&self, outcome: HandOverOutcome) {
        self.handed_over.get_or_create(&outcome).inc();
    }

    /// Counts a record that claims to be redriven, and logs some of those without a valid proof.
    pub(super) fn claimed(&self, proof: ProofStatus, record: &Record) {
        self.claims.get_or_create(&proof).inc();
        if proof == ProofStatus::Valid {
            return;
        }
        if let Some(held_back) = self.lines.claims.admit() {
            let (origin, proof) = (&record.origin, proof.as_str());
            warn!(held_back, %origin, proof, "a record claims to be redriven without a valid proof: its `halley-` headers are ignored and it counts as a new message; `halley dead-letter redrive` writes proofs");
        }
    }

    /// Logs some of the dead letters that were consumed and failed again.
    pub(super) fn dead_letter_again(&self, record: &Record, reason: &DeadLetterReason) {
        if let Some(held_back) = self.lines.again.admit() {
            error!(held_back, id = %record.message_id(), stage = reason.stage.as_str(), reason = reason.text, "a dead letter was consumed and cannot be delivered: it is not written again; does `[kafka] topics` name a dead-letter topic?");
        }
    }

    /// Counts a dead letter, and logs some of them.
    pub(super) fn dead_letter(&self, record: &Record, reason: &DeadLetterReason) {
        self.dead_letters.get_or_create(&reason.stage).inc();
        let stage = reason.stage.as_str();
        let at = Stage::ALL.iter().position(|known| *known == reason.stage).unwrap_or_default();
        let (id, reason_text) = (record.message_id(), &reason.text);
        let Some(held_back) = self.lines.letters[at].admit() else {
            debug!(%id, stage, reason = reason_text, "dead letter");
            return;
        };
        let count = held_back + 1;
        match reason.stage {
            // An operator has to act on these: recipients did not get the message.
            Stage::Resolve | Stage::Deliver | Stage::Offline | Stage::Archive => {
                error!(%id, stage, count, reason = reason_text, "a record could not be delivered and was written to the dead-letter topic; `count` since the last such line");
            }
            Stage::Decode => {
                warn!(%id, stage, count, reason = reason_text, "a record is not a message and was written to the dead-letter topic; `count` since the last such line");
            }
            Stage::Filter => debug!(%id, stage, count, reason = reason_text, "dead letter"),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn every_series_starts_at_zero() {
        let mut registry = Registry::default();
        let _metrics = Metrics::register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes it");
        for series in [
            "halley_messages_total{outcome=\"partly-delivered\"} 0\n",
            "halley_messages_total{outcome=\"nobody\"} 0\n",
            "halley_recipients_total{outcome=\"stored\"} 0\n",
            "halley_dead_letters_total{stage=\"decode\"} 0\n",
            "halley_redrive_proofs_total{proof=\"missing\"} 0\n",
            "halley_stage_duration_seconds_count{stage=\"offline\"} 0\n",
        ] {
            assert!(text.contains(series), "{series} in\n{text}");
        }
    }
}
