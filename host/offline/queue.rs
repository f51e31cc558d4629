//! One writer for all inboxes, behind a queue that is bounded.
//!
//! A message for a room of a thousand absent users is a thousand entries, and a backlog has
//! thousands of such messages. If each message stored its own, all of them would wait for one
//! Redis at the same time, each pipeline would be slower than its timeout, and each would begin
//! again. So there is one writer, which takes entries of many messages in their order, makes full
//! pipelines of them, sends one at a time, and goes on where Redis stopped: what was acknowledged
//! is not written again.
//!
//! How large a pipeline is follows from how long the last one took, so that Redis' other
//! clients, our look-ups among them, get their turns. A pipeline that was too slow was too
//! large; that is no outage.
//!
//! Promises: entries of one user are stored in the order in which they were queued. What waits is
//! bounded. An entry whose message was abandoned meanwhile is not written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Config, Inbox, InboxEntry, NotStored, Unfinished, size};
use crate::backoff::Backoff;

/// How many entries may be queued.
pub(super) const PLACES: usize = 16_384;

/// How long a pipeline should take: long enough to be worth its round trip, short enough for
/// whoever else asks Redis something.
const TARGET: Duration = Duration::from_millis(25);

/// Entries in one pipeline, at first and at most.
const FIRST_SIZE: usize = 128;
const LARGEST_SIZE: usize = 2_048;

/// Bytes of bodies and names in one pipeline, unless one entry alone has more.
const LARGEST_BYTES: usize = 1 << 20;

/// Pauses after a failure, at first and at most.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));

/// How often those who wait are reminded of the same problem.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// What is in the way of storing at present.
pub type Problem = Option<Arc<str>>;

/// What became of the entries of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// How many were not stored, for good.
    pub refused: usize,
    /// Why the first of them was not.
    pub reason: Option<String>,
}

/// Where entries are queued. Cheap to clone; the clones are one queue.
#[derive(Clone, Debug)]
pub struct InboxQueue {
    chunks: mpsc::Sender<Chunk>,
    places: Arc<Semaphore>,
    problem: watch::Receiver<Problem>,
}

/// Places in the queue.
#[derive(Debug)]
pub struct Places {
    chunks: mpsc::Sender<Chunk>,
    places: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Chunk {
    entries: Vec<InboxEntry>,
    owner: Arc<Owner>,
}

/// Whoever waits for the entries of one chunk.
#[derive(Debug)]
struct Owner {
    open: AtomicUsize,
    stored: Mutex<Stored>,
    done: Mutex<Option<oneshot::Sender<Stored>>>,
    _places: OwnedSemaphorePermit,
}

/// Stores what is queued. Run it with [`InboxWriter::run`].
#[derive(Debug)]
pub struct InboxWriter<I: ?Sized> {
    chunks: mpsc::Receiver<Chunk>,
    problem: watch::Sender<Problem>,
    told: Instant,
    waiting: VecDeque<(InboxEntry, Arc<Owner>)>,
    size: usize,
    backoff: Backoff,
    give_up_after: Duration,
    refused_since: Option<Instant>,
    inbox: Arc<I>,
}

impl InboxQueue {
    /// A queue, and the writer behind it.
    pub fn new<I: Inbox + ?Sized>(inbox: Arc<I>, config: &Config) -> (Self, InboxWriter<I>) {
        // Every chunk has a place at least.
        let (sender, chunks) = mpsc::channel(PLACES);
        let (problem, seen) = watch::channel(None);
        let writer = InboxWriter {
            chunks,
            problem,
            told: Instant::now(),
            waiting: VecDeque::new(),
            size: FIRST_SIZE,
            backoff: BACKOFF,
            give_up_after: config.give_up_after,
            refused_since: None,
            inbox,
        };
        (Self { chunks: sender, places: Arc::new(Semaphore::new(PLACES)), problem: seen }, writer)
    }

    /// What is in the way of storing, as it changes.
    pub fn problem(&self) -> watch::Receiver<Problem> {
        self.problem.clone()
    }

    /// Waits for places for so many entries. `None`: the writer has ended.
    pub async fn places(&self, entries: usize) -> Option<Places> {
        let wanted = entries.clamp(1, PLACES) as u32;
        let places = Arc::clone(&self.places).acquire_many_owned(wanted).await.ok()?;
        Some(Places { chunks: self.chunks.clone(), places })
    }
}

impl Places {
    /// Queues entries, calls `queued`, and waits until each has its outcome. Dropping the future
    /// gives up those that are not written yet. `None`: the writer has ended.
    pub async fn store(self, entries: Vec<InboxEntry>, queued: impl FnOnce()) -> Option<Stored> {
        if entries.is_empty() {
            queued();
            return Some(Stored::default());
        }
        let (done, outcome) = oneshot::channel();
        let owner = Arc::new(Owner {
            open: AtomicUsize::new(entries.len()),
            stored: Mutex::default(),
            done: Mutex::new(Some(done)),
            _places: self.places,
        });
        self.chunks.send(Chunk { entries, owner }).await.ok()?;
        queued();
        outcome.await.ok()
    }
}

impl Owner {
    /// Nobody waits any more: the record will be delivered again.
    fn is_gone(&self) -> bool {
        let done = self.done.lock();
        done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn refuse(&self, reason: &str) {
        let mut stored = self.stored.lock();
        stored.refused += 1;
        stored.reason.get_or_insert_with(|| reason.to_owned());
    }

    /// One entry has its outcome.
    fn close_one(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let stored = std::mem::take(&mut *self.stored.lock());
        if let Some(done) = self.done.lock().take() {
            // Whoever waited may have lost interest.
            let _ = done.send(stored);
        }
    }
}

impl<I: Inbox + ?Sized> InboxWriter<I> {
    /// Stores until nobody can queue any more, or the shutdown.
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
                Ok(not_stored) => {
                    self.adapt(entries.len(), begun.elapsed());
                    close(&owners, &not_stored, &[]);
                    self.succeeded();
                }
                Err(unfinished) => self.unfinished(entries, owners, unfinished).await,
            }
        }
    }

    /// Takes what is queued, up to a pipeline of it; waits only while there is nothing.
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
            let Chunk { entries, owner } = chunk;
            self.waiting.extend(entries.into_iter().map(|entry| (entry, Arc::clone(&owner))));
        }
        true
    }

    /// The next pipeline, in the order of the queue.
    fn pipeline(&mut self) -> (Vec<InboxEntry>, Vec<Arc<Owner>>) {
        let (mut entries, mut owners, mut bytes) = (Vec::new(), Vec::new(), 0);
        while entries.len() < self.size {
            let Some((entry, owner)) = self.waiting.pop_front() else { break };
            if owner.is_gone() {
                continue;
            }
            bytes += size(&entry.message, &entry.user);
            if bytes > LARGEST_BYTES && !entries.is_empty() {
                self.waiting.push_front((entry, owner));
                break;
            }
            entries.push(entry);
            owners.push(owner);
        }
        (entries, owners)
    }

    /// Makes the next pipeline larger or smaller.
    fn adapt(&mut self, entries: usize, took: Duration) {
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

    /// Some entries are left: they come first the next time, after a pause. When Redis has
    /// refused to write for long, they are given up.
    async fn unfinished(
        &mut self,
        entries: Vec<InboxEntry>,
        owners: Vec<Arc<Owner>>,
        unfinished: Unfinished,
    ) {
        let Unfinished { not_stored, left, because } = unfinished;
        close(&owners, &not_stored, &left);
        let has_moved = left.len() < entries.len();
        if because.is_slow() {
            self.size = (self.size / 4).max(1);
        }
        if !because.refuses_writes() || has_moved {
            self.refused_since = None;
        }
        if because.refuses_writes() {
            let since = *self.refused_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.give_up_after {
                let reason = because.to_string();
                for at in left {
                    owners[at].refuse(&reason);
                    owners[at].close_one();
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
        self.tell(because.to_string().into());
        if has_moved {
            self.backoff.reset();
        }
        tokio::time::sleep(self.backoff.next_wait(fastrand::f64())).await;
    }

    /// Tells those who wait what they wait for.
    fn tell(&mut self, problem: Arc<str>) {
        let is_news = self.problem.borrow().as_deref() != Some(&*problem);
        if is_news || self.told.elapsed() >= REMIND_EVERY {
            self.told = Instant::now();
            self.problem.send_replace(Some(problem));
        }
    }
}

/// Closes the entries that are not left. Indexes are in order.
fn close(owners: &[Arc<Owner>], not_stored: &[NotStored], left: &[usize]) {
    for NotStored { entry, reason } in not_stored {
        owners[*entry].refuse(reason);
    }
    let mut left = left.iter().peekable();
    for (at, owner) in owners.iter().enumerate() {
        if left.next_if(|left| **left == at).is_none() {
            owner.close_one();
        }
    }
}

#[cfg(test)]
mod tests;
