//! What becomes of one message once its calls are queued: their outcomes, the absent, a dead
//! letter if need be, and its settlement.
//!
//! A journey that is cut short drops its ticket: the record will be delivered again. Where
//! everyone is reached, nothing is allocated here.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::comets::{Delivered, Partly};
use crate::dead_letter::{self, Kept, Reason};
use crate::decision::{Absent, Cause, Identity, PluginVersion};
use crate::message::{Audience, CometAddr};
use crate::pipeline::Pipeline;
use crate::pipeline::call::{Apart, Call, Took};
use crate::pipeline::chain::BatchChain;
use crate::pipeline::key_order::Output;
use crate::pipeline::metrics::{Outcome, Reached, Station};
use crate::pipeline::not_taken::NotTaken;
use crate::pipeline::persist::{Abandoned, Hold, persist};
use crate::pipeline::story::Story;
use crate::router::{self, Recipient, Route};
use crate::stalls::StallStage;

/// How a message's way through the stages ended.
pub(super) enum Ending {
    Delivered {
        /// The room, when it was looked up.
        route: Option<Arc<Route>>,
        calls: Vec<Call>,
        absent: Arc<[Absent]>,
        /// The room that the absent take among all that wait.
        places: Option<OwnedSemaphorePermit>,
    },
    Dropped {
        reason: String,
        by: PluginVersion,
    },
    /// There is nobody whom it could reach.
    Unaddressed(&'static str),
    DeadLetter(Reason),
    /// The record is older than `[delivery] max_age`.
    Expired,
}

/// A message on the rest of its way.
pub(super) struct Journey {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) chain: BatchChain,
    pub(super) abandon: CancellationToken,
    pub(super) story: Story,
}

/// How a journey ended, and why.
pub(super) type Ended = (Outcome, String);

impl Journey {
    /// Brings the message to its outcome and settles it.
    pub(super) async fn run(mut self, ending: Ending) {
        self.pipeline.metrics.in_flight.inc();
        let ended = match ending {
            Ending::Delivered { route, calls, absent, places } => {
                self.story.calls = calls;
                let ended = self.deliver(route, absent).await;
                drop(places);
                ended
            }
            Ending::Dropped { reason, by } => Ok((Outcome::Dropped, format!("{by}: {reason}"))),
            Ending::Unaddressed(reason) => Ok((Outcome::Nobody, reason.to_owned())),
            Ending::DeadLetter(reason) => self.dead_letter(reason).await,
            Ending::Expired => Ok((Outcome::Expired, "older than `[delivery] max_age`".to_owned())),
        };
        self.pipeline.metrics.in_flight.dec();
        let Ok((outcome, reason)) = ended else { return };
        self.story.tell(self.chain.set(), outcome, &reason);
        self.pipeline.metrics.settled(outcome, self.story.started);
        self.story.pending.ticket.settle();
    }

    /// What is held while something is retried: this record.
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
        planned: Arc<[Absent]>,
    ) -> Result<Ended, Abandoned> {
        let since = Instant::now();
        let pipeline = Arc::clone(&self.pipeline);
        let fleet = &pipeline.fleet;
        let (mut failed, mut gone) = (NotTaken::default(), NotTaken::default());
        let mut unreachable: Vec<Absent> = Vec::new();
        for at in 0..self.story.calls.len() {
            let call = &mut self.story.calls[at];
            let delivered = tokio::select! {
                delivered = &mut call.receipt => delivered,
                () = self.abandon.cancelled() => return Err(Abandoned),
            };
            match delivered {
                Delivered::Acknowledged => {
                    call.took = Took::All;
                    self.story.tally.sent += call.recipients.len();
                }
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
                // Neither named by the directory lately nor answering: it turned out not to be
                // one of those whom the message is for.
                Delivered::Unreachable(why) if call.of_everyone && !fleet.is_one_of_everyone(&call.comet) => {
                    let comet = call.comet.clone();
                    self.story.not_reached(&comet, &why);
                    gone.add(comet, &why);
                }
                // Refused for good, or unreachable and nobody knows for whom it was: there is
                // no offline user to decide about, so the record itself is kept.
                Delivered::Unreachable(why) | Delivered::Refused(why) => {
                    self.story.tally.failed += call.recipients.len().max(1);
                    failed.add(call.comet.clone(), &why);
                }
            }
        }
        if gone.len() == self.story.calls.len() {
            // Then nobody got it.
            self.story.tally.failed += gone.len();
            failed.append(gone);
        }
        self.pipeline.metrics.stage(Station::Deliver, since);
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

    /// Takes in a call that reached some of its recipients; gives the comet and why when the record
    /// itself has to be kept.
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

    /// A recipient whose comet was not reached. Keys that the producer sent to a comet are not
    /// looked up, so that the configuration says what they are.
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

    /// Everyone who was not reached, each once, whatever devices they have.
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

    /// What a message came to that has no dead letter.
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

    /// Keeps the record with the reason, behind earlier dead letters of its key.
    async fn dead_letter(&self, reason: Reason) -> Result<Ended, Abandoned> {
        let (record, place) = (&self.story.record, &self.story.pending.place);
        // Nothing is kept for anybody any more.
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
