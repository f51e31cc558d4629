//! The long way of one message: outcomes of its calls other than a plain acknowledgement, the absent,
//! a dead letter if need be, and its settlement.
//!
//! A task that is cancelled drops its handle, and the record is delivered again. If every
//! recipient is reached, nothing is allocated here.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::comets::{Delivered, Partly};
use crate::dead_letter::{self, Kept, Reason};
use crate::decision::{Absent, Cause, Identity};
use crate::message::{Audience, CometAddr};
use crate::pipeline::Pipeline;
use crate::pipeline::call::{Apart, Call, Took};
use crate::pipeline::chain::BatchChain;
use crate::pipeline::key_order::Output;
use crate::pipeline::metrics::{Outcome, Reached};
use crate::pipeline::not_taken::NotTaken;
use crate::pipeline::persist::{Abandoned, Hold, persist};
use crate::pipeline::story::Story;
use crate::router::{self, Recipient, Route};
use crate::stalls::StallStage;

/// What a message takes the long way for.
pub(super) enum Ending {
    Delivered {
        /// The room's route, if it was looked up.
        route: Option<Arc<Route>>,
        /// What became of the calls that were not simply acknowledged.
        exceptions: Vec<(usize, Delivered)>,
        absent: Arc<[Absent]>,
        /// The permits that the absent recipients hold.
        places: Option<OwnedSemaphorePermit>,
    },
    DeadLetter(Reason),
}

/// The rest of a message's processing.
pub(super) struct Journey {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) chain: BatchChain,
    pub(super) abandon: CancellationToken,
    pub(super) story: Story,
}

/// The outcome of a delivery task, and why.
pub(super) type Ended = (Outcome, String);

impl Journey {
    /// Runs until the message has its outcome, and settles it.
    pub(super) async fn run(mut self, ending: Ending) {
        self.pipeline.metrics.in_flight.inc();
        let ended = match ending {
            Ending::Delivered { route, exceptions, absent, places } => {
                let ended = self.deliver(route, exceptions, absent).await;
                drop(places);
                ended
            }
            Ending::DeadLetter(reason) => self.dead_letter(reason).await,
        };
        self.pipeline.metrics.in_flight.dec();
        let Ok((outcome, reason)) = ended else { return };
        self.story.tell(self.chain.set(), outcome, &reason);
        self.pipeline.metrics.settled(outcome, self.story.started);
        self.story.pending.ticket.settle();
    }

    /// The record that is held while work is retried.
    pub(super) fn hold(&self) -> Hold<'_> {
        let origin = &self.story.record.origin;
        Hold {
            stalls: &self.pipeline.stalls,
            topic: &origin.topic,
            partition: origin.partition,
            offset: Some(origin.offset),
            abandon: &self.abandon,
        }
    }

    async fn deliver(
        &mut self,
        route: Option<Arc<Route>>,
        exceptions: Vec<(usize, Delivered)>,
        planned: Arc<[Absent]>,
    ) -> Result<Ended, Abandoned> {
        let pipeline = Arc::clone(&self.pipeline);
        let fleet = &pipeline.fleet;
        let (mut failed, mut gone) = (NotTaken::default(), NotTaken::default());
        let mut unreachable: Vec<Absent> = Vec::new();
        let mut is_exception = vec![false; self.story.calls.len()];
        exceptions.iter().for_each(|(at, _)| is_exception[*at] = true);
        for (call, _) in self.story.calls.iter_mut().zip(is_exception).filter(|(_, exception)| !exception) {
            call.took = Took::All;
            self.story.tally.sent += call.recipients.len();
        }
        for (at, delivered) in exceptions {
            let call = &mut self.story.calls[at];
            match delivered {
                Delivered::Acknowledged => {}
                Delivered::Partly(partly) => {
                    if let Some((comet, why)) = self.partly(at, *partly, &mut unreachable) {
                        failed.add(comet, &why);
                    }
                }
                Delivered::Unreachable(why) if !call.recipients.is_empty() => {
                    let (comet, recipients) = (call.comet.clone(), Arc::clone(&call.recipients));
                    self.story.not_reached(&comet, &why);
                    unreachable.extend(recipients.iter().map(|recipient| self.unreachable(recipient)));
                }
                // The directory has not named this comet lately, and it does not answer: the
                // BROADCAST is not for it.
                Delivered::Unreachable(why) if call.of_everyone && !fleet.is_one_of_everyone(&call.comet) => {
                    let comet = call.comet.clone();
                    self.story.not_reached(&comet, &why);
                    gone.add(comet, &why);
                }
                // Rejected permanently, or unreachable with unknown recipients: there is no
                // absent user to decide about, so the record becomes a dead letter.
                Delivered::Unreachable(why) | Delivered::Refused(why) => {
                    self.story.tally.failed += call.recipients.len().max(1);
                    failed.add(call.comet.clone(), &why);
                }
            }
        }
        if gone.len() == self.story.calls.len() {
            // No comet accepted it.
            self.story.tally.failed += gone.len();
            failed.append(gone);
        }
        self.story.absent = self.people(route.as_deref(), planned, unreachable);
        let kept = self.offline().await?;
        self.count();
        match (failed.is_empty(), kept) {
            (true, None) => Ok((self.outcome(), String::new())),
            (true, Some(reason)) => self.dead_letter(reason).await,
            (false, kept) => {
                let mut reason = failed.into_reason(&self.story.trail);
                if let Some(kept) = kept {
                    reason = reason.and_not_kept(kept);
                }
                self.dead_letter(reason).await
            }
        }
    }

    /// Handles a call that reached some of its recipients. Returns the comet and the reason if the
    /// record has to become a dead letter.
    fn partly(
        &mut self,
        at: usize,
        partly: Partly,
        unreachable: &mut Vec<Absent>,
    ) -> Option<(CometAddr, String)> {
        let call = &mut self.story.calls[at];
        let (comet, recipients) = (call.comet.clone(), Arc::clone(&call.recipients));
        let apart = Apart::of(&recipients, &partly);
        call.took = Took::AllBut(partly.unreachable.into_iter().chain(partly.refused).collect());
        self.story.tally.sent += recipients.len() - apart.unreachable.len() - apart.refused;
        unreachable.extend(apart.unreachable.iter().map(|recipient| self.unreachable(recipient)));
        if apart.is_failed {
            self.story.tally.failed += apart.refused.max(1);
            return Some((comet, partly.why));
        }
        self.story.not_reached(&comet, &partly.why);
        None
    }

    /// A recipient whose comet was not reached. Keys that the producer addressed to a comet are not
    /// looked up, so the configuration decides what they are.
    fn unreachable(&self, recipient: &Recipient) -> Absent {
        let mut absent = recipient.absent(Cause::CometUnreachable);
        let audience = self.story.message.as_ref().map(|message| &message.audience);
        if absent.identity != Identity::User
            && matches!(audience, Some(Audience::Keys { server: Some(_), .. }))
        {
            absent.identity = self.pipeline.resolver.unknown_keys();
        }
        absent
    }

    /// The recipients that were not reached, each once, regardless of how many devices they have.
    fn people(
        &self,
        route: Option<&Route>,
        planned: Arc<[Absent]>,
        unreachable: Vec<Absent>,
    ) -> Arc<[Absent]> {
        if unreachable.is_empty() {
            return planned;
        }
        let all = planned.iter().cloned().chain(unreachable);
        if route.is_some_and(|route| !route.has_repeats()) {
            return all.collect();
        }
        router::people(all, self.story.calls.iter().flat_map(Call::reached)).into()
    }

    /// The outcome of a message without a dead letter.
    fn outcome(&self) -> Outcome {
        let tally = &self.story.tally;
        let is_kept = tally.stored + tally.notified > 0;
        match (self.story.calls.iter().any(|call| call.took != Took::Nothing), self.story.absent.is_empty()) {
            (true, true) => Outcome::Delivered,
            (true, false) => Outcome::PartlyDelivered,
            (false, _) if is_kept => Outcome::Stored,
            (false, _) => Outcome::Nobody,
        }
    }

    fn count(&self) {
        let (tally, metrics) = (&self.story.tally, &self.pipeline.metrics);
        metrics.recipients(Reached::Delivered, tally.sent);
        metrics.recipients(Reached::Failed, tally.failed);
        metrics.recipients(Reached::Withheld, self.story.withheld);
        metrics.recipients(Reached::Stored, tally.stored);
        metrics.recipients(Reached::Notified, tally.notified);
        metrics.recipients(Reached::Dropped, tally.dropped);
    }

    /// Writes the record as a dead letter, after earlier dead letters of its key.
    async fn dead_letter(&self, reason: Reason) -> Result<Ended, Abandoned> {
        let (record, place) = (&self.story.record, &self.story.pending.place);
        // No more inbox entries or notifications follow.
        place.pass(Output::Offline);
        if dead_letter::is_letter(record) {
            place.pass(Output::Letter);
            self.pipeline.metrics.dead_letter_again(record, &reason);
            return Ok((Outcome::DeadLetterAgain, reason.text));
        }
        let put = async {
            place.turn(Output::Letter).await;
            self.pipeline.dead_letters.put(Arc::clone(record), reason.clone()).await
        };
        let receipt = self.abandon.run_until_cancelled(put).await.ok_or(Abandoned)?;
        place.pass(Output::Letter);
        match persist(self.hold(), StallStage::DeadLetter, || receipt.outcome()).await? {
            Kept::Written => {
                self.pipeline.metrics.dead_letter(record, &reason);
                Ok((Outcome::DeadLettered, reason.text))
            }
            Kept::Lost(_) => Ok((Outcome::Lost, reason.text)),
        }
    }
}
