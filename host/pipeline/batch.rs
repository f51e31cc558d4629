//! Runs one batch through the stages: decode, filter, guard, resolve, and dispatch to the comets'
//! queues, in order.

mod filtering;

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::consumer::{InFlightRecord, PartitionStream};
use crate::dead_letter::{DeadLetterReason, Stage};
use crate::decision::{Overrides, Retention, TrailEntry};
use crate::inbox::Position;
use crate::message::{DecodeError, Decoder, Message, Record};
use crate::panics;
use crate::pipeline::age::AgeLimit;
use crate::pipeline::call::MessagePlan;
use crate::pipeline::chain::BatchChain;
use crate::pipeline::claims;
use crate::pipeline::delivery_task::{DeliveryTask, StageOutcome};
use crate::pipeline::dispatch::Dispatcher;
use crate::pipeline::history::{PartitionHistory, archive_rooms};
use crate::pipeline::in_flight::{InFlightMessage, Settler};
use crate::pipeline::key_order::KeyOrder;
use crate::pipeline::metrics::TimedStage;
use crate::pipeline::outcome::MessageOutcome;
use crate::pipeline::parts::Pipeline;
use crate::pipeline::resolve::Resolved;
use crate::pipeline::retry::{Cancelled, HoldContext};
use crate::pipeline::spans;
use crate::pipeline::trace::{MessageTrace, UnsettledRecord};
use crate::router::Delivery;
use crate::telemetry::traces::SpanStage;

/// Why a record is not a message.
#[derive(Debug, thiserror::Error)]
enum DecodeFailure {
    #[error(transparent)]
    Invalid(#[from] DecodeError),
    #[error("decoding it panicked, which is a bug: {0}")]
    Panicked(String),
}

/// The worker of one partition.
pub(super) struct PartitionWorker {
    pipeline: Arc<Pipeline>,
    topic: Arc<str>,
    partition: i32,
    chain: BatchChain,
    delivery_tasks: TaskTracker,
    settler: Arc<Settler>,
    cancel: CancellationToken,
    started: Instant,
    /// The offset of the first record of the batch.
    offset: Option<i64>,
    order: KeyOrder,
    history: PartitionHistory,
}

/// The reason of a dead letter for a BROADCAST while no comet is known.
const NO_COMET: &str = "a message for every comet, but no comet is known; list them in `[comets] nodes`";

/// The reason when a redriven BROADCAST is for comets that no longer exist.
const COMETS_GONE: &str = "redriven for comets that are no longer known";

/// Why a message is not sent to any comet.
enum Undeliverable {
    DeadLetter(DeadLetterReason),
    /// It has no recipients any more: why.
    Nobody(&'static str),
}

/// A message that the filters and guards let through.
struct PassedMessage {
    message: Message,
    /// What policies said about it; usually nothing.
    said: Option<Box<PolicyWords>>,
    retention: Retention,
    /// Its place in the history of its room, if it is kept there.
    in_history: Option<Position>,
    pending: UnsettledRecord,
}

/// What policies said about a message that they let through.
struct PolicyWords {
    overrides: Overrides,
    trail: Vec<TrailEntry>,
}

/// What nobody said anything about goes to its own comets.
static NO_OVERRIDES: Overrides =
    Overrides { only: None, except: Vec::new(), also: Vec::new(), trusted: Vec::new() };

impl PassedMessage {
    fn overrides(&self) -> &Overrides {
        self.said.as_ref().map_or(&NO_OVERRIDES, |said| &said.overrides)
    }

    fn into_trace(self, started: Instant) -> MessageTrace {
        let trail = self.said.map(|said| said.trail).unwrap_or_default();
        MessageTrace::new(self.message, self.pending, trail, started)
    }
}

impl PartitionWorker {
    pub(super) fn new(
        pipeline: &Arc<Pipeline>,
        stream: &PartitionStream,
        settler: &Arc<Settler>,
        delivery_tasks: TaskTracker,
    ) -> Self {
        Self {
            chain: BatchChain::new(&pipeline.policies),
            pipeline: Arc::clone(pipeline),
            topic: Arc::clone(&stream.topic),
            partition: stream.partition,
            delivery_tasks,
            settler: Arc::clone(settler),
            cancel: stream.cancel.clone(),
            started: Instant::now(),
            offset: None,
            order: KeyOrder::default(),
            history: PartitionHistory::default(),
        }
    }

    /// Processes a batch until its calls are queued. The rest of each message happens when its calls
    /// end: see `in_flight`.
    ///
    /// # Errors
    /// When the partition was cancelled meanwhile: handles are dropped, nothing is settled.
    pub(super) async fn batch(&mut self, mut admitted: Vec<InFlightRecord>) -> Result<(), Cancelled> {
        self.started = Instant::now();
        self.offset = admitted.first().map(|admitted| admitted.record.origin.offset);
        self.chain = self.chain.renewed();
        self.pipeline.metrics.batch(admitted.len());
        let Pipeline { redrive_key, metrics, .. } = &*self.pipeline;
        claims::check(&mut admitted, redrive_key, metrics, self.hold()).await?;
        let (messages, mut pending) = self.decode(admitted);
        let (passed, guards) = if self.chain.set().sees_batches() {
            let filtered = self.filter(messages, &mut pending).await?;
            self.sort(filtered, pending)
        } else {
            (self.pass_all(messages, pending), Vec::new())
        };
        let mut passed = self.guard(passed, guards).await?;
        self.keep(&mut passed).await?;
        let resolved = self.resolve(&mut passed).await?;
        self.dispatch(passed, resolved).await
    }

    /// Stores messages in the histories of their rooms.
    async fn keep(&self, passed: &mut [PassedMessage]) -> Result<(), Cancelled> {
        let mut kept: Vec<_> = passed.iter_mut().filter(|passed| passed.retention.history).collect();
        let messages: Vec<_> = kept.iter().map(|passed| &passed.message).collect();
        let places = self.history.keep(&self.pipeline, &messages, self.hold()).await?;
        kept.iter_mut().zip(places).for_each(|(passed, place)| passed.in_history = place);
        Ok(())
    }

    /// What the batch's stages hold while they are retried.
    fn hold(&self) -> HoldContext<'_> {
        HoldContext {
            stalls: &self.pipeline.stalls,
            topic: &self.topic,
            partition: self.partition,
            offset: self.offset,
            cancel: &self.cancel,
        }
    }

    fn decode(&self, admitted: Vec<InFlightRecord>) -> (Vec<Message>, Vec<UnsettledRecord>) {
        let mut messages = Vec::with_capacity(admitted.len());
        let mut all_pending = Vec::with_capacity(admitted.len());
        let (now, batch) = (SystemTime::now(), admitted.len());
        let age_limit = AgeLimit::of(self.pipeline.max_age, now);
        let mut decoder = Decoder::new(self.pipeline.max_keys);
        let positions = self.order.positions(admitted.iter().map(|admitted| &*admitted.record));
        for (InFlightRecord { record, ack }, position) in admitted.into_iter().zip(positions) {
            let span = spans::begin(&self.pipeline.tracer, &record, (now, self.started), batch);
            let pending = UnsettledRecord { ack, position, span };
            if age_limit.excludes(&record) {
                self.spawn_delivery(
                    MessageTrace::of_record(record, pending, self.started),
                    MessageOutcome::Expired,
                    "older than `[delivery] max_age`",
                );
                continue;
            }
            match decode_one(&mut decoder, &record) {
                Ok(message) => {
                    messages.push(message);
                    all_pending.push(pending);
                }
                Err(why) => {
                    let reason = DeadLetterReason::new(Stage::Decode, why.to_string());
                    let trace = MessageTrace::of_record(record, pending, self.started);
                    self.dead_letter(trace, reason);
                }
            }
        }
        (messages, all_pending)
    }

    /// Looks up the recipients, while messages of rooms with a history are archived.
    async fn resolve(&self, passed: &mut [PassedMessage]) -> Result<Resolved, Cancelled> {
        let since = Instant::now();
        let messages: Vec<_> = passed.iter().map(|passed| &passed.message).collect();
        let adds_comets = passed.iter().any(|passed| !passed.overrides().also.is_empty());
        let resolver = &self.pipeline.resolver;
        let resolve = async {
            let resolved = resolver.resolve(&messages, adds_comets, &self.chain, self.hold()).await?;
            self.pipeline.metrics.stage(TimedStage::Resolve, since);
            Ok(resolved)
        };
        let in_history = passed.iter().filter_map(|passed| {
            let PassedMessage { message, pending, in_history, .. } = passed;
            Some((message, pending.trace_context(&message.record), (*in_history)?))
        });
        let archive = archive_rooms(&self.pipeline, in_history, self.hold());
        let (resolved, ()) = tokio::try_join!(resolve, archive)?;
        let records = passed.iter_mut().map(|passed| &mut passed.pending);
        spans::note(&self.pipeline.tracer, records, SpanStage::Resolve, since);
        Ok(resolved)
    }

    /// Queues every message's calls at their comets. Waits while the queue of a comet that keeps up is
    /// full (the rules in [`crate::comets`] bound how long a slow comet may block this), and while the
    /// budget of absent recipients is used up.
    async fn dispatch(&self, passed: Vec<PassedMessage>, resolved: Resolved) -> Result<(), Cancelled> {
        let since = Instant::now();
        let mut dispatcher = Dispatcher::new(&self.pipeline.fleet, &self.settler, self.hold(), self.started);
        for passed in passed {
            let (message, overrides) = (&passed.message, passed.overrides());
            let plan = match dispatcher.shared_plan(message, overrides) {
                Some(plan) => plan,
                None => match self.plan(&mut dispatcher, message, &resolved, overrides) {
                    Ok(plan) => plan,
                    Err(why) => {
                        let trace = passed.into_trace(self.started);
                        match why {
                            Undeliverable::DeadLetter(reason) => self.dead_letter(trace, reason),
                            Undeliverable::Nobody(why) => {
                                self.spawn_delivery(trace, MessageOutcome::NoRecipients, why);
                            }
                        }
                        continue;
                    }
                },
            };
            let PassedMessage { message, said, retention, in_history, pending } = passed;
            let entries = plan.absent.len() + if retention.inbox { plan.recipients } else { 0 };
            let absent_permit = self.absent_permit(&mut dispatcher, entries).await?;
            let payload = dispatcher.payload(&message, pending.trace_context(&message.record)).await?;
            let trail = said.map(|said| said.trail).unwrap_or_default();
            let message = InFlightMessage { message, pending, trail, retention, in_history, absent_permit };
            dispatcher.queue(plan, payload, message).await?;
        }
        dispatcher.queue_all().await?;
        self.pipeline.metrics.stage(TimedStage::Dispatch, since);
        Ok(())
    }

    /// Permits for the recipients that a message may be stored for.
    async fn absent_permit(
        &self,
        dispatcher: &mut Dispatcher<'_>,
        absent: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, Cancelled> {
        let Pipeline { absent_budget, inbox, .. } = &*self.pipeline;
        if let Some(permit) = absent_budget.try_take(absent) {
            return Ok(permit);
        }
        dispatcher.flush().await?;
        let permit = absent_budget.take(absent, inbox, self.hold()).await?;
        dispatcher.resume();
        Ok(permit)
    }

    /// Whom a message goes to.
    fn plan(
        &self,
        dispatcher: &mut Dispatcher<'_>,
        message: &Message,
        resolved: &Resolved,
        overrides: &Overrides,
    ) -> Result<Arc<MessagePlan>, Undeliverable> {
        if let Some(why) = resolved.unreadable(message) {
            return Err(Undeliverable::DeadLetter(DeadLetterReason::new(Stage::Resolve, why)));
        }
        let Pipeline { resolver, fleet, .. } = &*self.pipeline;
        let address_of = |server: &str| fleet.address_of(server);
        let (mut plan, route) =
            resolver.plan(message, resolved, || dispatcher.everyone(), address_of, overrides);
        if plan.deliveries.is_empty() && plan.is_for_every_comet && !overrides.restricts() {
            return Err(Undeliverable::DeadLetter(DeadLetterReason::new(Stage::Deliver, NO_COMET)));
        }
        let (comets, users) = (message.record.redrive_comets(), message.record.redrive_users());
        plan.only_due(comets.as_deref(), users.as_ref());
        let is_for_nobody = plan.deliveries.is_empty() && plan.absent.is_empty();
        if comets.is_some() && is_for_nobody && plan.is_for_every_comet {
            return Err(Undeliverable::Nobody(COMETS_GONE));
        }
        let is_for_every_comet = plan.is_for_every_comet;
        let is_broadcast =
            |delivery: &Delivery| is_for_every_comet && !overrides.also.contains(&delivery.comet);
        let plan = Arc::new(MessagePlan::new(plan, route, is_broadcast, self.chain.clone()));
        dispatcher.share(message, overrides, &plan);
        Ok(plan)
    }

    /// Settles a message for which nothing is called or written.
    fn spawn_delivery(&self, mut trace: MessageTrace, outcome: MessageOutcome, reason: impl Display) {
        trace.log_settled(self.chain.set(), outcome, &reason);
        self.pipeline.metrics.settled(outcome, trace.started);
        trace.finish_span(&self.pipeline.tracer, outcome, &reason);
        trace.pending.ack.settle();
    }

    fn dead_letter(&self, trace: MessageTrace, reason: DeadLetterReason) {
        let delivery_task = DeliveryTask {
            pipeline: Arc::clone(&self.pipeline),
            chain: self.chain.clone(),
            cancel: self.cancel.clone(),
            trace,
        };
        self.delivery_tasks.spawn(panics::abort_on_panic(
            "a message's delivery task",
            delivery_task.run(StageOutcome::DeadLetter(reason)),
        ));
    }
}

/// A record that makes the decoder panic becomes a dead letter, like any record that is not a message.
/// Otherwise it would crash every gateway of the group, one after the other.
fn decode_one(decoder: &mut Decoder, record: &Arc<Record>) -> Result<Message, DecodeFailure> {
    match catch_unwind(AssertUnwindSafe(|| decoder.decode(Arc::clone(record)))) {
        Ok(decoded) => Ok(decoded?),
        Err(panic) => Err(DecodeFailure::Panicked(panics::text(&*panic).to_owned())),
    }
}
