//! One comet: its queue, and the task behind it (`actor`) that owns its order queues, breaker and
//! channel.

mod active;
mod actor;
mod call;
mod concurrency;
mod live_stream;
mod parked;
mod probe;
mod streaming;

use std::sync::Arc;

use tokio::sync::mpsc;

use super::channel::{Dialer, Drivers};
use super::queued_call::{CometState, QueueCapacity, QueuedCall};
use super::{CallOutcome, CallRequest, CallTimeouts, Config};
use actor::Actor;

/// The fleet's handle of a comet, which queues calls.
#[derive(Debug)]
pub(super) struct Comet {
    pub(super) state: Arc<CometState>,
    inbox: mpsc::Sender<QueuedCall>,
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
        let (sender, inbox) = mpsc::channel(config.queue);
        let room = QueueCapacity { messages: config.queue, bytes: config.share() };
        let actor = Actor::new(Arc::clone(&state), dialer, config, timing);
        (Self { state, inbox: sender, room }, actor.run(inbox))
    }

    /// Queues a call. Never waits. If the queue is full, the request is returned if the comet keeps
    /// up, and is unreachable otherwise.
    pub(super) fn send(&self, request: CallRequest) -> Result<(), CallRequest> {
        let call = match QueuedCall::queue(request, &self.state, self.room) {
            Ok(queued) => queued,
            Err(request) if self.state.keeps_up() => return Err(request),
            Err(request) => {
                self.full(request, "it does not keep up");
                return Ok(());
            }
        };
        // The channel's capacity is the queue's, so it is never full. If the task is gone, the call
        // is dropped, which reports its outcome.
        drop(self.inbox.try_send(call));
        Ok(())
    }

    /// Reports a call that found the queue full as unreachable.
    pub(super) fn full(&self, request: CallRequest, why: &str) {
        let CometState { metrics, address, .. } = &*self.state;
        metrics.failed.inc();
        let waiting = self.state.unsettled();
        let outcome =
            CallOutcome::Unreachable(format!("queue full: {waiting} messages wait for {address}, {why}"));
        let hold = self.state.hold_behind_queue(&request.target, request.room.as_ref());
        request.reply.tell(outcome, Some(hold));
    }

    /// Whether its task has ended, which only a bug can cause.
    pub(super) fn is_dead(&self) -> bool {
        self.inbox.is_closed()
    }
}
