//! The bounded queue of inbox entries, and its single writer.
//!
//! A message for a room with a thousand absent users has a thousand entries, and a backlog contains
//! thousands of such messages. If each message stored its own, all would wait for one Redis at once,
//! each pipeline would exceed its timeout, and each would start over. So one writer takes entries of
//! many messages in order, builds full pipelines, sends one at a time, and continues where Redis
//! stopped: acknowledged entries are not written again.
//!
//! The size of a pipeline follows from the duration of the last one, so that Redis serves other
//! clients, including our look-ups, in between. A pipeline that timed out was too large; that is not
//! an outage.
//!
//! Promises: entries of one user are stored in the order in which they were queued. The queue is
//! bounded. Entries of an abandoned message are not written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Config, Inbox, InboxEntry, NotStored, PartialStore, Position, Returned, Stored};
use crate::backoff::Backoff;
use crate::message::{ConnectionId, UserId};

/// Capacity of the queue, in entries.
pub(super) const QUEUE_SLOTS: usize = 16_384;

/// Target duration of a pipeline: long enough to be worth a round trip, short enough for Redis' other
/// clients.
const TARGET: Duration = Duration::from_millis(25);

/// Entries per pipeline: initial and maximum.
const FIRST_SIZE: usize = 128;
const LARGEST_SIZE: usize = 2_048;

/// Maximum bytes of bodies and names per pipeline, unless a single entry exceeds it.
const LARGEST_BYTES: usize = 1 << 20;

/// Back-off after a failure: initial and maximum.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// How often waiting callers are reminded of the same problem.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// What currently prevents storing.
pub type InboxProblem = Option<Arc<str>>;

/// The result of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreResult {
    /// The users whose entries can never be stored.
    pub refused: Vec<UserId>,
    /// Why the first of them was refused.
    pub reason: Option<String>,
    /// Users who were registered again when their entry had been stored, with their connection.
    pub returned: Vec<(UserId, ConnectionId)>,
    /// The places of the stored entries.
    pub positions: Vec<(UserId, Position)>,
}

/// The queue. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct InboxQueue {
    chunks: mpsc::Sender<EntryBatch>,
    places: Arc<Semaphore>,
    problem: watch::Receiver<InboxProblem>,
}

/// Reserved slots in the queue.
#[derive(Debug)]
pub struct QueueSlots {
    chunks: mpsc::Sender<EntryBatch>,
    places: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct EntryBatch {
    entries: Vec<InboxEntry>,
    owner: Arc<BatchOwner>,
}

/// The caller that waits for the entries of one chunk.
#[derive(Debug)]
struct BatchOwner {
    open: AtomicUsize,
    stored: Mutex<StoreResult>,
    done: Mutex<Option<oneshot::Sender<StoreResult>>>,
    _places: OwnedSemaphorePermit,
}

/// Stores queued entries. Run it with [`InboxWriter::run`].
#[derive(Debug)]
pub struct InboxWriter<I: ?Sized> {
    chunks: mpsc::Receiver<EntryBatch>,
    problem: watch::Sender<InboxProblem>,
    last_notice: Instant,
    waiting: VecDeque<(InboxEntry, Arc<BatchOwner>)>,
    size: usize,
    backoff: Backoff,
    store_timeout: Duration,
    refused_since: Option<Instant>,
    inbox: Arc<I>,
}

impl InboxQueue {
    /// Creates a queue and its writer.
    pub fn new<I: Inbox + ?Sized>(inbox: Arc<I>, config: &Config) -> (Self, InboxWriter<I>) {
        // Every chunk holds at least one slot.
        let (sender, chunks) = mpsc::channel(QUEUE_SLOTS);
        let (problem, seen) = watch::channel(None);
        let writer = InboxWriter {
            chunks,
            problem,
            last_notice: Instant::now(),
            waiting: VecDeque::new(),
            size: FIRST_SIZE,
            backoff: BACKOFF,
            store_timeout: config.store_timeout,
            refused_since: None,
            inbox,
        };
        (Self { chunks: sender, places: Arc::new(Semaphore::new(QUEUE_SLOTS)), problem: seen }, writer)
    }

    /// Reports what prevents storing, as it changes.
    pub fn problem(&self) -> watch::Receiver<InboxProblem> {
        self.problem.clone()
    }

    /// Waits for this many slots. `None`: the writer has ended.
    pub async fn places(&self, entries: usize) -> Option<QueueSlots> {
        let wanted = entries.clamp(1, QUEUE_SLOTS) as u32;
        let places = Arc::clone(&self.places).acquire_many_owned(wanted).await.ok()?;
        Some(QueueSlots { chunks: self.chunks.clone(), places })
    }
}

impl QueueSlots {
    /// Queues entries, calls `queued`, and waits until each has an outcome. Dropping the future
    /// cancels entries that are not written yet. `None`: the writer has ended.
    pub async fn store(self, entries: Vec<InboxEntry>, queued: impl FnOnce()) -> Option<StoreResult> {
        if entries.is_empty() {
            queued();
            return Some(StoreResult::default());
        }
        let (done, outcome) = oneshot::channel();
        let owner = Arc::new(BatchOwner {
            open: AtomicUsize::new(entries.len()),
            stored: Mutex::default(),
            done: Mutex::new(Some(done)),
            _places: self.places,
        });
        self.chunks.send(EntryBatch { entries, owner }).await.ok()?;
        queued();
        outcome.await.ok()
    }
}

impl BatchOwner {
    /// Whether the caller has gone: the record will be redelivered.
    fn is_abandoned(&self) -> bool {
        let done = self.done.lock();
        done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn refuse(&self, entry: &InboxEntry, reason: &str) {
        let mut stored = self.stored.lock();
        stored.refused.push(entry.user.clone());
        stored.reason.get_or_insert_with(|| reason.to_owned());
    }

    /// Records the outcome of one entry.
    fn complete_one(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let stored = std::mem::take(&mut *self.stored.lock());
        if let Some(done) = self.done.lock().take() {
            // Fails if the caller no longer waits.
            let _ = done.send(stored);
        }
    }
}

impl<I: Inbox + ?Sized> InboxWriter<I> {
    /// Stores entries until all senders are dropped, or the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let _ended = shutdown.run_until_cancelled(self.work()).await;
    }

    async fn work(&mut self) {
        while self.gather().await {
            let (entries, owners) = self.pipeline();
            if entries.is_empty() {
                continue;
            }
            let begun = Instant::now();
            match self.inbox.store(&entries).await {
                Ok(stored) => {
                    self.adapt_batch_size(entries.len(), begun.elapsed());
                    complete_entries(&entries, &owners, stored, &[]);
                    self.succeeded();
                }
                Err(unfinished) => self.unfinished(entries, owners, unfinished).await,
            }
        }
    }

    /// Takes up to one pipeline of entries from the queue; waits only if it is empty.
    async fn gather(&mut self) -> bool {
        while self.waiting.len() < self.size {
            let chunk = match self.chunks.try_recv() {
                Ok(chunk) => chunk,
                Err(_) if !self.waiting.is_empty() => return true,
                Err(_) => match self.chunks.recv().await {
                    Some(chunk) => chunk,
                    None => return false,
                },
            };
            let EntryBatch { entries, owner } = chunk;
            self.waiting.extend(entries.into_iter().map(|entry| (entry, Arc::clone(&owner))));
        }
        true
    }

    /// The next pipeline, in queue order.
    fn pipeline(&mut self) -> (Vec<InboxEntry>, Vec<Arc<BatchOwner>>) {
        let (mut entries, mut owners, mut bytes) = (Vec::new(), Vec::new(), 0);
        while entries.len() < self.size {
            let Some((entry, owner)) = self.waiting.pop_front() else { break };
            if owner.is_abandoned() {
                continue;
            }
            bytes += entry.size();
            if bytes > LARGEST_BYTES && !entries.is_empty() {
                self.waiting.push_front((entry, owner));
                break;
            }
            entries.push(entry);
            owners.push(owner);
        }
        (entries, owners)
    }

    /// Adapts the size of the next pipeline.
    fn adapt_batch_size(&mut self, entries: usize, took: Duration) {
        if took > TARGET * 2 {
            self.size = (self.size / 2).max(1);
        } else if took < TARGET && entries >= self.size {
            self.size = (self.size * 2).min(LARGEST_SIZE);
        }
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.refused_since = None;
        self.problem.send_if_modified(|problem| problem.take().is_some());
    }

    /// Requeues unfinished entries at the front and pauses. If Redis has refused to write for too
    /// long, they fail.
    async fn unfinished(
        &mut self,
        entries: Vec<InboxEntry>,
        owners: Vec<Arc<BatchOwner>>,
        unfinished: PartialStore,
    ) {
        let PartialStore { stored, left, error } = unfinished;
        complete_entries(&entries, &owners, *stored, &left);
        let has_moved = left.len() < entries.len();
        if error.is_slow() {
            self.size = (self.size / 4).max(1);
        }
        if !error.refuses_writes() || has_moved {
            self.refused_since = None;
        }
        if error.refuses_writes() {
            let since = *self.refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.store_timeout {
                let reason = error.to_string();
                for at in left {
                    owners[at].refuse(&entries[at], &reason);
                    owners[at].complete_one();
                }
                self.problem.send_if_modified(|problem| problem.take().is_some());
                return;
            }
        }
        let mut again: Vec<_> = entries.into_iter().zip(owners).map(Some).collect();
        for at in left.into_iter().rev() {
            if let Some(entry) = again[at].take() {
                self.waiting.push_front(entry);
            }
        }
        self.notify_waiters(error.to_string().into());
        if has_moved {
            self.backoff.reset();
        }
        tokio::time::sleep(self.backoff.next_wait(fastrand::f64())).await;
    }

    /// Informs waiting callers of the problem.
    fn notify_waiters(&mut self, problem: Arc<str>) {
        let is_news = self.problem.borrow().as_deref() != Some(&*problem);
        if is_news || self.last_notice.elapsed() >= REMIND_EVERY {
            self.last_notice = Instant::now();
            self.problem.send_replace(Some(problem));
        }
    }
}

/// Completes the entries that are not left. Indexes are in order.
fn complete_entries(entries: &[InboxEntry], owners: &[Arc<BatchOwner>], stored: Stored, left: &[usize]) {
    for NotStored { entry, reason } in stored.not_stored {
        owners[entry].refuse(&entries[entry], &reason);
    }
    for Returned { entry, connection } in stored.returned {
        owners[entry].stored.lock().returned.push((entries[entry].user.clone(), connection));
    }
    for (entry, position) in stored.positions {
        owners[entry].stored.lock().positions.push((entries[entry].user.clone(), position));
    }
    let mut left = left.iter().peekable();
    for (at, owner) in owners.iter().enumerate() {
        if left.next_if(|left| **left == at).is_none() {
            owner.complete_one();
        }
    }
}

#[cfg(test)]
mod tests;
