//! The rest of a message that was not simply acknowledged by every comet: handles its calls'
//! outcomes, absent recipients and dead letter, and settles it.
//!
//! A task that is cancelled drops its ack handle, and the record is delivered again.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::comets::{CallOutcome, PartialDelivery};
use crate::dead_letter::{self, DeadLetterReason, LetterOutcome};
use crate::decision::{AbsenceCause, AbsentRecipient, IdKind};
use crate::message::{Audience, CometAddr, Message};
use crate::pipeline::call::{Acceptance, Exception, PlannedCall, SplitRecipients};
use crate::pipeline::chain::BatchChain;
use crate::pipeline::failed_comets::FailedComets;
use crate::pipeline::key_order::Output;
use crate::pipeline::outcome::{MessageOutcome, RecipientOutcome};
use crate::pipeline::parts::Pipeline;
use crate::pipeline::retry::{Cancelled, HoldContext, retry_until_cancelled};
use crate::pipeline::trace::MessageTrace;
use crate::router::{self, Delivery, Recipient};
use crate::stalls::StallStage;
use crate::telemetry::traces::SpanStage;

/// Why a message needs a delivery task.
pub(super) enum StageOutcome {
    Delivered {
        /// The calls that were not simply acknowledged, with their outcomes.
        exceptions: Vec<Exception>,
        /// The permits that the absent recipients hold.
        absent_permit: Option<OwnedSemaphorePermit>,
    },
    DeadLetter(DeadLetterReason),
}

/// The rest of a message's processing.
pub(super) struct DeliveryTask {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) chain: BatchChain,
    pub(super) cancel: CancellationToken,
    pub(super) trace: MessageTrace,
}

/// The outcome of a delivery task, and why.
pub(super) type SettledOutcome = (MessageOutcome, String);

impl DeliveryTask {
    /// Runs until the message has its outcome, and settles it. Returns its offset; `None` if the
    /// partition was cancelled.
    pub(super) async fn run(mut self, outcome: StageOutcome) -> Option<i64> {
        self.pipeline.metrics.in_flight.inc();
        let ended = match outcome {
            StageOutcome::Delivered { exceptions, absent_permit } => {
                let ended = self.deliver(exceptions).await;
                drop(absent_permit);
                ended
            }
            StageOutcome::DeadLetter(reason) => self.dead_letter(reason).await,
        };
        self.pipeline.metrics.in_flight.dec();
        let (outcome, reason) = ended.ok()?;
        self.trace.log_settled(self.chain.set(), outcome, &reason);
        self.pipeline.metrics.settled(outcome, self.trace.started);
        self.trace.finish_span(&self.pipeline.tracer, outcome, &reason);
        let offset = self.trace.record.origin.offset;
        self.trace.pending.ack.settle();
        Some(offset)
    }

    /// The record that is held while work is retried.
    pub(super) fn hold(&self) -> HoldContext<'_> {
        let origin = &self.trace.record.origin;
        HoldContext {
            stalls: &self.pipeline.stalls,
            topic: &origin.topic,
            partition: origin.partition,
            offset: Some(origin.offset),
            cancel: &self.cancel,
        }
    }

    async fn deliver(&mut self, exceptions: Vec<Exception>) -> Result<SettledOutcome, Cancelled> {
        let pipeline = Arc::clone(&self.pipeline);
        let fleet = &pipeline.fleet;
        let plan = self.trace.plan.clone();
        let calls = plan.as_ref().map(|plan| &*plan.calls).unwrap_or_default();
        let (mut failed, mut gone) = (FailedComets::default(), FailedComets::default());
        let mut unreachable: Vec<AbsentRecipient> = Vec::new();
        let mut is_exception = vec![false; calls.len()];
        exceptions.iter().for_each(|exception| is_exception[exception.call] = true);
        for (call, is_exception) in calls.iter().zip(is_exception) {
            self.trace.accepted.push(if is_exception { Acceptance::Nothing } else { Acceptance::All });
            self.trace.counts.sent += if is_exception { 0 } else { call.delivery.recipients.len() };
        }
        for Exception { call: at, outcome, .. } in exceptions {
            let PlannedCall { delivery, is_broadcast } = &calls[at];
            let (comet, recipients) = (&delivery.comet, &delivery.recipients);
            match outcome {
                CallOutcome::Acknowledged => {}
                CallOutcome::Partial(partly) => {
                    if let Some(why) = self.apply_partial(at, delivery, *partly, &mut unreachable) {
                        failed.add(comet.clone(), &why);
                    }
                }
                CallOutcome::NobodyThere => self.apply_nobody(at, delivery, &mut unreachable),
                CallOutcome::Unreachable(why) if !recipients.is_empty() => {
                    self.trace.not_reached(comet, &why);
                    let of = |recipient| self.absent(recipient, AbsenceCause::CometUnreachable);
                    unreachable.extend(recipients.iter().map(of));
                }
                // The directory has not named this comet lately, and it does not answer: the
                // BROADCAST is not for it.
                CallOutcome::Unreachable(why) if *is_broadcast && !fleet.is_broadcast_target(comet) => {
                    self.trace.not_reached(comet, &why);
                    gone.add(comet.clone(), &why);
                }
                // Rejected permanently, or unreachable with unknown recipients: there is no
                // absent user to decide about, so the record becomes a dead letter.
                CallOutcome::Unreachable(why) | CallOutcome::Refused(why) => {
                    self.trace.counts.failed += recipients.len().max(1);
                    failed.add(comet.clone(), &why);
                }
            }
        }
        if gone.len() == calls.len() {
            // No comet accepted it.
            self.trace.counts.failed += gone.len();
            failed.append(gone);
        }
        self.trace.absent = self.distinct_absent(unreachable);
        let kept = self.handle_absent().await?;
        self.record_counts();
        match (failed.is_empty(), kept) {
            (true, None) => Ok((self.outcome(), String::new())),
            (true, Some(reason)) => self.dead_letter(reason).await,
            (false, kept) => {
                let mut reason = failed.into_reason(&self.trace.trail);
                if let Some(kept) = kept {
                    reason = reason.and_not_kept(kept);
                }
                self.dead_letter(reason).await
            }
        }
    }

    /// Handles a call that reached some of its recipients. Returns the reason if the record has to become
    /// a dead letter.
    fn apply_partial(
        &mut self,
        at: usize,
        delivery: &Delivery,
        partly: PartialDelivery,
        unreachable: &mut Vec<AbsentRecipient>,
    ) -> Option<String> {
        let Delivery { comet, recipients, .. } = delivery;
        let split = SplitRecipients::of(recipients, &partly);
        let missed = partly.unreachable.into_iter().chain(partly.refused).chain(partly.missing);
        self.trace.accepted[at] = Acceptance::AllBut(missed.collect());
        self.trace.counts.sent +=
            recipients.len() - split.unreachable.len() - split.missing.len() - split.refused;
        let of = |recipient: &&Recipient| self.absent(recipient, AbsenceCause::CometUnreachable);
        unreachable.extend(split.unreachable.iter().map(of));
        self.note_missing(comet, split.missing.iter().copied(), unreachable);
        if split.is_failed {
            self.trace.counts.failed += split.refused.max(1);
            return Some(partly.why);
        }
        if !split.unreachable.is_empty() {
            self.trace.not_reached(comet, &partly.why);
        }
        None
    }

    /// Handles a call for a room of which the comet has nobody any more.
    fn apply_nobody(&mut self, at: usize, delivery: &Delivery, unreachable: &mut Vec<AbsentRecipient>) {
        let Delivery { comet, recipients, .. } = delivery;
        // Where recipients are unknown, nobody is expected.
        self.trace.accepted[at] = if recipients.is_empty() { Acceptance::All } else { Acceptance::Nothing };
        self.note_missing(comet, recipients.iter(), unreachable);
    }

    /// These recipients are not connected to the comet any more, as it said: the room's cached route is
    /// outdated.
    fn note_missing<'a>(
        &mut self,
        comet: &CometAddr,
        missing: impl ExactSizeIterator<Item = &'a Recipient>,
        absent: &mut Vec<AbsentRecipient>,
    ) {
        if missing.len() == 0 {
            return;
        }
        let why = format!("{} recipients are not connected to it any more", missing.len());
        absent.extend(missing.map(|recipient| self.absent(recipient, AbsenceCause::NoConnection)));
        self.trace.not_reached(comet, &why);
        if let Some(room) = self.trace.message.as_ref().and_then(Message::room) {
            self.pipeline.resolver.note_outdated(room);
        }
    }

    /// A recipient that was not reached. Keys that the producer addressed to a comet are not looked up, so
    /// the configuration decides what they are.
    fn absent(&self, recipient: &Recipient, cause: AbsenceCause) -> AbsentRecipient {
        let mut absent = recipient.absent(cause);
        let audience = self.trace.message.as_ref().map(|message| &message.audience);
        if absent.identity != IdKind::User && matches!(audience, Some(Audience::Keys { server: Some(_), .. }))
        {
            absent.identity = self.pipeline.resolver.unknown_keys();
        }
        absent
    }

    /// The recipients that were not reached, each once, regardless of how many devices they have.
    fn distinct_absent(&self, unreachable: Vec<AbsentRecipient>) -> Arc<[AbsentRecipient]> {
        let Some(plan) = &self.trace.plan else { return unreachable.into() };
        if unreachable.is_empty() {
            return Arc::clone(&plan.absent);
        }
        let all = plan.absent.iter().cloned().chain(unreachable);
        if plan.route.as_ref().is_some_and(|route| !route.has_multi_device_users()) {
            return all.collect();
        }
        router::distinct_absent(all, self.trace.reached()).into()
    }

    /// The outcome of a message without a dead letter.
    fn outcome(&self) -> MessageOutcome {
        let counts = &self.trace.counts;
        let is_kept = counts.stored + counts.notified > 0;
        match (
            self.trace.accepted.iter().any(|accepted| *accepted != Acceptance::Nothing),
            self.trace.absent.is_empty(),
        ) {
            (true, true) => MessageOutcome::Delivered,
            (true, false) => MessageOutcome::PartiallyDelivered,
            (false, _) if is_kept => MessageOutcome::Stored,
            (false, _) => MessageOutcome::NoRecipients,
        }
    }

    fn record_counts(&self) {
        let (counts, metrics) = (&self.trace.counts, &self.pipeline.metrics);
        metrics.recipients(RecipientOutcome::Delivered, counts.sent);
        metrics.recipients(RecipientOutcome::Failed, counts.failed);
        metrics.recipients(RecipientOutcome::Withheld, self.trace.withheld());
        metrics.recipients(RecipientOutcome::Stored, counts.stored);
        metrics.recipients(RecipientOutcome::Notified, counts.notified);
        metrics.recipients(RecipientOutcome::Dropped, counts.dropped);
    }

    async fn dead_letter(&mut self, reason: DeadLetterReason) -> Result<SettledOutcome, Cancelled> {
        let since = Instant::now();
        let written = self.write_dead_letter(reason).await;
        self.trace.note(SpanStage::DeadLetter, since);
        written
    }

    /// Writes the record as a dead letter, after earlier dead letters of its key.
    async fn write_dead_letter(&self, reason: DeadLetterReason) -> Result<SettledOutcome, Cancelled> {
        let (record, position) = (&self.trace.record, &self.trace.pending.position);
        // No more inbox entries or notifications follow.
        position.release(Output::Offline);
        if dead_letter::is_dead_letter(record) {
            position.release(Output::Letter);
            self.pipeline.metrics.dead_letter_again(record, &reason);
            return Ok((MessageOutcome::DeadLetterAgain, reason.text));
        }
        let put = async {
            position.wait_turn(Output::Letter).await;
            self.pipeline.dead_letters.put(Arc::clone(record), reason.clone()).await
        };
        let handle = self.cancel.run_until_cancelled(put).await.ok_or(Cancelled)?;
        position.release(Output::Letter);
        match retry_until_cancelled(self.hold(), StallStage::DeadLetter, || handle.outcome()).await? {
            LetterOutcome::Written => {
                self.pipeline.metrics.dead_letter(record, &reason);
                Ok((MessageOutcome::DeadLettered, reason.text))
            }
            LetterOutcome::Lost(_) => Ok((MessageOutcome::Lost, reason.text)),
        }
    }
}
