//! One comet: its queue, and the task behind it (`actor`) that owns its lanes, breaker and channel.

mod active;
mod actor;
mod call;
mod parked;
mod probe;

use std::sync::Arc;

use tokio::sync::mpsc;

use super::channel::{Dialer, Drivers};
use super::job::{Job, Room, Standing};
use super::{Config, Delivered, Parcel, ReplyTo, Timing};
use actor::Actor;

/// The fleet's handle of a comet, which queues calls.
#[derive(Debug)]
pub(super) struct Comet {
    pub(super) standing: Arc<Standing>,
    inbox: mpsc::Sender<Job>,
    room: Room,
}

impl Comet {
    /// Creates a comet and its task, which has to be spawned.
    pub(super) fn new(
        standing: Arc<Standing>,
        dialer: (Dialer, Drivers),
        config: &Config,
        timing: Timing,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, inbox) = mpsc::channel(config.queue);
        let room = Room { messages: config.queue, bytes: config.share() };
        let actor = Actor::new(Arc::clone(&standing), dialer, config, timing);
        (Self { standing, inbox: sender, room }, actor.run(inbox))
    }

    /// Queues a parcel. Never waits: when the queue is full, a comet that takes messages gives
    /// the parcel back, and for another one it is unreachable.
    pub(super) fn send(&self, parcel: Parcel) -> Result<(), Parcel> {
        let job = match Job::queue(parcel, &self.standing, self.room) {
            Ok(queued) => queued,
            Err(parcel) if self.standing.keeps_up() => return Err(parcel),
            Err(parcel) => {
                self.full(parcel.reply, "it does not take them");
                return Ok(());
            }
        };
        // The queue has as many places as there can be jobs. When the task is gone, the job is
        // dropped, which tells its outcome.
        drop(self.inbox.try_send(job));
        Ok(())
    }

    /// A parcel found no room in the queue.
    pub(super) fn full(&self, reply: ReplyTo, why: &str) {
        let Standing { metrics, address, .. } = &*self.standing;
        metrics.failed.inc();
        let waiting = self.standing.unsettled();
        reply.tell(Delivered::Unreachable(format!(
            "queue full: {waiting} messages wait for {address}, {why}"
        )));
    }

    /// Whether its task has ended, which only a bug can cause.
    pub(super) fn is_dead(&self) -> bool {
        self.inbox.is_closed()
    }
}
