//! Replays inboxes to users who return, for comets that read no inboxes themselves.
//!
//! Comets register a user with `user:online:{user}`. Redis publishes that, at most once; so a sweep goes
//! over all inboxes as well, in small steps, by one gateway at a time. Of the gateways that learn of a
//! return, one holds the claim and replays, from the position of a device of its own ([`DEVICE`]) up to the
//! end of the inbox, acknowledging what the comet took.
//!
//! A comet may register a user before it can push to the connection, and would drop what comes earlier: so
//! a replay begins `replay_delay` after the registration. Users who got a message live when it was stored
//! (`always_store`) do not get it again. Everything is bounded: events that do not fit into the queue are
//! dropped, counted, and made good by a sweep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::expiring::ExpiringMap;
use crate::inbox::{Cursor, DeviceId, InboxReader, KeyEvents, PageQuery, Registered, ReturnedUsers};
use crate::message::UserId;
use crate::panics;
use crate::pipeline::{Pipeline, Pusher};
use crate::replay::metrics::{Metrics, ReplayOutcome};
use crate::replay::registrations::{Registration, RegistrationQueue};
use crate::replay::{ReplayError, Replayer};

/// The device whose position says what was replayed on return.
const DEVICE: &str = "halley-replay";
/// Users that are looked at together.
const BATCH: usize = 256;
/// Replays that run at once.
const REPLAYS: usize = 64;
/// Users whose state is remembered, so that renewals of their registrations cost one look.
const REMEMBERED: usize = 100_000;
/// For how long.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// How often the subscription is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between two steps of a sweep.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);
/// How often a connection that the directory does not know yet is looked for.
const ATTEMPTS: u32 = 4;

/// When replays begin, and how often all inboxes are looked at.
#[derive(Clone, Copy, Debug)]
pub struct ReplayTiming {
    /// The delay after a registration.
    pub delay: Duration,
    /// The time between two sweeps.
    pub sweep_interval: Duration,
}

/// The task that replays on return.
pub struct ReplayOnReturn {
    replays: Arc<Replays>,
    events: Option<KeyEvents>,
    registered: mpsc::Receiver<Registration>,
    dropped: Arc<AtomicU64>,
    warning: watch::Sender<Option<String>>,
}

/// What replays share.
struct Replays {
    pipeline: Arc<Pipeline>,
    reader: Arc<dyn InboxReader>,
    users: ReturnedUsers,
    timing: ReplayTiming,
    metrics: Metrics,
    /// What was found when a user had everything.
    done: Mutex<ExpiringMap<UserId, Registered>>,
    running: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl ReplayOnReturn {
    /// A task that is not running yet, and what it warns of.
    pub fn new(
        pipeline: Arc<Pipeline>,
        reader: Arc<dyn InboxReader>,
        (users, events): (ReturnedUsers, Option<KeyEvents>),
        queue: RegistrationQueue,
        timing: ReplayTiming,
        (tasks, shutdown): (TaskTracker, CancellationToken),
    ) -> (Self, watch::Receiver<Option<String>>) {
        let RegistrationQueue { registered, dropped, metrics } = queue;
        let (warning, warnings) = watch::channel(None);
        let replays = Arc::new(Replays {
            pipeline,
            reader,
            users,
            timing,
            metrics,
            done: Mutex::new(ExpiringMap::new(REMEMBERED)),
            running: Arc::new(Semaphore::new(REPLAYS)),
            tasks,
            shutdown,
        });
        (Self { replays, events, registered, dropped, warning }, warnings)
    }

    /// Runs until the gateway stops.
    pub async fn run(self) {
        let Self { replays, events, mut registered, dropped, warning } = self;
        let shutdown = replays.shutdown.clone();
        let follow = replays.follow(&mut registered, &dropped);
        let sweep = replays.watch(events.as_ref(), &dropped, &warning);
        let both = async { tokio::join!(follow, sweep) };
        shutdown.run_until_cancelled(both).await;
    }
}

impl Replays {
    /// Looks at users `delay` after their registration.
    async fn follow(self: &Arc<Self>, registered: &mut mpsc::Receiver<Registration>, dropped: &AtomicU64) {
        let mut batch = Vec::with_capacity(BATCH);
        while registered.recv_many(&mut batch, BATCH).await > 0 {
            let last = batch.last().map_or_else(Instant::now, |registration: &Registration| registration.at);
            tokio::time::sleep_until((last + self.timing.delay).into()).await;
            let users: Vec<UserId> = batch.drain(..).map(|registration| registration.user).collect();
            if let Err(error) = self.look_at(&users, Duration::ZERO).await {
                tracing::debug!(%error, "cannot look at users who returned; a sweep follows");
                self.metrics.dropped.inc_by(users.len() as u64);
                dropped.fetch_add(users.len() as u64, Relaxed);
            }
        }
    }

    /// Checks the subscription, and sweeps: now and then, and after events may have been lost.
    async fn watch(
        self: &Arc<Self>,
        events: Option<&KeyEvents>,
        dropped: &AtomicU64,
        warning: &watch::Sender<Option<String>>,
    ) {
        let (mut epoch, mut lost, mut due) = (0, 0, Instant::now());
        let mut swept = None;
        loop {
            let (mut may_have_missed, mut problem) = (false, None);
            if let Some(events) = events {
                let checked = events.check().await;
                problem = match &checked {
                    Ok(subscribed) => subscribed.problem.clone(),
                    Err(error) => Some(error.to_string()),
                };
                self.metrics.subscribed.set(i64::from(problem.is_none()));
                if let Ok(subscribed) = checked {
                    may_have_missed = subscribed.epoch != std::mem::replace(&mut epoch, subscribed.epoch);
                }
            }
            report(warning, warning_text(problem, swept.as_deref(), self.timing.sweep_interval));
            let count = dropped.load(Relaxed);
            may_have_missed |= count != std::mem::replace(&mut lost, count);
            let is_due = Instant::now() >= due;
            if may_have_missed || is_due && self.is_my_turn().await {
                match self.sweep().await {
                    Ok(()) => {
                        swept = None;
                        self.metrics.sweeps.inc();
                    }
                    Err(error) => {
                        swept = Some(format!("cannot look for users who returned: {error}"));
                        // What was missed is still to be found.
                        lost = if may_have_missed { u64::MAX } else { lost };
                    }
                }
            }
            if may_have_missed || is_due {
                due = Instant::now() + self.timing.sweep_interval;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    async fn is_my_turn(&self) -> bool {
        // Shorter than the interval, so that the next one is not missed by a moment.
        self.users.claim_sweep(self.timing.sweep_interval.mul_f64(0.9)).await.unwrap_or(false)
    }

    /// Looks at the owners of all inboxes.
    async fn sweep(self: &Arc<Self>) -> Result<(), crate::inbox::Unavailable> {
        let mut at = Some(Default::default());
        while let Some(cursor) = at {
            let (owners, next) = self.users.owners(cursor).await?;
            for some in owners.chunks(BATCH) {
                self.look_at(some, self.timing.delay).await?;
            }
            at = next;
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
        Ok(())
    }

    /// Replays to those of these users who are registered and lack something, after this delay. Waits
    /// while too many replays run.
    async fn look_at(
        self: &Arc<Self>,
        users: &[UserId],
        delay: Duration,
    ) -> Result<(), crate::inbox::Unavailable> {
        let found = self.users.registered(users).await?;
        let open: Vec<_> = users.iter().zip(found).filter_map(|(user, found)| Some((user, found?))).collect();
        let open: Vec<_> = open.into_iter().filter(|(user, found)| self.may_lack(user, found)).collect();
        if !open.is_empty() {
            tokio::time::sleep(delay).await;
        }
        for (user, found) in open {
            let Ok(permit) = Arc::clone(&self.running).acquire_owned().await else { return Ok(()) };
            let (replays, user) = (Arc::clone(self), user.clone());
            let replay = async move {
                let shutdown = replays.shutdown.clone();
                shutdown.run_until_cancelled(replays.replay_claimed(user, found)).await;
                drop(permit);
            };
            self.tasks.spawn(panics::abort_on_panic("a replay on return", replay));
        }
        Ok(())
    }

    fn may_lack(&self, user: &UserId, found: &Registered) -> bool {
        found.kept > 0 && self.done.lock().get(user, Instant::now()) != Some(found)
    }

    /// Replays, unless another gateway does.
    async fn replay_claimed(&self, user: UserId, found: Registered) {
        let connection = &found.connection;
        match self.users.claim(&user, connection).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(%user, %error, "cannot claim a replay");
                return;
            }
        }
        let outcome = self.replay(&user, &found).await;
        // A claim that cannot be given up expires.
        drop(self.users.release(&user, connection).await);
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::debug!(%user, %error, "a replay on return failed");
            match error {
                ReplayError::NotConnected(_) => ReplayOutcome::NotConnected,
                ReplayError::Unavailable(_) => ReplayOutcome::Failed,
            }
        });
        self.metrics.ended(outcome);
        if matches!(outcome, ReplayOutcome::Replayed | ReplayOutcome::CaughtUp) {
            self.done.lock().insert(user, found, REMEMBERED_FOR, Instant::now());
        }
    }

    /// Pushes what the user lacks, page by page.
    async fn replay(&self, user: &UserId, found: &Registered) -> Result<ReplayOutcome, ReplayError> {
        let Ok(device) = DeviceId::new(DEVICE) else { return Ok(ReplayOutcome::Failed) };
        let standing = self.reader.standing(user, Some(&device)).await?;
        let place = |cursor: Option<Cursor>| cursor.map(Cursor::position);
        if place(standing.last) <= place(standing.acknowledged) {
            return Ok(ReplayOutcome::CaughtUp);
        }
        let pusher = Pusher { resolver: &self.pipeline.resolver, fleet: &self.pipeline.fleet };
        let replayer = Replayer { reader: &*self.reader, pusher, only_missed: true };
        let (mut after, mut attempt, mut outcome) = (standing.acknowledged, 1, ReplayOutcome::CaughtUp);
        loop {
            let query = PageQuery { after, ..PageQuery::default() };
            let replayed = match replayer.replay(user, Some(&found.connection), &query).await {
                // The comet may write `connection:info` after `user:online`.
                Err(ReplayError::NotConnected(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(self.timing.delay * attempt).await;
                    attempt += 1;
                    continue;
                }
                replayed => replayed?,
            };
            self.metrics.messages.inc_by(replayed.pushed as u64);
            if replayed.pushed > 0 {
                outcome = ReplayOutcome::Replayed;
            }
            if let Some(next) = replayed.next.filter(|next| Some(*next) != after) {
                self.reader.acknowledge(user, &device, next.position()).await?;
                after = Some(next);
            }
            if let Some(why) = replayed.stopped {
                tracing::debug!(%user, why, "a replay on return stopped");
                return Ok(ReplayOutcome::Failed);
            }
            if !replayed.more {
                return Ok(outcome);
            }
            self.users.renew(user, &found.connection).await?;
        }
    }
}

/// What is wrong with the subscription or the last sweep, and what that means.
fn warning_text(subscription: Option<String>, sweep: Option<&str>, interval: Duration) -> Option<String> {
    if let Some(sweep) = sweep {
        return Some(format!(
            "`[offline] replay`: {sweep}; who returns without being noticed gets nothing until this is mended"
        ));
    }
    let interval = humantime::format_duration(interval);
    subscription.map(|problem| {
        format!(
            "`[offline] replay`: {problem}; users who return get their messages with the next sweep (every {interval})"
        )
    })
}

/// Warns, and logs changes once.
fn report(warning: &watch::Sender<Option<String>>, text: Option<String>) {
    if *warning.borrow() == text {
        return;
    }
    match &text {
        Some(text) => tracing::warn!("{text}"),
        None => tracing::info!("`[offline] replay`: users who return are noticed"),
    }
    warning.send_replace(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_that_fails_is_worse_than_no_subscription() {
        let text = |subscription: Option<&str>, sweep| {
            warning_text(subscription.map(str::to_owned), sweep, Duration::from_secs(60))
        };
        assert_eq!(text(None, None), None);
        assert!(text(Some("no events"), None).is_some_and(|text| text.contains("next sweep (every 1m)")));
        assert!(text(Some("no events"), Some("denied")).is_some_and(|text| text.contains("gets nothing")));
    }
}
