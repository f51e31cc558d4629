//! The rest of a message that was not simply acknowledged by every comet: handles its calls'
//! outcomes, absent recipients and dead letter, and settles it.
//!
//! A task that is cancelled drops its ack handle, and the record is delivered again.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::comets::{CallOutcome, PartialDelivery};
use crate::dead_letter::{self, DeadLetterReason, LetterOutcome};
use crate::decision::{AbsenceCause, AbsentRecipient, IdKind};
use crate::message::{Audience, CometAddr, Message};
use crate::pipeline::call::{Acceptance, DispatchedCall, Exception, SplitRecipients};
use crate::pipeline::chain::BatchChain;
use crate::pipeline::failed_comets::FailedComets;
use crate::pipeline::key_order::Output;
use crate::pipeline::outcome::{MessageOutcome, RecipientOutcome};
use crate::pipeline::parts::Pipeline;
use crate::pipeline::retry::{Cancelled, HoldContext, retry_until_cancelled};
use crate::pipeline::trace::MessageTrace;
use crate::router::{self, Recipient, Route};
use crate::stalls::StallStage;

/// Why a message needs a delivery task.
pub(super) enum StageOutcome {
    Delivered {
        /// The room's route, if it was looked up.
        route: Option<Arc<Route>>,
        /// The calls that were not simply acknowledged, with their outcomes.
        exceptions: Vec<Exception>,
        absent: Arc<[AbsentRecipient]>,
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
            StageOutcome::Delivered { route, exceptions, absent, absent_permit } => {
                let ended = self.deliver(route, exceptions, absent).await;
                drop(absent_permit);
                ended
            }
            StageOutcome::DeadLetter(reason) => self.dead_letter(reason).await,
        };
        self.pipeline.metrics.in_flight.dec();
        let (outcome, reason) = ended.ok()?;
        self.trace.log_settled(self.chain.set(), outcome, &reason);
        self.pipeline.metrics.settled(outcome, self.trace.started);
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

    async fn deliver(
        &mut self,
        route: Option<Arc<Route>>,
        exceptions: Vec<Exception>,
        planned: Arc<[AbsentRecipient]>,
    ) -> Result<SettledOutcome, Cancelled> {
        let pipeline = Arc::clone(&self.pipeline);
        let fleet = &pipeline.fleet;
        let (mut failed, mut gone) = (FailedComets::default(), FailedComets::default());
        let mut unreachable: Vec<AbsentRecipient> = Vec::new();
        let mut is_exception = vec![false; self.trace.calls.len()];
        exceptions.iter().for_each(|exception| is_exception[exception.call] = true);
        for (call, _) in self.trace.calls.iter_mut().zip(is_exception).filter(|(_, exception)| !exception) {
            call.acceptance = Acceptance::All;
            self.trace.counts.sent += call.recipients.len();
        }
        for Exception { call: at, outcome, .. } in exceptions {
            let call = &mut self.trace.calls[at];
            match outcome {
                CallOutcome::Acknowledged => {}
                CallOutcome::Partial(partly) => {
                    if let Some((comet, why)) = self.apply_partial(at, *partly, &mut unreachable) {
                        failed.add(comet, &why);
                    }
                }
                CallOutcome::NobodyThere => self.apply_nobody(at, &mut unreachable),
                CallOutcome::Unreachable(why) if !call.recipients.is_empty() => {
                    let (comet, recipients) = (call.comet.clone(), Arc::clone(&call.recipients));
                    self.trace.not_reached(&comet, &why);
                    let of = |recipient| self.absent(recipient, AbsenceCause::CometUnreachable);
                    unreachable.extend(recipients.iter().map(of));
                }
                // The directory has not named this comet lately, and it does not answer: the
                // BROADCAST is not for it.
                CallOutcome::Unreachable(why)
                    if call.is_broadcast && !fleet.is_broadcast_target(&call.comet) =>
                {
                    let comet = call.comet.clone();
                    self.trace.not_reached(&comet, &why);
                    gone.add(comet, &why);
                }
                // Rejected permanently, or unreachable with unknown recipients: there is no
                // absent user to decide about, so the record becomes a dead letter.
                CallOutcome::Unreachable(why) | CallOutcome::Refused(why) => {
                    self.trace.counts.failed += call.recipients.len().max(1);
                    failed.add(call.comet.clone(), &why);
                }
            }
        }
        if gone.len() == self.trace.calls.len() {
            // No comet accepted it.
            self.trace.counts.failed += gone.len();
            failed.append(gone);
        }
        self.trace.absent = self.distinct_absent(route.as_deref(), planned, unreachable);
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

    /// Handles a call that reached some of its recipients. Returns the comet and the reason if the
    /// record has to become a dead letter.
    fn apply_partial(
        &mut self,
        at: usize,
        partly: PartialDelivery,
        unreachable: &mut Vec<AbsentRecipient>,
    ) -> Option<(CometAddr, String)> {
        let call = &mut self.trace.calls[at];
        let (comet, recipients) = (call.comet.clone(), Arc::clone(&call.recipients));
        let split = SplitRecipients::of(&recipients, &partly);
        let missed = partly.unreachable.into_iter().chain(partly.refused).chain(partly.missing);
        call.acceptance = Acceptance::AllBut(missed.collect());
        self.trace.counts.sent +=
            recipients.len() - split.unreachable.len() - split.missing.len() - split.refused;
        let of = |recipient: &&Recipient| self.absent(recipient, AbsenceCause::CometUnreachable);
        unreachable.extend(split.unreachable.iter().map(of));
        self.note_missing(at, split.missing.iter().copied(), unreachable);
        if split.is_failed {
            self.trace.counts.failed += split.refused.max(1);
            return Some((comet, partly.why));
        }
        if !split.unreachable.is_empty() {
            self.trace.not_reached(&comet, &partly.why);
        }
        None
    }

    /// Handles a call for a room of which the comet has nobody any more.
    fn apply_nobody(&mut self, at: usize, unreachable: &mut Vec<AbsentRecipient>) {
        let call = &mut self.trace.calls[at];
        let recipients = Arc::clone(&call.recipients);
        // Where recipients are unknown, nobody is expected.
        call.acceptance = if recipients.is_empty() { Acceptance::All } else { Acceptance::Nothing };
        self.note_missing(at, recipients.iter(), unreachable);
    }

    /// These recipients are not connected to the comet any more, as it said: the room's cached route is
    /// outdated.
    fn note_missing<'a>(
        &mut self,
        at: usize,
        missing: impl ExactSizeIterator<Item = &'a Recipient>,
        absent: &mut Vec<AbsentRecipient>,
    ) {
        if missing.len() == 0 {
            return;
        }
        let why = format!("{} recipients are not connected to it any more", missing.len());
        absent.extend(missing.map(|recipient| self.absent(recipient, AbsenceCause::NoConnection)));
        let comet = self.trace.calls[at].comet.clone();
        self.trace.not_reached(&comet, &why);
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
    fn distinct_absent(
        &self,
        route: Option<&Route>,
        planned: Arc<[AbsentRecipient]>,
        unreachable: Vec<AbsentRecipient>,
    ) -> Arc<[AbsentRecipient]> {
        if unreachable.is_empty() {
            return planned;
        }
        let all = planned.iter().cloned().chain(unreachable);
        if route.is_some_and(|route| !route.has_multi_device_users()) {
            return all.collect();
        }
        router::distinct_absent(all, self.trace.calls.iter().flat_map(DispatchedCall::reached)).into()
    }

    /// The outcome of a message without a dead letter.
    fn outcome(&self) -> MessageOutcome {
        let counts = &self.trace.counts;
        let is_kept = counts.stored + counts.notified > 0;
        match (
            self.trace.calls.iter().any(|call| call.acceptance != Acceptance::Nothing),
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
        metrics.recipients(RecipientOutcome::Withheld, self.trace.withheld);
        metrics.recipients(RecipientOutcome::Stored, counts.stored);
        metrics.recipients(RecipientOutcome::Notified, counts.notified);
        metrics.recipients(RecipientOutcome::Dropped, counts.dropped);
    }

    /// Writes the record as a dead letter, after earlier dead letters of its key.
    async fn dead_letter(&self, reason: DeadLetterReason) -> Result<SettledOutcome, Cancelled> {
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
