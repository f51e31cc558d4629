//! What becomes of one message once its calls are queued: their outcomes, the absent, a dead
//! letter if need be, and its settlement.
//!
//! A journey that is cut short drops its ticket: the record will be delivered again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;
use tracing::{Level, debug, error};

use crate::comets::{Delivered, Partly, Receipt};
use crate::dead_letter::{Reason, Stage};
use crate::decision::{Absent, Cause, Disposition, PluginVersion};
use crate::message::{CometAddr, Message, Record};
use crate::offline::InboxEntry;
use crate::offsets::Ticket;
use crate::pipeline::Pipeline;
use crate::pipeline::chain::BatchChain;
use crate::pipeline::metrics::Station;
use crate::pipeline::persist::{Abandoned, Hold, persist};
use crate::policy::{Decision, PolicySet};
use crate::router::Recipient;
use crate::stalls::StallStage;

/// One call that waits in a comet's lane or is under way.
pub(super) struct Call {
    pub(super) comet: CometAddr,
    pub(super) recipients: Arc<[Recipient]>,
    /// Whether it is made because the message is for every comet that counts.
    pub(super) of_everyone: bool,
    pub(super) receipt: Receipt,
}

/// How a message's way through the stages ended.
pub(super) enum Ending {
    Delivered {
        calls: Vec<Call>,
        absent: Vec<Absent>,
    },
    Dropped {
        reason: String,
        by: PluginVersion,
    },
    DeadLetter(Reason),
    /// The record is older than `[delivery] max_age`.
    Expired,
}

/// What is told of a message in its one line of log.
pub(super) struct Story {
    record: Arc<Record>,
    message: Option<Message>,
    ticket: Ticket,
    trail: Vec<Decision>,
    started: Instant,
    pub(super) connections: Option<usize>,
    pub(super) stale: usize,
    pub(super) withheld: usize,
    /// Comets that did not take it, and why.
    unreachable: Vec<String>,
    tally: Tally,
}

/// Recipients by outcome, and comets called.
#[derive(Debug, Default)]
struct Tally {
    comets: usize,
    sent: usize,
    failed: usize,
    offline: usize,
    stored: usize,
    notified: usize,
    dropped: usize,
}

impl Story {
    pub(super) fn new(message: Message, ticket: Ticket, trail: Vec<Decision>, started: Instant) -> Self {
        let mut story = Self::of_record(Arc::clone(&message.record), ticket, started);
        story.message = Some(message);
        story.trail = trail;
        story
    }

    /// The story of a record that is no message.
    pub(super) fn of_record(record: Arc<Record>, ticket: Ticket, started: Instant) -> Self {
        Self {
            record,
            message: None,
            ticket,
            trail: Vec::new(),
            started,
            connections: None,
            stale: 0,
            withheld: 0,
            unreachable: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// The one line that tells it all.
    fn tell(&self, set: &PolicySet, outcome: &str, reason: &str) {
        if !tracing::enabled!(Level::DEBUG) {
            return;
        }
        let plugins: Vec<_> = set.versions().iter().map(ToString::to_string).collect();
        let decisions: Vec<_> = self.trail.iter().map(|d| format!("{}: {}", d.by, d.what)).collect();
        let Tally { comets, sent, failed, offline, stored, notified, dropped } = self.tally;
        debug!(
            id = %self.record.message_id(),
            room = self.message.as_ref().and_then(Message::room).map(tracing::field::display),
            operation = self.message.as_ref().map(|m| m.operation),
            connections = self.connections, stale = self.stale, comets, sent, failed,
            offline, stored, notified, dropped, withheld = self.withheld,
            unreachable = ?self.unreachable, generation = %set.generation(), plugins = ?plugins, decisions = ?decisions, outcome, reason,
            took_ms = self.started.elapsed().as_secs_f64() * 1e3,
            "message settled"
        );
    }
}

/// A message on the rest of its way.
pub(super) struct Journey {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) chain: BatchChain,
    pub(super) abandon: CancellationToken,
    pub(super) story: Story,
}

/// The recipients of a call that reached only some of them.
struct Apart {
    absent: Vec<Absent>,
    /// How many the comet refused for good.
    refused: usize,
    /// Whether the record itself has to be kept: somebody was refused for good, or nobody knows
    /// whose connections were not reached.
    is_failed: bool,
}

impl Apart {
    fn of(recipients: &[Recipient], partly: &Partly) -> Self {
        let unreachable: HashSet<_> = partly.unreachable.iter().collect();
        let refused: HashSet<_> = partly.refused.iter().collect();
        let absent: Vec<_> = recipients
            .iter()
            .filter(|recipient| unreachable.contains(&recipient.connection))
            .map(|recipient| recipient.absent(Cause::CometUnreachable))
            .collect();
        let refused = recipients.iter().filter(|recipient| refused.contains(&recipient.connection)).count();
        let is_failed = !partly.refused.is_empty() || absent.len() < partly.unreachable.len();
        Self { absent, refused, is_failed }
    }
}

/// How many notifications of one message are on their way at a time.
const NOTIFY_CONCURRENCY: usize = 64;

impl Journey {
    /// Brings the message to its outcome and settles it.
    pub(super) async fn run(mut self, ending: Ending) {
        self.pipeline.metrics.in_flight.inc();
        let outcome = match ending {
            Ending::Delivered { calls, absent } => self.deliver(calls, absent).await,
            Ending::Dropped { reason, by } => Ok(("dropped", format!("{by}: {reason}"))),
            Ending::DeadLetter(reason) => self.dead_letter(reason).await,
            Ending::Expired => Ok(("expired", "older than `[delivery] max_age`".to_owned())),
        };
        self.pipeline.metrics.in_flight.dec();
        let Ok((outcome, reason)) = outcome else { return };
        self.story.tell(self.chain.set(), outcome, &reason);
        self.pipeline.metrics.settled(outcome, self.story.started);
        self.story.ticket.settle();
    }

    /// What is held while something is retried: this record.
    fn hold(&self) -> Hold<'_> {
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
        calls: Vec<Call>,
        mut absent: Vec<Absent>,
    ) -> Result<(&'static str, String), Abandoned> {
        let since = Instant::now();
        let pipeline = Arc::clone(&self.pipeline);
        let fleet = &pipeline.fleet;
        let mut failed: Vec<(CometAddr, String)> = Vec::new();
        let mut gone = Vec::new();
        self.story.tally.comets = calls.len();
        for Call { comet, recipients, of_everyone, receipt } in calls {
            let delivered = tokio::select! {
                delivered = receipt => delivered,
                () = self.abandon.cancelled() => return Err(Abandoned),
            };
            match delivered {
                Delivered::Acknowledged => self.story.tally.sent += recipients.len(),
                Delivered::Partly(partly) => {
                    let outcome = Apart::of(&recipients, &partly);
                    self.story.tally.sent += recipients.len() - outcome.absent.len() - outcome.refused;
                    absent.extend(outcome.absent);
                    if outcome.is_failed {
                        self.story.tally.failed += outcome.refused.max(1);
                        failed.push((comet, partly.why));
                    } else {
                        self.story.unreachable.push(format!("{comet}: {}", partly.why));
                    }
                }
                Delivered::Unreachable(why) if !recipients.is_empty() => {
                    self.story.unreachable.push(format!("{comet}: {why}"));
                    absent.extend(recipients.iter().map(|r| r.absent(Cause::CometUnreachable)));
                }
                // Neither named by the directory lately nor answering: it turned out not to be
                // one of those whom the message is for.
                Delivered::Unreachable(why) if of_everyone && !fleet.is_one_of_everyone(&comet) => {
                    self.story.unreachable.push(format!("{comet}: {why}"));
                    gone.push((comet, why));
                }
                // Refused for good, or unreachable and nobody knows for whom it was: there is
                // no offline user to decide about, so the record itself is kept.
                Delivered::Unreachable(why) | Delivered::Refused(why) => {
                    self.story.tally.failed += recipients.len().max(1);
                    failed.push((comet, why));
                }
            }
        }
        if gone.len() == self.story.tally.comets {
            // Then nobody got it.
            self.story.tally.failed += gone.len();
            failed.append(&mut gone);
        }
        self.pipeline.metrics.stage(Station::Deliver, since);
        self.pipeline.metrics.recipients("delivered", self.story.tally.sent);
        self.pipeline.metrics.recipients("failed", self.story.tally.failed);
        self.pipeline.metrics.recipients("withheld", self.story.withheld);

        let kept = if absent.is_empty() { None } else { self.offline(&absent).await? };
        match (failed.is_empty(), kept) {
            (true, None) => Ok(("delivered", String::new())),
            (true, Some(reason)) => self.dead_letter(reason).await,
            (false, _) => {
                let why: Vec<_> = failed.iter().map(|(comet, why)| format!("{comet}: {why}")).collect();
                let mut reason = Reason::new(Stage::Deliver, why.join("; "));
                reason.comets = failed.into_iter().map(|(comet, _)| comet).collect();
                self.dead_letter(reason).await
            }
        }
    }

    /// Decides about the absent and carries it out. Returns a dead letter's reason when an
    /// inbox can never take the message.
    async fn offline(&mut self, absent: &[Absent]) -> Result<Option<Reason>, Abandoned> {
        let since = Instant::now();
        let Some(message) = self.story.message.clone() else { return Ok(None) };
        let message = Arc::new(message);
        self.story.tally.offline = absent.len();
        let dispositions = self.decide(&message, absent).await?;

        let (mut store, mut notify) = (Vec::new(), Vec::new());
        for (absent, disposition) in absent.iter().zip(dispositions) {
            match disposition {
                Disposition::Drop => self.story.tally.dropped += 1,
                Disposition::Store { retention } => {
                    let (user, message) = (absent.user.clone(), Arc::clone(&message));
                    store.push(InboxEntry { user, message, retention });
                }
                Disposition::Notify { channel } => notify.push((absent, channel)),
            }
        }
        self.story.tally.notified = notify.len();
        self.notify(&message, &notify).await?;
        let lost = self.store(&store).await?;

        let Tally { stored, notified, dropped, .. } = self.story.tally;
        let metrics = &self.pipeline.metrics;
        metrics.recipients("stored", stored);
        metrics.recipients("notified", notified);
        metrics.recipients("dropped", dropped);
        metrics.stage(Station::Offline, since);
        let text = || format!("{} of {} inboxes cannot take the message", lost, store.len());
        Ok((lost > 0).then(|| Reason::new(Stage::Offline, text())))
    }

    async fn decide(&mut self, message: &Message, absent: &[Absent]) -> Result<Vec<Disposition>, Abandoned> {
        let default = self.pipeline.offline.disposition();
        if !self.chain.set().has_offline() {
            return Ok(vec![default; absent.len()]);
        }
        let decided = self.chain.call(self.hold(), |chain| chain.decide(message, absent)).await?;
        if let Some(first) = decided.iter().flatten().next() {
            let what = format!("decided about {} of {}", decided.iter().flatten().count(), absent.len());
            self.story.trail.push(Decision { by: first.by.clone(), what });
        }
        let or_default = |decided: Option<crate::policy::Decided>| {
            decided.map_or_else(|| default.clone(), |decided| decided.disposition)
        };
        Ok(decided.into_iter().map(or_default).collect())
    }

    /// Stores what is to be stored; returns how many entries can never be.
    async fn store(&mut self, entries: &[InboxEntry]) -> Result<usize, Abandoned> {
        if entries.is_empty() {
            return Ok(0);
        }
        let store = || self.pipeline.inbox.store(entries);
        let lost = persist(self.hold(), StallStage::Inbox, store).await?.len();
        self.story.tally.stored = entries.len() - lost;
        self.story.tally.failed += lost;
        Ok(lost)
    }

    async fn notify(&self, message: &Message, notify: &[(&Absent, String)]) -> Result<(), Abandoned> {
        for some in notify.chunks(NOTIFY_CONCURRENCY) {
            let mut writes = Vec::with_capacity(some.len());
            for (absent, channel) in some {
                let write = || self.pipeline.notifier.notify(message, absent, channel);
                writes.push(persist(self.hold(), StallStage::Notify, write));
            }
            try_join_all(writes).await?;
        }
        Ok(())
    }

    async fn dead_letter(&self, reason: Reason) -> Result<(&'static str, String), Abandoned> {
        let write = || self.pipeline.dead_letters.write(&self.story.record, &reason);
        persist(self.hold(), StallStage::DeadLetter, write).await?;
        let stage = reason.stage.as_str();
        // A person has to look at these, but one line a record could flood the log: the
        // counter tells how many, the topic tells which.
        if reason.stage == Stage::Deliver || reason.stage == Stage::Offline {
            error!(id = %self.story.record.message_id(), stage, reason = reason.text, "a record could not be delivered and is kept as a dead letter");
        } else {
            debug!(id = %self.story.record.message_id(), stage, reason = reason.text, "dead letter");
        }
        Ok(("dead-lettered", reason.text))
    }
}
