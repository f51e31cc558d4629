//! Messages whose calls are queued or in flight, and their settlement in the common case.
//!
//! Messages of a room that are queued together are one run. A run costs one allocation here, whatever the
//! number of its messages and calls. When the last call of a message ends, the message goes to the
//! partition's settler, which handles all that have ended since its last run. A message that every comet
//! acknowledged and that has no absent recipient is settled there; any other message gets a task of its
//! own (`delivery_task`).

use std::ops::Range;
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
use crate::inbox::Position;
use crate::message::Message;
use crate::offsets::AckHandle;
use crate::panics;
use crate::pipeline::call::{Acceptance, Exception, MessagePlan};
use crate::pipeline::delivery_task::{DeliveryTask, StageOutcome};
use crate::pipeline::key_order::KeyPosition;
use crate::pipeline::metrics::Settled;
use crate::pipeline::outcome::MessageOutcome;
use crate::pipeline::parts::Pipeline;
use crate::pipeline::spans;
use crate::pipeline::trace::{MessageTrace, UnsettledRecord};
use crate::telemetry::traces::SpanStage;

/// How long a message that was given up holds its order after its outcome, if Kafka accepts no commit.
const LONGEST_COMMIT: Duration = Duration::from_secs(30);

/// Messages that share their calls.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The messages whose calls have not all ended.
    messages: Mutex<Vec<Option<InFlightMessage>>>,
    /// The calls that were not simply acknowledged, and for which message.
    exceptions: Mutex<Vec<(u32, Exception)>>,
    context: RunContext,
    settler: Arc<Settler>,
}

/// What a message needs once its calls have ended.
#[derive(derive_more::Debug)]
#[debug("InFlightMessage of {:?}", message.record.origin)]
pub(super) struct InFlightMessage {
    pub(super) message: Message,
    pub(super) pending: UnsettledRecord,
    pub(super) trail: Vec<TrailEntry>,
    pub(super) retention: Retention,
    /// Its place in the history of its room, if it is kept there.
    pub(super) in_history: Option<Position>,
    /// The absent recipients' permits from the budget of all messages.
    pub(super) absent_permit: Option<OwnedSemaphorePermit>,
}

/// What the messages share.
#[derive(derive_more::Debug)]
#[debug("RunContext of {} calls", plan.calls.len())]
pub(super) struct RunContext {
    pub(super) plan: Arc<MessagePlan>,
    /// When their batch started.
    pub(super) started: Instant,
    /// When their calls were queued.
    pub(super) queued: Instant,
}

impl InFlightMessage {
    fn into_trace(self, context: &RunContext) -> (MessageTrace, Option<OwnedSemaphorePermit>) {
        let Self { message, pending, trail, retention, in_history, absent_permit } = self;
        let mut trace = MessageTrace::new(message, pending, trail, context.started);
        (trace.plan, trace.retention) = (Some(Arc::clone(&context.plan)), retention);
        trace.in_history = in_history;
        (trace, absent_permit)
    }
}

/// Settles the messages of one partition.
#[derive(derive_more::Debug)]
#[debug("Settler of {in_flight:?}")]
pub(super) struct Settler {
    pipeline: Arc<Pipeline>,
    ended: Mutex<Vec<EndedMessages>>,
    any_ended: Notify,
    delivery_tasks: TaskTracker,
    /// How many messages are in flight.
    in_flight: AtomicUsize,
    /// Notified when none is in flight.
    idle: Notify,
    until_committed: UntilCommitted,
    cancel: CancellationToken,
}

/// Messages whose calls have ended.
type EndedMessages = (Arc<InFlight>, Range<u32>);

impl InFlight {
    /// Messages whose calls are about to be queued. Once they have ended, which is at once without any,
    /// the settler gets them.
    pub(super) fn new(
        settler: &Arc<Settler>,
        context: RunContext,
        messages: Vec<InFlightMessage>,
    ) -> Arc<Self> {
        let count = messages.len();
        settler.pipeline.metrics.in_flight.inc_by(count as i64);
        settler.in_flight.fetch_add(count, Ordering::Relaxed);
        let has_calls = !context.plan.calls.is_empty();
        let in_flight = Arc::new(Self {
            messages: Mutex::new(messages.into_iter().map(Some).collect()),
            exceptions: Mutex::default(),
            context,
            settler: Arc::clone(settler),
        });
        if !has_calls {
            Arc::clone(&in_flight).finish(0..count as u32);
        }
        in_flight
    }

    /// The calls of this message that were not simply acknowledged.
    fn exceptions_of(&self, message: u32) -> Vec<Exception> {
        let mut exceptions = self.exceptions.lock();
        exceptions.extract_if(.., |(of, _)| *of == message).map(|(_, exception)| exception).collect()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let left = self.messages.get_mut().iter().flatten().count();
        self.settler.note_done(left);
    }
}

impl Outcomes for InFlight {
    fn not_acknowledged(&self, message: u32, call: usize, outcome: CallOutcome, hold: Option<OrderHold>) {
        self.exceptions.lock().push((message, Exception { call, outcome, hold }));
    }

    fn finish(self: Arc<Self>, messages: Range<u32>) {
        let settler = Arc::clone(&self.settler);
        settler.take_over((self, messages));
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

    fn take_over(&self, messages: EndedMessages) {
        let mut ended = self.ended.lock();
        ended.push(messages);
        if ended.len() == 1 {
            self.any_ended.notify_one();
        }
    }

    /// These messages are not in flight any more.
    fn note_done(&self, messages: usize) {
        if messages == 0 {
            return;
        }
        self.pipeline.metrics.in_flight.dec_by(messages as i64);
        // What waits for the last one must see what all did.
        if self.in_flight.fetch_sub(messages, Ordering::AcqRel) == messages {
            self.idle.notify_waiters();
        }
    }

    /// Settles the messages whose calls have ended, until this future is dropped.
    pub(super) async fn run(self: Arc<Self>) {
        let mut ended = Vec::new();
        loop {
            self.any_ended.notified().await;
            std::mem::swap(&mut *self.ended.lock(), &mut ended);
            let mut settled = Settled::new(Instant::now());
            let count = ended.iter().map(|(_, messages)| messages.len()).sum();
            let (mut acks, mut positions) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for (run, messages) in &ended {
                self.settle(
                    run,
                    messages.clone(),
                    &mut settled,
                    |UnsettledRecord { ack, position, .. }| {
                        acks.push(ack);
                        positions.push(position);
                    },
                );
            }
            KeyPosition::drop_all(positions);
            AckHandle::settle_all(acks);
            self.pipeline.metrics.settled_many(&settled);
            ended.clear();
            self.note_done(count);
        }
    }

    /// Settles messages that every comet acknowledged, up to their offsets, which are handed on. Any other
    /// one gets a task.
    fn settle(
        &self,
        run: &InFlight,
        messages: Range<u32>,
        settled: &mut Settled,
        mut done: impl FnMut(UnsettledRecord),
    ) {
        let (context, plan) = (&run.context, &run.context.plan);
        let is_cancelled = self.cancel.is_cancelled();
        let has_exceptions = !run.exceptions.lock().is_empty();
        let outcome =
            if plan.calls.is_empty() { MessageOutcome::NoRecipients } else { MessageOutcome::Delivered };
        let mut all = run.messages.lock();
        for at in messages {
            let Some(mut message) = all.get_mut(at as usize).and_then(Option::take) else { continue };
            settled.queued.push(context.queued);
            if is_cancelled {
                // The record will be delivered again.
                continue;
            }
            if let Some(span) = &mut message.pending.span
                && !plan.calls.is_empty()
            {
                span.note(SpanStage::Deliver, context.queued, settled.now);
            }
            let exceptions = if has_exceptions { run.exceptions_of(at) } else { Vec::new() };
            if !exceptions.is_empty() || !plan.absent.is_empty() || message.retention.inbox {
                self.go_the_long_way(message, context, exceptions);
                continue;
            }
            settled.add(outcome, plan.recipients, plan.withheld, context.started);
            if let Some(span) = message.pending.span.take() {
                let (tracer, record) = (&self.pipeline.tracer, &message.message.record);
                spans::finish(tracer, span, record, plan.calls.len(), outcome, &"");
            }
            if tracing::enabled!(tracing::Level::DEBUG) {
                done(log_settled(message, context, outcome));
            } else {
                done(message.pending);
            }
        }
    }

    fn go_the_long_way(&self, message: InFlightMessage, context: &RunContext, exceptions: Vec<Exception>) {
        let chain = context.plan.chain.clone();
        let (trace, absent_permit) = message.into_trace(context);
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

/// Logs a message that every comet acknowledged.
fn log_settled(message: InFlightMessage, context: &RunContext, outcome: MessageOutcome) -> UnsettledRecord {
    let plan = &context.plan;
    let (mut trace, _) = message.into_trace(context);
    trace.accepted.extend(plan.calls.iter().map(|_| Acceptance::All));
    trace.counts.sent = plan.recipients;
    trace.log_settled(plan.chain.set(), outcome, &"");
    trace.pending
}
