//! Messages whose calls are queued or in flight, and their settlement in the common case.
//!
//! A message costs one allocation here and one decrement for each of its calls. When its last call
//! ends, the message goes to the partition's settler, which handles all that have ended since its
//! last run. A message that every comet acknowledged and that has no absent recipient is settled
//! there; any other message gets a task of its own (`delivery_task`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::comets::{CallOutcome, OrderHold, Outcomes};
use crate::consumer::UntilCommitted;
use crate::decision::{Retention, TrailEntry};
use crate::message::Message;
use crate::offsets::AckHandle;
use crate::panics;
use crate::pipeline::call::{Acceptance, Exception, MessagePlan};
use crate::pipeline::delivery_task::{DeliveryTask, StageOutcome};
use crate::pipeline::key_order::KeyPosition;
use crate::pipeline::metrics::Settled;
use crate::pipeline::outcome::MessageOutcome;
use crate::pipeline::parts::Pipeline;
use crate::pipeline::trace::{MessageTrace, UnsettledRecord};

/// How long a message that was given up holds its order after its outcome, if Kafka accepts no commit.
const LONGEST_COMMIT: Duration = Duration::from_secs(30);

/// A message and its calls.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Calls without an outcome.
    open: AtomicUsize,
    /// The calls that were not simply acknowledged.
    exceptions: Mutex<Vec<Exception>>,
    /// What is needed once the calls have ended.
    rest: Mutex<Option<Rest>>,
    settler: Arc<Settler>,
}

/// What a message needs once its calls have ended.
pub(super) struct Rest {
    pub(super) message: Message,
    pub(super) pending: UnsettledRecord,
    pub(super) trail: Vec<TrailEntry>,
    pub(super) retention: Retention,
    pub(super) plan: Arc<MessagePlan>,
    /// When its batch started.
    pub(super) started: Instant,
    /// The absent recipients' permits from the budget of all messages.
    pub(super) absent_permit: Option<OwnedSemaphorePermit>,
    /// When its calls were queued.
    pub(super) queued: Instant,
}

impl Rest {
    fn into_trace(self) -> (MessageTrace, Option<OwnedSemaphorePermit>) {
        let Self { message, pending, trail, retention, plan, started, absent_permit, .. } = self;
        let mut trace = MessageTrace::new(message, pending, trail, started);
        (trace.plan, trace.retention) = (Some(plan), retention);
        (trace, absent_permit)
    }
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").field("record", &self.message.record.origin).finish_non_exhaustive()
    }
}

/// Settles the messages of one partition.
pub(super) struct Settler {
    pipeline: Arc<Pipeline>,
    ended: Mutex<Vec<Arc<InFlight>>>,
    any_ended: Notify,
    delivery_tasks: TaskTracker,
    /// How many messages are in flight.
    in_flight: AtomicUsize,
    /// Notified when none is in flight.
    idle: Notify,
    until_committed: UntilCommitted,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Settler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settler").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl InFlight {
    /// A message whose calls are about to be queued. Once they have ended, which is now if there are
    /// none, the settler gets it.
    pub(super) fn new(settler: &Arc<Settler>, rest: Rest) -> Arc<Self> {
        settler.pipeline.metrics.in_flight.inc();
        settler.in_flight.fetch_add(1, Ordering::Relaxed);
        let calls = rest.plan.calls.len();
        let in_flight = Arc::new(Self {
            open: AtomicUsize::new(calls),
            exceptions: Mutex::default(),
            rest: Mutex::new(Some(rest)),
            settler: Arc::clone(settler),
        });
        if calls == 0 {
            Arc::clone(&in_flight).finish();
        }
        in_flight
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.settler.pipeline.metrics.in_flight.dec();
        // What waits for the last one must see what all did.
        if self.settler.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settler.idle.notify_waiters();
        }
    }
}

impl Outcomes for InFlight {
    fn ended(&self, call: usize, outcome: CallOutcome, hold: Option<OrderHold>) -> bool {
        if outcome != CallOutcome::Acknowledged {
            self.exceptions.lock().push(Exception { call, outcome, hold });
        }
        // The last call to end must see the exceptions that the others recorded.
        self.open.fetch_sub(1, Ordering::AcqRel) == 1
    }

    fn finish(self: Arc<Self>) {
        let settler = Arc::clone(&self.settler);
        settler.take_over(self);
    }

    fn is_cancelled(&self) -> bool {
        self.settler.cancel.is_cancelled()
    }
}

impl Settler {
    /// For one partition. Messages with exceptions or absent recipients are spawned on
    /// `delivery_tasks`.
    pub(super) fn new(
        pipeline: &Arc<Pipeline>,
        delivery_tasks: TaskTracker,
        until_committed: UntilCommitted,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            pipeline: Arc::clone(pipeline),
            ended: Mutex::default(),
            any_ended: Notify::new(),
            delivery_tasks,
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            until_committed,
            cancel,
        })
    }

    /// Waits until no message is in flight. Messages with more to do have their delivery tasks by then.
    pub(super) async fn wait_until_idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    fn take_over(&self, message: Arc<InFlight>) {
        let mut ended = self.ended.lock();
        ended.push(message);
        if ended.len() == 1 {
            self.any_ended.notify_one();
        }
    }

    /// Settles the messages whose calls have ended, until this future is dropped.
    pub(super) async fn run(self: Arc<Self>) {
        let mut ended = Vec::new();
        loop {
            self.any_ended.notified().await;
            std::mem::swap(&mut *self.ended.lock(), &mut ended);
            let mut settled = Settled::new(Instant::now());
            let (mut acks, mut positions) =
                (Vec::with_capacity(ended.len()), Vec::with_capacity(ended.len()));
            for message in &ended {
                if let Some(UnsettledRecord { ack, position }) = self.settle(message, &mut settled) {
                    acks.push(ack);
                    positions.push(position);
                }
            }
            KeyPosition::drop_all(positions);
            AckHandle::settle_all(acks);
            self.pipeline.metrics.settled_many(&settled);
            ended.clear();
        }
    }

    /// Settles a message that every comet acknowledged, up to its offset, which is returned. Any other
    /// one gets a task.
    fn settle(&self, message: &InFlight, settled: &mut Settled) -> Option<UnsettledRecord> {
        let exceptions = std::mem::take(&mut *message.exceptions.lock());
        let rest = message.rest.lock().take()?;
        settled.queued.push(rest.queued);
        if self.cancel.is_cancelled() {
            // The record will be delivered again.
            return None;
        }
        let plan = &rest.plan;
        if !exceptions.is_empty() || !plan.absent.is_empty() || rest.retention.inbox {
            self.go_the_long_way(rest, exceptions);
            return None;
        }
        let outcome =
            if plan.calls.is_empty() { MessageOutcome::NoRecipients } else { MessageOutcome::Delivered };
        settled.add(outcome, plan.recipients, plan.withheld, rest.started);
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return Some(rest.pending);
        }
        let (mut trace, _) = rest.into_trace();
        let Some(plan) = trace.plan.clone() else { return Some(trace.pending) };
        trace.accepted.extend(plan.calls.iter().map(|_| Acceptance::All));
        trace.counts.sent = plan.recipients;
        trace.log_settled(plan.chain.set(), outcome, &"");
        Some(trace.pending)
    }

    fn go_the_long_way(&self, rest: Rest, exceptions: Vec<Exception>) {
        let chain = rest.plan.chain.clone();
        let (trace, absent_permit) = rest.into_trace();
        let delivery_task =
            DeliveryTask { pipeline: Arc::clone(&self.pipeline), chain, cancel: self.cancel.clone(), trace };
        let mut exceptions = exceptions;
        let holds: Vec<_> = exceptions.iter_mut().filter_map(|exception| exception.hold.take()).collect();
        let outcome = StageOutcome::Delivered { exceptions, absent_permit };
        let until_committed = self.until_committed.clone();
        let run = async move {
            let offset = delivery_task.run(outcome).await;
            // A message that has no outcome is delivered again, here or by another gateway.
            if let (Some(offset), false) = (offset, holds.is_empty()) {
                until_committed.keep(offset, holds, LONGEST_COMMIT);
            }
        };
        self.delivery_tasks.spawn(panics::abort_on_panic("a message's delivery task", run));
    }
}
