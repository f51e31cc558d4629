//! One comet: its queue, and the task behind it (`actor`) that owns its order queues, breaker and
//! channel.

mod active;
mod actor;
mod answers;
mod breaker_change;
mod call;
mod concurrency;
mod live_stream;
mod parked;
mod probe;
mod queue_limit;
mod stream_state;
mod stream_verdict;
mod streaming;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::channel::{Dialer, Drivers};
use super::queued_call::QueuedCall;
use super::state::{CometState, QueueCapacity};
use super::{CallOutcome, CallRequest, CallTimeouts, Config};
use actor::Actor;

/// The fleet's handle of a comet, which queues calls.
#[derive(Debug)]
pub(super) struct Comet {
    pub(super) state: Arc<CometState>,
    /// Bounded by the queue's slots, which the calls hold.
    inbox: mpsc::UnboundedSender<Vec<QueuedCall>>,
    room: QueueCapacity,
}

impl Comet {
    /// Creates a comet and its task, which has to be spawned.
    pub(super) fn new(
        state: Arc<CometState>,
        dialer: (Dialer, Drivers),
        config: &Config,
        timing: CallTimeouts,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let room = QueueCapacity { messages: config.queue, bytes: config.share() };
        let actor = Actor::new(Arc::clone(&state), dialer, config, timing);
        (Self { state, inbox: sender, room }, actor.run(inbox))
    }

    /// Queues a call. Never waits. If the queue is full, the request is returned if the comet keeps
    /// up, and is unreachable otherwise.
    pub(super) fn send(&self, request: CallRequest) -> Result<(), CallRequest> {
        let call = self.take(request, Instant::now())?;
        self.hand_over(call.into_iter().collect());
        Ok(())
    }

    /// Takes room in the queue for a call, which has to be handed over. `None` if the queue is full and
    /// the comet does not keep up: then the call has its outcome.
    ///
    /// # Errors
    /// With the request if the queue is full and the comet keeps up.
    pub(super) fn take(&self, request: CallRequest, now: Instant) -> Result<Option<QueuedCall>, CallRequest> {
        match QueuedCall::queue(request, &self.state, self.room, now) {
            Ok(queued) => Ok(Some(queued)),
            Err(request) if self.state.keeps_up() => Err(request),
            Err(request) => {
                self.full(request, "it does not keep up");
                Ok(None)
            }
        }
    }

    /// Hands calls over to the comet's task.
    pub(super) fn hand_over(&self, calls: Vec<QueuedCall>) {
        // If the task is gone, the calls are dropped, which reports their outcomes.
        if !calls.is_empty() {
            drop(self.inbox.send(calls));
        }
    }

    /// Whether it may be called for this request: plugins may be limited to comets known otherwise.
    pub(super) fn accepts(&self, request: &CallRequest) -> bool {
        !request.named_by.is_limited_to_known() || self.state.source().is_trusted()
    }

    /// Reports a call that found the queue full as unreachable.
    pub(super) fn full(&self, request: CallRequest, why: &str) {
        let CometState { metrics, address, .. } = &*self.state;
        metrics.failed.inc_by(request.run.len() as u64);
        let waiting = self.state.unsettled();
        let outcome =
            CallOutcome::Unreachable(format!("queue full: {waiting} messages wait for {address}, {why}"));
        let CallRequest { target, room, run, .. } = request;
        run.tell(&outcome, |_| Some(self.state.hold_behind_queue(&target, room.as_ref())));
    }

    /// Whether its task has ended, which only a bug can cause.
    pub(super) fn is_dead(&self) -> bool {
        self.inbox.is_closed()
    }
}
