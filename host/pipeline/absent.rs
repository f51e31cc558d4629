//! The absent of one message: what policies decide, the inbox, notifications.
//!
//! A message may have a hundred thousand absent recipients, and many messages may have theirs at
//! the same time. So policies are asked, entries stored and notifications written in chunks, and
//! what waits over all messages is bounded: in [`Waiting`] by how many absent recipients a worker
//! may bring along, in the inbox's queue and at the notifier by what is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dead_letter::{Reason, Stage};
use crate::decision::{Absent, Decision, Disposition};
use crate::message::{Message, UserId};
use crate::offline::{InboxEntry, InboxQueue, Stored};
use crate::pipeline::journey::Journey;
use crate::pipeline::key_order::{Output, Passer};
use crate::pipeline::metrics::Station;
use crate::pipeline::persist::{Abandoned, Hold, hold_while, persist};
use crate::stalls::StallStage;

/// How many absent recipients a policy is asked about in one call.
const DECIDED_AT_ONCE: usize = 4_096;

/// How many are stored, or notified, before the next are looked at.
const CARRIED_OUT_AT_ONCE: usize = 1_024;

/// How many notifications of one message are on their way at a time.
const NOTIFIED_AT_ONCE: usize = 64;

/// How many absent recipients may wait, over all messages. A worker takes room for those of a
/// message before its calls are made, and waits when there is none: the records behind would
/// only wait in memory.
#[derive(Clone, Debug)]
pub struct Waiting {
    places: Arc<Semaphore>,
    all: u32,
}

impl Waiting {
    /// Room for so many.
    pub fn new(recipients: usize) -> Self {
        let all = u32::try_from(recipients).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32).max(1);
        Self { places: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Takes room for the absent of one message; all of it for one that has more.
    pub(super) async fn take(
        &self,
        absent: usize,
        inbox: &InboxQueue,
        hold: Hold<'_>,
    ) -> Result<Option<OwnedSemaphorePermit>, Abandoned> {
        if absent == 0 {
            return Ok(None);
        }
        let wanted = u32::try_from(absent).unwrap_or(u32::MAX).min(self.all);
        let taken = Arc::clone(&self.places).acquire_many_owned(wanted);
        // The semaphore is never closed.
        Ok(hold_while(hold, StallStage::Inbox, inbox.problem(), taken).await?.ok())
    }
}

/// What became of some absent recipients.
#[derive(Default)]
struct Failed {
    recipients: usize,
    /// Those, and perhaps some of whom it is not known.
    users: Vec<UserId>,
    why: Option<String>,
}

impl Failed {
    /// So many failed, all of them among these.
    fn add<'a>(&mut self, recipients: usize, among: impl Iterator<Item = &'a Absent>, why: Option<String>) {
        if recipients > 0 {
            self.recipients += recipients;
            self.users.extend(among.map(|absent| absent.user.clone()));
        }
        self.why = self.why.take().or(why);
    }

    /// Why the record itself is kept, when any of so many absent recipients failed.
    fn into_reason(self, absent: usize) -> Option<Reason> {
        let Self { recipients, users, why } = self;
        let text = format!("not kept for {recipients} of {absent} absent recipients: {}", why?);
        Some(Reason { users, ..Reason::new(Stage::Offline, text) })
    }
}

impl Journey {
    /// Decides about the absent and carries it out. Returns a dead letter's reason when an
    /// inbox, or the notify topic, can never take the message.
    pub(super) async fn offline(&mut self) -> Result<Option<Reason>, Abandoned> {
        if self.story.absent.is_empty() {
            // Its place is passed with its settlement, which is next, or with its letter.
            return Ok(None);
        }
        let since = Instant::now();
        let Some(message) = self.story.message.clone().map(Arc::new) else { return Ok(None) };
        let absent = Arc::clone(&self.story.absent);
        let decided = self.decide(&message, &absent).await?;
        let config = &self.pipeline.offline;
        let fate = |at: usize| {
            let decided = decided.get(at).cloned().flatten();
            config.disposition_of(&absent[at], decided)
        };
        let is_stored = |at: &usize| matches!(fate(*at), Disposition::Store { .. });
        let stored = || (0..absent.len()).filter(is_stored).map(|at| &absent[at]);
        let mut failed = Failed::default();
        let may_store = match config.refuses(&message, stored().map(|absent| &absent.user)) {
            None => true,
            why => {
                failed.add(stored().count(), stored(), why);
                false
            }
        };
        let is_written = |at: &usize| match fate(*at) {
            Disposition::Drop => false,
            Disposition::Store { .. } => may_store,
            Disposition::Notify { .. } => true,
        };
        let queueing = self.turn((0..absent.len()).filter(is_written).count()).await?;
        for first in (0..absent.len()).step_by(CARRIED_OUT_AT_ONCE) {
            let (mut store, mut notify) = (Vec::new(), Vec::new());
            for at in first..absent.len().min(first + CARRIED_OUT_AT_ONCE) {
                match fate(at) {
                    Disposition::Drop => self.story.tally.dropped += 1,
                    Disposition::Store { retention } if may_store => store.push((at, retention)),
                    Disposition::Store { .. } => {}
                    Disposition::Notify { channel } => notify.push((&absent[at], channel)),
                }
            }
            let (notified, refused) = self.notify(&message, &notify, &queueing).await?;
            self.story.tally.notified += notified;
            failed.add(notify.len() - notified, notify.iter().map(|(absent, _)| *absent), refused);
            let entries = || {
                store.iter().map(|(at, retention)| InboxEntry {
                    user: absent[*at].user.clone(),
                    message: Arc::clone(&message),
                    retention: *retention,
                })
            };
            let stored = self.store(store.len(), || entries().collect(), &queueing).await?;
            let Stored { refused, reason } = stored;
            self.story.tally.stored += store.len() - refused;
            failed.add(refused, store.iter().map(|(at, _)| &absent[*at]), reason);
        }
        drop(queueing);
        self.story.tally.failed += failed.recipients;
        self.pipeline.metrics.stage(Station::Offline, since);
        Ok(failed.into_reason(absent.len()))
    }

    /// Waits until everything is queued that earlier messages of the same key have for the absent:
    /// each user's inbox and notifications are in the order of the messages. There are so many
    /// entries and notifications to come.
    async fn turn(&self, outputs: usize) -> Result<Queueing, Abandoned> {
        let place = &self.story.pending.place;
        if outputs > 0 {
            self.abandon.run_until_cancelled(place.turn(Output::Offline)).await.ok_or(Abandoned)?;
        }
        Ok(Queueing { left: AtomicUsize::new(outputs), pass: place.passer(Output::Offline) })
    }

    /// What policies decide; nothing at all where there are none that would.
    async fn decide(
        &mut self,
        message: &Message,
        absent: &[Absent],
    ) -> Result<Vec<Option<Disposition>>, Abandoned> {
        if !self.chain.set().has_offline() {
            return Ok(Vec::new());
        }
        let (mut all, mut first_by, mut count) = (Vec::with_capacity(absent.len()), None, 0);
        for some in absent.chunks(DECIDED_AT_ONCE) {
            let decided = self.chain.call(self.hold(), |chain| chain.decide(message, some)).await?;
            for decided in decided {
                if let Some(decided) = &decided {
                    count += 1;
                    first_by.get_or_insert_with(|| decided.by.clone());
                }
                all.push(decided.map(|decided| decided.disposition));
            }
        }
        if let Some(by) = first_by {
            let what = format!("decided about {count} of {}", absent.len());
            self.story.trail.push(Decision { by, what });
        }
        Ok(all)
    }

    /// Stores entries, which are made once there is room for them.
    async fn store(
        &self,
        count: usize,
        entries: impl FnOnce() -> Vec<InboxEntry>,
        queueing: &Queueing,
    ) -> Result<Stored, Abandoned> {
        if count == 0 {
            return Ok(Stored::default());
        }
        let inbox = &self.pipeline.inbox;
        let store = async { inbox.places(count).await?.store(entries(), || queueing.queued(count)).await };
        // Without an outcome the writer has ended, which it does after the partitions.
        hold_while(self.hold(), StallStage::Inbox, inbox.problem(), store).await?.ok_or(Abandoned)
    }

    /// Writes notifications; returns how many are written, and why others never will be.
    async fn notify(
        &self,
        message: &Message,
        notify: &[(&Absent, String)],
        queueing: &Queueing,
    ) -> Result<(usize, Option<String>), Abandoned> {
        let mut rest = notify.iter();
        let mut under_way = FuturesUnordered::new();
        let (mut written, mut refused) = (0, None);
        loop {
            while under_way.len() < NOTIFIED_AT_ONCE
                && let Some((absent, channel)) = rest.next()
            {
                under_way.push(self.notify_one(message, absent, channel, queueing));
            }
            match under_way.next().await {
                None => return Ok((written, refused)),
                Some(outcome) => match outcome? {
                    None => written += 1,
                    Some(why) => refused = refused.or(Some(why)),
                },
            }
        }
    }

    /// Writes one; returns why the topic will never take it, when that is so.
    async fn notify_one(
        &self,
        message: &Message,
        absent: &Absent,
        channel: &str,
        queueing: &Queueing,
    ) -> Result<Option<String>, Abandoned> {
        let is_queued = AtomicBool::new(false);
        // One that has to be written again has lost its place; the others do not wait for that.
        let queued = || {
            if !is_queued.swap(true, Ordering::Relaxed) {
                queueing.queued(1);
            }
        };
        let write = || async {
            match self.pipeline.notifier.notify(message, absent, channel, queued).await {
                Ok(()) => Ok(None),
                Err(refused) if refused.refusal.is_some() => Ok(Some(refused.to_string())),
                Err(error) => Err(error),
            }
        };
        persist(self.hold(), StallStage::Notify, write).await
    }
}

/// Entries and notifications of one message that are not queued yet: the next message of the key
/// has its turn when there are none.
struct Queueing {
    left: AtomicUsize,
    pass: Passer,
}

impl Queueing {
    fn queued(&self, outputs: usize) {
        if self.left.fetch_sub(outputs, Ordering::AcqRel) == outputs {
            self.pass.pass();
        }
    }
}
