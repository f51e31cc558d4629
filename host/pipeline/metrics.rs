//! The pipeline's metrics. Every series exists from the start, at zero.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing::{debug, error, warn};

use crate::dead_letter::{DeadLetterReason, Stage};
use crate::message::Record;
use crate::pipeline::outcome::{HandOverOutcome, MessageOutcome, RecipientOutcome};
use crate::telemetry::{LogThrottle, label_enum, latency_histogram};

label_enum! {
    /// A stage that is timed, most of them per batch.
    pub(super) enum TimedStage {
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
    pub(super) enum ProofStatus {
        Valid = "valid",
        Invalid = "invalid",
        Missing = "missing",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProofLabel {
    proof: ProofStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimedStageLabel {
    stage: TimedStage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: MessageOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RecipientLabel {
    outcome: RecipientOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandOverLabel {
    outcome: HandOverOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetterLabel {
    stage: Stage,
}

/// The pipeline's metrics.
#[derive(Clone)]
pub struct Metrics {
    stages: Family<TimedStageLabel, Histogram, fn() -> Histogram>,
    messages: Family<OutcomeLabel, Counter>,
    recipients: Family<RecipientLabel, Counter>,
    handed_over: Family<HandOverLabel, Counter>,
    dead_letters: Family<DeadLetterLabel, Counter>,
    claims: Family<ProofLabel, Counter>,
    lines: Arc<LogThrottles>,
    batch: Histogram,
    message: Histogram,
    /// That of the stage `deliver`.
    deliver: Histogram,
    pub(super) in_flight: Gauge,
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
#[derive(Debug)]
struct LogThrottles {
    /// One for each of [`Stage::ALL`].
    letters: [LogThrottle; Stage::ALL.len()],
    again: LogThrottle,
    claims: LogThrottle,
}

impl Metrics {
    /// Registers the pipeline's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let lines = LogThrottles {
            letters: Stage::ALL.map(|_| LogThrottle::per_record()),
            again: LogThrottle::per_record(),
            claims: LogThrottle::per_record(),
        };
        let stages: Family<TimedStageLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(latency_histogram as fn() -> Histogram);
        let deliver = stages.get_or_create_owned(&TimedStageLabel { stage: TimedStage::Deliver });
        let metrics = Self {
            deliver,
            stages,
            messages: Family::default(),
            recipients: Family::default(),
            handed_over: Family::default(),
            dead_letters: Family::default(),
            claims: Family::default(),
            lines: Arc::new(lines),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            message: latency_histogram(),
            in_flight: Gauge::default(),
        };
        metrics.begin_at_zero();
        registry.register("halley_stage_duration_seconds", "Time in a stage", metrics.stages.clone());
        registry.register("halley_messages", "Settled messages by outcome", metrics.messages.clone());
        registry.register("halley_recipients", "Recipients by outcome", metrics.recipients.clone());
        let help =
            "Users who returned while a message was stored for them, by the outcome of its live delivery";
        registry.register("halley_offline_handed_over", help, metrics.handed_over.clone());
        let help = "Records written to the dead-letter topic, by the stage that failed";
        registry.register("halley_dead_letters", help, metrics.dead_letters.clone());
        let help =
            "Records that claim to be redriven, by their proof; without a valid proof the claim is ignored";
        registry.register("halley_redrive_proofs", help, metrics.claims.clone());
        registry.register("halley_batch_records", "Records in a batch", metrics.batch.clone());
        let help = "Time from the start of its batch until a message is settled";
        registry.register("halley_message_duration_seconds", help, metrics.message.clone());
        registry.register("halley_messages_in_flight", "Messages being delivered", metrics.in_flight.clone());
        metrics
    }

    fn begin_at_zero(&self) {
        for stage in TimedStage::ALL {
            drop(self.stages.get_or_create(&TimedStageLabel { stage }));
        }
        for outcome in MessageOutcome::ALL {
            drop(self.messages.get_or_create(&OutcomeLabel { outcome }));
        }
        for outcome in RecipientOutcome::ALL {
            drop(self.recipients.get_or_create(&RecipientLabel { outcome }));
        }
        for proof in ProofStatus::ALL {
            drop(self.claims.get_or_create(&ProofLabel { proof }));
        }
        for outcome in HandOverOutcome::ALL {
            drop(self.handed_over.get_or_create(&HandOverLabel { outcome }));
        }
        for stage in Stage::ALL {
            drop(self.dead_letters.get_or_create(&DeadLetterLabel { stage }));
        }
    }

    pub(super) fn stage(&self, stage: TimedStage, since: Instant) {
        self.stages.get_or_create(&TimedStageLabel { stage }).observe(since.elapsed().as_secs_f64());
    }

    /// Counts messages that the settler settled.
    pub(super) fn settled_many(&self, settled: &Settled) {
        for (outcome, count) in
            [(MessageOutcome::Delivered, settled.delivered), (MessageOutcome::NoRecipients, settled.nobody)]
        {
            if count > 0 {
                self.messages.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
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
        self.messages.get_or_create(&OutcomeLabel { outcome }).inc();
        self.message.observe(since.elapsed().as_secs_f64());
    }

    pub(super) fn recipients(&self, outcome: RecipientOutcome, count: usize) {
        if count > 0 {
            self.recipients.get_or_create(&RecipientLabel { outcome }).inc_by(count as u64);
        }
    }

    /// Counts a user who returned while a message was stored.
    pub(super) fn handed_over(&self, outcome: HandOverOutcome) {
        self.handed_over.get_or_create(&HandOverLabel { outcome }).inc();
    }

    /// Counts a record that claims to be redriven, and logs some of those without a valid proof.
    pub(super) fn claimed(&self, proof: ProofStatus, record: &Record) {
        self.claims.get_or_create(&ProofLabel { proof }).inc();
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
        self.dead_letters.get_or_create(&DeadLetterLabel { stage: reason.stage }).inc();
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
