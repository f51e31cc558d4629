//! Handles the absent recipients of one message: policy decisions, inbox, notifications.
//!
//! A message may have a hundred thousand absent recipients, and many such messages may be in flight
//! together. So policies decide, entries are stored and notifications are written in chunks, and
//! pending work over all messages is bounded: by `absent_budget` in absent recipients, and by the inbox
//! queue and the notifier in requests in flight.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};

use crate::dead_letter::{DeadLetterReason, Stage};
use crate::decision::{AbsenceCause, AbsentRecipient, Disposition, Effect, TrailEntry};
use crate::history::InboxEntries;
use crate::inbox::{InboxEntry, Position, StoreResult};
use crate::message::{ConnectionId, Message, UserId};
use crate::pipeline::delivery_task::DeliveryTask;
use crate::pipeline::key_order::{Output, OutputReleaser};
use crate::pipeline::metrics::TimedStage;
use crate::pipeline::retry::{Cancelled, retry_until_cancelled, wait_while_held};
use crate::policy::HookKind;
use crate::router;
use crate::stalls::StallStage;
use crate::telemetry::traces::SpanStage;

/// Absent recipients per call to a policy.
const DECIDE_CHUNK: usize = 4_096;

/// Absent recipients that are stored or notified together.
const OUTPUT_CHUNK: usize = 1_024;

/// Notifications of one message in flight.
const MAX_NOTIFICATIONS_IN_FLIGHT: usize = 64;

/// The absent recipients for whom storing or notifying failed.
#[derive(Default)]
struct FailedRecipients {
    /// Exactly those that have nothing: the others would get it again.
    users: Vec<UserId>,
    why: Option<String>,
}

impl FailedRecipients {
    /// These failed, the first of them for this reason.
    fn add(&mut self, users: impl IntoIterator<Item = UserId>, why: Option<String>) {
        self.users.extend(users);
        self.why = self.why.take().or(why);
    }

    /// The reason of a dead letter, if any of `absent` recipients failed.
    fn into_reason(self, absent: usize) -> Option<DeadLetterReason> {
        let Self { users, why } = self;
        let recipients = users.len();
        let text = format!("not kept for {recipients} of {absent} absent recipients: {}", why?);
        Some(DeadLetterReason { users, ..DeadLetterReason::new(Stage::Offline, text) })
    }
}

impl DeliveryTask {
    /// Decides what happens for the absent recipients and does it. Returns the reason of a dead
    /// letter if an inbox or the notify topic can never accept the message.
    pub(super) async fn handle_absent(&mut self) -> Result<Option<DeadLetterReason>, Cancelled> {
        let (absent, decided_for) = self.recipients_to_decide();
        if absent.is_empty() {
            // Its position is released by its settlement, which is next, or with its dead letter.
            return Ok(None);
        }
        let since = Instant::now();
        let Some(message) = self.trace.message.clone().map(Arc::new) else { return Ok(None) };
        let decided = self.decide(&message, &absent[..decided_for]).await?;
        let config = &self.pipeline.offline;
        let is_in_history = self.is_read_in_the_history();
        let reference = self.reference(&message);
        let decision = |at: usize| config.disposition_of(&absent[at], decided.get(at).cloned().flatten());
        let stays_in_history = |at: usize| {
            is_in_history && at < decided_for && matches!(decision(at), Disposition::Store { .. })
        };
        let fate = |at: usize| match at {
            at if stays_in_history(at) => Disposition::Drop,
            at if at >= decided_for => Disposition::Store { retention: None },
            at => decision(at),
        };
        let is_stored = |at: &usize| matches!(fate(*at), Disposition::Store { .. });
        let stored = || (0..absent.len()).filter(is_stored).map(|at| &absent[at]);
        let mut failed = FailedRecipients::default();
        let refused = config.refuses(&message, reference.is_some(), stored().map(|absent| &absent.user));
        let may_store = refused.is_none();
        if !may_store {
            failed.add(stored().map(|absent| absent.user.clone()), refused);
        }
        let is_written = |at: &usize| match fate(*at) {
            Disposition::Drop => false,
            Disposition::Store { .. } => may_store,
            Disposition::Notify { .. } => true,
        };
        let pending_outputs = self.wait_turn((0..absent.len()).filter(is_written).count()).await?;
        for first in (0..absent.len()).step_by(OUTPUT_CHUNK) {
            let (mut store, mut notify) = (Vec::new(), Vec::new());
            for at in first..absent.len().min(first + OUTPUT_CHUNK) {
                match fate(at) {
                    Disposition::Drop if stays_in_history(at) => self.trace.counts.stored += 1,
                    Disposition::Drop => self.trace.counts.dropped += 1,
                    Disposition::Store { retention } if may_store => store.push((at, retention)),
                    Disposition::Store { .. } => {}
                    Disposition::Notify { channel } => notify.push((&absent[at], channel)),
                }
            }
            let StoreResult { refused, reason, .. } =
                self.notify(&message, &notify, &pending_outputs).await?;
            self.trace.counts.notified += notify.len() - refused.len();
            failed.add(refused, reason);
            let recipients = (&absent[..], decided_for);
            self.trace.counts.stored +=
                self.store_and_archive(&message, recipients, store, &pending_outputs, &mut failed).await?;
        }
        drop(pending_outputs);
        self.trace.counts.failed += failed.users.len();
        self.pipeline.metrics.stage(TimedStage::Offline, since);
        self.trace.note(SpanStage::Absent, since);
        Ok(failed.into_reason(absent.len()))
    }

    /// Whether absent users find the message in the history of its room, and get nothing else.
    fn is_read_in_the_history(&self) -> bool {
        let is_configured = self.pipeline.history_config.inbox == InboxEntries::None;
        is_configured && self.trace.in_history.is_some() && !self.trace.retention.inbox
    }

    /// The place in the history of its room that inboxes refer to instead of having the message. Without a
    /// timestamp, the archive could not tell which message that is.
    fn reference(&self, message: &Message) -> Option<Position> {
        let is_configured = self.pipeline.history_config.inbox == InboxEntries::Reference;
        self.trace.in_history.filter(|_| is_configured && message.record.timestamp_ms.is_some())
    }

    /// Stores and archives a message for the recipients at these indexes, each with the retention that a
    /// policy asked for. Those from `decided_for` on were reached. Users who are back get it live as well.
    /// Returns for how many it is stored.
    async fn store_and_archive(
        &self,
        message: &Arc<Message>,
        (absent, decided_for): (&[AbsentRecipient], usize),
        mut store: Vec<(usize, Option<Duration>)>,
        pending_outputs: &PendingOutputs,
        failed: &mut FailedRecipients,
    ) -> Result<usize, Cancelled> {
        let reference = self.reference(message);
        let entry = |(at, retention): &(usize, _)| {
            inbox_entry(&absent[*at], *at < decided_for, message, (*retention, reference))
        };
        let entries = || store.iter().map(entry).collect();
        let StoreResult { refused, reason, returned, positions } =
            self.store(store.len(), entries, pending_outputs).await?;
        store.retain(|(at, _)| !refused.contains(&absent[*at].user));
        failed.add(refused, reason);
        let kept = store.iter().map(|(at, retention)| {
            let cause = (*at < decided_for).then_some(absent[*at].cause);
            (&absent[*at].user, cause, *retention)
        });
        let StoreResult { refused, reason, .. } =
            self.archive(message, kept, (&positions, reference)).await?;
        failed.add(refused, reason);
        self.hand_over(message, &self.not_reached(returned)).await?;
        Ok(store.len())
    }

    /// The users whose connection did not get the message: a user may have several, and one is registered.
    fn not_reached(&self, mut returned: Vec<(UserId, ConnectionId)>) -> Vec<(UserId, ConnectionId)> {
        if !returned.is_empty() {
            let reached: HashSet<_> = self.trace.reached().map(|recipient| &recipient.connection).collect();
            returned.retain(|(_, connection)| !reached.contains(connection));
        }
        returned
    }

    /// The absent recipients, then the users who were reached if the message is stored for these as well,
    /// and where the latter begin.
    fn recipients_to_decide(&self) -> (Arc<[AbsentRecipient]>, usize) {
        let (absent, decided_for) = (&self.trace.absent, self.trace.absent.len());
        if !self.trace.retention.inbox {
            return (Arc::clone(absent), decided_for);
        }
        // The cause is not stored; it only says that their connection is not a new one.
        let reached = self.trace.reached().filter(|recipient| recipient.user.is_some());
        let reached = reached.map(|recipient| recipient.absent(AbsenceCause::NoConnection));
        (router::distinct_absent(absent.iter().cloned().chain(reached), []).into(), decided_for)
    }

    /// Waits until earlier messages of the same key have queued all their entries and notifications,
    /// so that each user's inbox and notifications keep the order of messages. This message has
    /// `outputs` of them.
    async fn wait_turn(&self, outputs: usize) -> Result<PendingOutputs, Cancelled> {
        let position = &self.trace.pending.position;
        if outputs > 0 {
            self.cancel.run_until_cancelled(position.wait_turn(Output::Offline)).await.ok_or(Cancelled)?;
        }
        Ok(PendingOutputs { left: AtomicUsize::new(outputs), releaser: position.releaser(Output::Offline) })
    }

    /// The decisions of the policies; empty if no policy has the hook.
    async fn decide(
        &mut self,
        message: &Message,
        absent: &[AbsentRecipient],
    ) -> Result<Vec<Option<Disposition>>, Cancelled> {
        if !self.chain.set().has(HookKind::Offline) {
            return Ok(Vec::new());
        }
        let (mut all, mut first_by, mut count) = (Vec::with_capacity(absent.len()), None, 0);
        for some in absent.chunks(DECIDE_CHUNK) {
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
            let effect = Effect::DecidedOffline { decided: count, absent: absent.len() };
            self.trace.trail.push(TrailEntry { by, effect });
        }
        Ok(all)
    }

    /// Stores entries, which are created once the queue has room for them.
    async fn store(
        &self,
        count: usize,
        entries: impl FnOnce() -> Vec<InboxEntry>,
        pending_outputs: &PendingOutputs,
    ) -> Result<StoreResult, Cancelled> {
        if count == 0 {
            return Ok(StoreResult::default());
        }
        let inbox = &self.pipeline.inbox;
        let store =
            async { inbox.places(count).await?.store(entries(), || pending_outputs.queued(count)).await };
        // No outcome means that the writer has ended, which happens after the partitions are closed.
        wait_while_held(self.hold(), StallStage::Inbox, inbox.problem(), store).await?.ok_or(Cancelled)
    }

    /// Writes notifications; returns the recipients that can never be notified, and why.
    async fn notify(
        &self,
        message: &Message,
        notify: &[(&AbsentRecipient, String)],
        pending_outputs: &PendingOutputs,
    ) -> Result<StoreResult, Cancelled> {
        // By index: a future that holds a closure which takes references counts as not `Send`.
        let writes = stream::iter(0..notify.len()).map(|at| async move {
            let (absent, channel) = &notify[at];
            (*absent, self.notify_one(message, absent, channel, pending_outputs).await)
        });
        let mut written = writes.buffer_unordered(MAX_NOTIFICATIONS_IN_FLIGHT);
        let mut outcomes = StoreResult::default();
        while let Some((absent, refusal)) = written.next().await {
            if let Some(why) = refusal? {
                outcomes.refused.push(absent.user.clone());
                outcomes.reason.get_or_insert(why);
            }
        }
        Ok(outcomes)
    }

    /// Writes one notification; returns why the topic will never accept it, if so.
    async fn notify_one(
        &self,
        message: &Message,
        absent: &AbsentRecipient,
        channel: &str,
        pending_outputs: &PendingOutputs,
    ) -> Result<Option<String>, Cancelled> {
        let is_queued = AtomicBool::new(false);
        // A notification that is retried has lost its position; later ones do not wait for it.
        let queued = || {
            if !is_queued.swap(true, Ordering::Relaxed) {
                pending_outputs.queued(1);
            }
        };
        let notifier = &self.pipeline.notifier;
        let write = || notifier.notify(message, self.trace.context(), absent, channel, queued);
        retry_until_cancelled(self.hold(), StallStage::Notify, write).await
    }
}

/// What is stored for a user.
fn inbox_entry(
    absent: &AbsentRecipient,
    is_absent: bool,
    message: &Arc<Message>,
    (retention, in_history): (Option<Duration>, Option<Position>),
) -> InboxEntry {
    // A user who was not online may return with the connection that the room still lists.
    let may_return = absent.cause == AbsenceCause::NotOnline && !absent.by_policy;
    let failed = absent.connection.clone().filter(|_| !may_return);
    let (user, cause) = (absent.user.clone(), is_absent.then_some(absent.cause));
    InboxEntry { user, cause, failed, message: Arc::clone(message), retention, in_history }
}

/// Counts the entries and notifications of one message that are not queued yet. At zero, the next
/// message of the key has its turn.
struct PendingOutputs {
    left: AtomicUsize,
    releaser: OutputReleaser,
}

impl PendingOutputs {
    fn queued(&self, outputs: usize) {
        if self.left.fetch_sub(outputs, Ordering::AcqRel) == outputs {
            self.releaser.release();
        }
    }
}
